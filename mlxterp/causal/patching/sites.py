"""Which sites a sweep visits, and which run is patched with which: shared by patching and its estimates.

What lives here: the axes of a sweep, its grid of sites, the two runs with their aligned positions, and the
labels of those positions. What doesn't: pairs and baselines (`pair.py`), how positions are aligned
(`alignment.py`), what is done at a site (`activation_patching.py` puts the other run's activation there,
`estimates.py` multiplies it with a gradient).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.encoding import Ids, str_tokens
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError, TokenError
from mlxterp.metrics import Floats

By: TypeAlias = Literal["layer", "layer_pos", "layer_head", "layer_pos_head"]
Direction: TypeAlias = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Site:
    """One cell of a sweep: base positions with the source position of each, and a head or all of them."""

    layer: int
    positions: tuple[tuple[int, int], ...]
    head: int | None


@dataclass(frozen=True)
class Grid:
    """The sites of a sweep: all combinations along its axes; any other axis is patched all at once."""

    axes: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]  # (base, source)
    heads: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(entries) for entries in self.indices().values())

    def indices(self) -> dict[str, tuple[int, ...]]:
        """The numbers along each axis, in the axes' order."""
        every = {
            "layer": self.layers,
            "pos": tuple(base for base, _ in self.positions),
            "head": tuple(head for head in self.heads if head is not None),
        }
        return {axis: every[axis] for axis in self.axes}

    def sites(self) -> list[Site]:
        cells = [(entry,) for entry in self.positions] if "pos" in self.axes else [self.positions]
        return [Site(*site) for site in itertools.product(self.layers, cells, self.heads)]


@dataclass(frozen=True)
class Runs:
    """Which run is patched (base) and which one the activations come from (source)."""

    base: Ids
    source: Ids
    base_run: sweep.BaseRun | None
    source_run: sweep.BaseRun | None
    base_metric: Floats
    positions: tuple[tuple[int, int], ...]
    same_until: int

    def changes(self, position: tuple[int, int]) -> bool:
        """Whether the activations can differ: below the first difference both runs hold the same ones."""
        base, source = position
        return base != source or base >= self.same_until


def axes_of(name: str, by: str | None) -> tuple[str, ...]:
    """The axes of a sweep of this component, from `by` or the component's default."""
    has_heads = axes(HookPoint(name, 0)).head is not None
    if by is None:
        by = "layer_head" if has_heads else "layer"
    if by not in get_args(By):
        raise SweepError(f"by={by!r} is not known. Choose one of: {', '.join(get_args(By))}.")
    if by.endswith("head") and not has_heads:
        raise SweepError(
            f"by={by!r} asks for heads, and {name} has none: it is a vector of the residual stream. Per "
            "head there are z (what each head hands to W_O), q, k, v and pattern."
        )
    return tuple(by.split("_"))


def runs_of(prepared: Prepared, direction: Direction) -> Runs:
    """Denoising patches the corrupted run, noising the clean one."""
    pairs, same_until = prepared.alignment.positions, prepared.alignment.same_until
    if direction == "denoising":
        flipped = tuple(sorted((x, c) for c, x in pairs))
        return Runs(
            prepared.corrupted,
            prepared.clean,
            prepared.corrupted_run,
            prepared.clean_run,
            prepared.corrupted_metric,
            flipped,
            same_until,
        )
    return Runs(
        prepared.clean,
        prepared.corrupted,
        prepared.clean_run,
        prepared.corrupted_run,
        prepared.clean_metric,
        tuple(sorted(pairs)),
        same_until,
    )


def swept_positions(positions: Sequence[int] | None, runs: Runs) -> tuple[tuple[int, int], ...]:
    """(base, source) of the chosen base positions, or of all that are aligned."""
    if positions is None:
        return runs.positions
    wanted = within(positions, runs.base.shape[1], "positions")
    known = dict(runs.positions)
    missing = [p for p in wanted if p not in known]
    if missing:
        raise TokenError(
            f"positions {missing} have no counterpart in the other prompt under this alignment. Aligned "
            f"are: {sorted(known)}."
        )
    return tuple((p, known[p]) for p in wanted)


def within(chosen: Sequence[int] | None, size: int, what: str) -> tuple[int, ...]:
    """The chosen numbers below `size`, ascending and counted from the start; all of them for None."""
    if chosen is None:
        return tuple(range(size))
    outside = [i for i in chosen if not -size <= i < size]
    if outside or not len(chosen):
        raise SweepError(
            f"{what}={list(chosen)}: {f'{outside} do not exist' if outside else 'there is none to sweep'}. "
            f"There are {what} 0 to {size - 1}; negative ones count from the end."
        )
    unique = tuple(sorted({i % size for i in chosen}))
    if len(unique) != len(chosen):
        raise SweepError(f"{what}={list(chosen)} names one twice. List each once.")
    return unique


def token_labels(
    model: InterpretableModel, prepared: Prepared, direction: Direction, swept: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """The clean token at each position, with the corrupted one beside it where they differ."""
    labels = []
    for base, source in swept:
        c, x = (source, base) if direction == "denoising" else (base, source)
        clean, corrupted = prepared.clean[:, c], prepared.corrupted[:, x]
        names = [_one_label(model, clean)]
        if not np.array_equal(clean, corrupted):
            names.append(_one_label(model, corrupted))
        labels.append("/".join(names))
    return tuple(labels)


def _one_label(model: InterpretableModel, token_ids: Ids) -> str:
    first = str_tokens(model, token_ids[:1])[0]
    return first if len(set(token_ids.tolist())) == 1 else f"{first}…"
