"""Sets of heads and components: how they are written, what is left outside them, random ones of equal
size."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from mlxterp.core.hook_points import HookPoint, component_name, head_label
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError

Member: TypeAlias = str | tuple[int, int]
"""A head as (layer, head) or `"L9.H6"`; any other component as `"L3.mlp_out"` or `"L3.attn"`."""

_HEAD = re.compile(r"L(\d+)\.H(\d+)")
_COMPONENT = re.compile(r"L(\d+)\.(\w+)")


@dataclass(frozen=True)
class Part:
    """One member of a set: a head of a layer (its point is z), or a whole component."""

    name: str
    layer: int
    head: int | None = None

    @property
    def point(self) -> HookPoint:
        return HookPoint(self.name, self.layer)

    def __str__(self) -> str:
        return str(self.point) if self.head is None else head_label(self.layer, self.head)


def read_parts(model: InterpretableModel, members: Sequence[Member]) -> tuple[Part, ...]:
    """A set as written; SweepError for an empty one, a member twice, or one that does not exist."""
    if not members or isinstance(members, str):
        raise SweepError(
            f"{members!r} is not a set of heads. Give for instance [(9, 6), 'L10.H0', 'L3.mlp_out']."
        )
    parts = tuple(_read(model, member) for member in members)
    if len(set(parts)) != len(parts):
        raise SweepError(f"the set {list(members)} names a member twice. List each once.")
    return parts


def others_of(model: InterpretableModel, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Everything of the kinds that occur in the set, without the set: for heads, all other heads."""
    every: list[Part] = []
    for name, per_head in sorted({(part.name, part.head is not None) for part in parts}):
        for layer in range(model.n_layers):
            every += [Part(name, layer, h) for h in range(model.n_heads)] if per_head else [Part(name, layer)]
    others = tuple(part for part in every if part not in set(parts))
    if not others:
        raise SweepError(
            "keep=True with a set that holds every component of its kind: there is nothing to ablate."
        )
    return others


def random_head_sets(
    model: InterpretableModel, k: int, n: int, *, seed: int = 0, exclude: Sequence[Member] = ()
) -> list[tuple[tuple[int, int], ...]]:
    """`n` random sets of `k` heads `(layer, head)` each, without the excluded ones; two sets may share
    heads."""
    left_out = {(part.layer, part.head) for part in (read_parts(model, exclude) if exclude else ())}
    pool = [(la, h) for la in range(model.n_layers) for h in range(model.n_heads) if (la, h) not in left_out]
    if not 1 <= k <= len(pool):
        raise SweepError(
            f"sets of {k} heads: of the model's {model.n_layers * model.n_heads} heads, {len(pool)} are not "
            "excluded. Ask for smaller sets, or exclude fewer heads."
        )
    rng = np.random.default_rng(seed)
    return [tuple(sorted(pool[i] for i in rng.choice(len(pool), size=k, replace=False))) for _ in range(n)]


def random_parts(
    model: InterpretableModel, sets: Sequence[Sequence[Part]], n: int, *, seed: int, exclude: Sequence[Member]
) -> list[tuple[Part, ...]]:
    """`n` random sets as large as the first of `sets`, disjoint from all of them and from `exclude`."""
    if any(part.head is None for part in sets[0]):
        raise SweepError(
            f"{n} random sets of heads are asked for beside a set of whole components. Leave them out."
        )
    taken = {(part.layer, part.head) for parts in sets for part in parts if part.head is not None}
    taken |= {
        (part.layer, part.head)
        for part in (read_parts(model, exclude) if exclude else ())
        if part.head is not None
    }
    drawn = random_head_sets(model, len(sets[0]), n, seed=seed, exclude=sorted(taken))
    return [read_parts(model, heads) for heads in drawn]


def _read(model: InterpretableModel, member: Member) -> Part:
    name, head = "z", None
    if not isinstance(member, str):
        layer, head = int(member[0]), int(member[1])
    elif as_head := _HEAD.fullmatch(member):
        layer, head = int(as_head[1]), int(as_head[2])
    elif as_component := _COMPONENT.fullmatch(member):
        layer, name = int(as_component[1]), component_name(as_component[2])
    else:
        raise SweepError(
            f"{member!r} is neither a head as 'L9.H6' or (9, 6), nor a component as 'L3.mlp_out'."
        )
    if not 0 <= layer < model.n_layers or (head is not None and not 0 <= head < model.n_heads):
        raise SweepError(
            f"{member!r} does not exist: the model has layers 0 to {model.n_layers - 1}, each with heads 0 "
            f"to {model.n_heads - 1}."
        )
    return Part(name, layer, head)
