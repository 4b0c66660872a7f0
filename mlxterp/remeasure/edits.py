"""What a declared intervention does to one group of runs: an edit per hook point, for all pairs of the group.

What lives here: each operation's arithmetic at a set of sites. What doesn't: running it, and path patching,
which is more than an edit (`measurement.py`); what may be declared (`mlxterp.autointerpret.hypothesis`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.autointerpret.fingerprint import SYNONYMS
from mlxterp.autointerpret.hypothesis import InterventionClaim
from mlxterp.causal.batching.sweep import n_heads_of
from mlxterp.component_names import ComponentName, parse_component
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError, TokenError
from mlxterp.remeasure.pairs import LengthGroup, Side
from mlxterp.sae.analysis.interventions import feature_clamp
from mlxterp.sae.sae import SAE

Flags: TypeAlias = NDArray[np.bool_]

_EITHER_RUN = ("patch", "path_patch", "steer", "clamp_feature")


@dataclass(frozen=True)
class Resources:
    """What setup.py offers to interventions besides the model: its `sae` and its `vectors` by name."""

    sae: SAE | None = None
    vectors: Mapping[str, ArrayLike] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """What is done at the sites: the fields of `InterventionClaim`, synonyms resolved.

    Attributes:
        value: 0 for operations without one.
        seed: of the noise that "noise" adds.
    """

    op: str
    source: Side = "clean"
    value: float = 0.0
    align: Literal["strict", "auto"] = "strict"
    receivers: tuple[str, ...] = ()
    features: tuple[int, ...] = ()
    vector: str = ""
    from_positions: tuple[int, ...] = ()
    seed: int = 0

    @property
    def edited(self) -> Side:
        """The run that is edited: the corrupted one in denoising, else the clean one."""
        return "corrupted" if self.op in _EITHER_RUN and self.source == "clean" else "clean"

    @property
    def other(self) -> Side:
        return "clean" if self.edited == "corrupted" else "corrupted"


def read_operation(declared: Mapping[str, Any], seed: int = 0) -> Operation:
    """The operation of a declaration as `Hypothesis.to_dict` writes it.

    Raises:
        DeclarationError: one that may not be declared, as a steering without a value.
    """
    given = InterventionClaim(**declared["intervention"]).to_dict()
    op, source = SYNONYMS.get(given["op"], given["op"]), given["source"]
    if op == "resample":
        op, source = "patch", "corrupted"
    return Operation(
        op=op,
        source=source,
        value=0.0 if given["value"] is None else float(given["value"]),
        align=given["align"],
        receivers=tuple(given.get("receivers", ())),
        features=tuple(given.get("features", ())),
        vector=given.get("vector", ""),
        from_positions=tuple(given.get("from_positions", ())),
        seed=seed,
    )


def read_sites(model: InterpretableModel, sites: Sequence[str]) -> tuple[ComponentName, ...]:
    """The sites of a claim.

    Raises:
        SweepError: a layer or head that this model does not have.
        CapabilityUnavailable: a hook point that it does not have.
    """
    found = []
    for text in sites:
        site = parse_component(text)
        if site.layer is not None and site.layer >= model.n_layers:
            raise SweepError(f"{text}: {model.name} has layers 0 to {model.n_layers - 1}. Name one of them.")
        model.architecture.require_point(HookPoint(site.name, site.layer))
        if site.head is not None and site.head >= n_heads_of(model, site.name):
            raise SweepError(
                f"{text}: {site.name} of {model.name} has heads 0 to {n_heads_of(model, site.name) - 1}. "
                "Name one of them."
            )
        found.append(site)
    return tuple(found)


@dataclass(frozen=True, eq=False)
class GroupEdit:
    """One hook point's edit in all pairs of a group.

    Attributes:
        value: `[n, …]` or `[1, …]`: of each pair, or one for all; None for what needs none.
        positions, heads: of the edited run; None is all.
    """

    kind: str
    point: HookPoint
    positions: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    value: Any = None

    def for_pairs(self, pairs: slice) -> Intervention:
        where = {"positions": self.positions, "heads": self.heads}
        value = self.value
        if isinstance(value, mx.array) and self.kind in ("replace", "add") and len(value) > 1:
            value = value[pairs]
        if self.kind == "zero":
            return interventions.zero(self.point, **where)
        if self.kind == "scale":
            return interventions.scale(self.point, value, **where)
        if self.kind == "clamp":
            return interventions.clamp(self.point, -value, value, **where)
        made = {
            "replace": interventions.replace,
            "add": interventions.add,
            "project_out": interventions.project_out,
            "edit": interventions.edit,
        }[self.kind]
        return made(self.point, value, **where)  # type: ignore[operator, no-any-return]

    def per_pair(self, n: int) -> list[Intervention]:
        """One per pair; where pairs share an edit it is the same object, so that it is made once."""
        if isinstance(self.value, mx.array) and self.kind in ("replace", "add") and len(self.value) > 1:
            return [self.for_pairs(slice(i, i + 1)) for i in range(n)]
        return [self.for_pairs(slice(None))] * n


def points_of(sites: Sequence[ComponentName]) -> list[HookPoint]:
    """The hook points of these sites, once each."""
    return list(dict.fromkeys(HookPoint(site.name, site.layer) for site in sites))


@dataclass(frozen=True, eq=False)
class EditMaker:
    """Makes the edits of one operation in one group.

    Attributes:
        own: float32 activations of the edited run `[n, …]`, by hook point.
        other: of the other run, for operations that need them.
    """

    model: InterpretableModel
    operation: Operation
    group: LengthGroup
    resources: Resources
    own: Mapping[HookPoint, mx.array]
    other: Mapping[HookPoint, mx.array]

    def edits(self, sites: Sequence[ComponentName]) -> list[GroupEdit]:
        """The edits of a set of sites: those of one hook point and position are one."""
        return [self._edit(*where) for where in self._places(sites)]

    def identity(self, sites: Sequence[ComponentName]) -> list[GroupEdit]:
        """Each site replaced with what is there already."""
        return [
            GroupEdit("replace", point, positions, heads, _cut(self.own[point], point, positions, heads))
            for point, positions, heads in self._places(sites)
        ]

    def random_directions(self, sites: Sequence[ComponentName], seed: int) -> list[GroupEdit]:
        """Each site moved as far as the operation moves it, vector by vector, in a random direction."""
        found = []
        for edit in self.edits(sites):
            base = self.own[edit.point]
            changed = edit.for_pairs(slice(None)).apply(base)
            assert changed is not None, "positions of a group exist"
            change = _cut(changed - base, edit.point, edit.positions, edit.heads)
            rng = np.random.default_rng([seed, *_number_of(str(edit.point))])
            random = mx.array(rng.standard_normal(change.shape[-1]).astype(np.float32))
            size = mx.linalg.norm(change, axis=-1, keepdims=True)
            value = _cut(base, edit.point, edit.positions, edit.heads)
            value = value + size * random / mx.linalg.norm(random)
            found.append(GroupEdit("replace", edit.point, edit.positions, edit.heads, value))
        return found

    def reached(self, edits: Sequence[GroupEdit]) -> tuple[Flags, Flags]:
        """Per pair, whether every edit found the activations it names in this pair's run, and whether one of
        them changed any."""
        n = len(self.group.indices)
        fired, changed = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        for edit in edits:
            base = self.own[edit.point]
            after = edit.for_pairs(slice(None)).apply(base)
            if after is None or len(base) != n:
                fired[:] = False
                continue
            changed |= np.array(mx.any((after != base).reshape(n, -1), axis=1))
        return fired, changed

    def _places(
        self, sites: Sequence[ComponentName]
    ) -> list[tuple[HookPoint, tuple[int, ...] | None, tuple[int, ...] | None]]:
        by_place: dict[tuple[HookPoint, int | None], list[int] | None] = {}
        length = self.group.length(self.operation.edited)
        for site in sites:
            pos = site.pos
            if pos is not None:
                if not -length <= pos < length:
                    raise TokenError(
                        f"{site}: there is no position {pos} in a prompt of {length} tokens. Name 0 to "
                        f"{length - 1}, or negative ones from the end."
                    )
                pos %= length
            place = HookPoint(site.name, site.layer), pos
            heads = by_place.setdefault(place, [])
            if site.head is None:
                by_place[place] = None
            elif heads is not None:
                heads.append(site.head)
        return [
            (point, self._positions(pos), None if heads is None else tuple(heads))
            for (point, pos), heads in by_place.items()
        ]

    def _positions(self, pos: int | None) -> tuple[int, ...] | None:
        if self.operation.op != "patch":
            return None if pos is None else (pos,)
        known = self.group.positions(self.operation.edited)
        if pos is None:
            # Below the first difference both runs hold the same activations.
            same_until = self.group.alignment.same_until
            moved = [p for p, q in sorted(known.items()) if p != q or p >= same_until]
            return tuple(moved or sorted(known))
        if pos not in known:
            raise TokenError(
                f"position {pos} of the {self.operation.edited} prompt has no counterpart in the other one "
                f"under this alignment. Aligned are: {sorted(known)}."
            )
        return (pos,)

    def _edit(
        self, point: HookPoint, positions: tuple[int, ...] | None, heads: tuple[int, ...] | None
    ) -> GroupEdit:
        operation = self.operation
        if operation.op == "zero":
            return GroupEdit("zero", point, positions, heads)
        if operation.op in ("scale", "clamp"):
            return GroupEdit(operation.op, point, positions, heads, operation.value)
        if operation.op == "patch":
            assert positions is not None, "a patch names its positions"
            known = self.group.positions(operation.edited)
            source = _cut(self.other[point], point, tuple(known[p] for p in positions), heads)
            return GroupEdit("replace", point, positions, heads, source)
        if operation.op == "mean":
            return GroupEdit(
                "replace", point, positions, heads, _cut(self._mean(point), point, positions, heads)
            )
        if operation.op == "noise":
            rng = np.random.default_rng([operation.seed, *_number_of(str(point))])
            part = _cut(self.own[point], point, positions, heads)
            noise = rng.standard_normal(part.shape).astype(np.float32)
            return GroupEdit("add", point, positions, heads, operation.value * mx.array(noise))
        if operation.op == "steer":
            vector = operation.value * self._steering_vector(point, positions, heads)
            return GroupEdit("add", point, positions, heads, vector)
        if operation.op == "project_out":
            return GroupEdit("project_out", point, positions, heads, self._named_vector(point))
        if operation.op == "clamp_feature":
            return self._clamped(point, positions)
        if operation.op == "attention_knockout":
            return GroupEdit("edit", point, positions, heads, self._knocked_out())
        raise SweepError(
            f"operation {operation.op!r} is not an edit at a site, so it cannot be measured here."
        )

    def _mean(self, point: HookPoint) -> mx.array:
        """Over all prompts of the group, clean and corrupted where they have the same length, once each."""
        runs = [(self.group.tokens[self.operation.edited], self.own[point])]
        if self.group.length("clean") == self.group.length("corrupted"):
            runs.append((self.group.tokens[self.operation.other], self.other[point]))
        _, first = np.unique(np.concatenate([tokens for tokens, _ in runs]), axis=0, return_index=True)
        if len(first) < 2:
            raise SweepError(
                "a mean over a single prompt puts in what is already there. Give several pairs of one length."
            )
        every = mx.concatenate([x for _, x in runs])
        return mx.mean(every[mx.array(np.sort(first))], axis=0, keepdims=True)

    def _steering_vector(
        self, point: HookPoint, positions: tuple[int, ...] | None, heads: tuple[int, ...] | None
    ) -> mx.array:
        """`[1, 1, (heads,) d]`: the named vector, or the mean difference of clean and corrupted activations
        at the last of these positions (contrastive activation addition, Rimsky et al. 2023)."""
        if self.operation.vector:
            vector = self._named_vector(point)
            return vector.reshape(*[1] * (axes(point).ndim - 1), -1)
        last = None if positions is None else (positions[-1],)
        own_last = last or (self.group.length(self.operation.edited) - 1,)
        known = self.group.positions(self.operation.edited)
        if own_last[0] not in known:
            raise TokenError(f"position {own_last[0]} has no counterpart, so there is no difference to add.")
        own = _cut(self.own[point], point, own_last, heads)
        other = _cut(self.other[point], point, (known[own_last[0]],), heads)
        difference = other - own if self.operation.edited == "corrupted" else own - other
        return mx.mean(difference, axis=0, keepdims=True)

    def _named_vector(self, point: HookPoint) -> mx.array:
        known = self.resources.vectors
        if self.operation.vector not in known:
            raise SweepError(
                f"no vector {self.operation.vector!r}. setup.py's `vectors` holds: "
                f"{', '.join(known) or 'none'}. Name one of them."
            )
        vector = mx.array(np.asarray(known[self.operation.vector], dtype=np.float32))
        width = self.own[point].shape[-1]
        if vector.shape != (width,):
            raise SweepError(
                f"vector {self.operation.vector!r} has shape {vector.shape}; at {point} it must be "
                f"({width},)."
            )
        return vector

    def _clamped(self, point: HookPoint, positions: tuple[int, ...] | None) -> GroupEdit:
        sae = self.resources.sae
        if sae is None:
            raise SweepError("clamp_feature needs an SAE, and setup.py has no `sae`. Define one there.")
        if sae.point != point:
            raise SweepError(
                f"clamp_feature at {point}, and setup.py's SAE reads {sae.hook_point}. Name that site."
            )
        edit = feature_clamp(sae, list(self.operation.features), self.operation.value, positions=positions)
        return GroupEdit("edit", point, positions, None, edit.value)

    def _knocked_out(self) -> Any:
        """A pattern's rows without attention to the named positions, each summing to 1 again: what a score of
        −∞ gives. A destination with no other source attends to nothing."""
        length = self.group.length(self.operation.edited)
        outside = [p for p in self.operation.from_positions if not -length <= p < length]
        if outside:
            raise TokenError(
                f"from_positions names {outside[0]}, and the prompt has {length} tokens. Name 0 to "
                f"{length - 1}, or negative ones from the end."
            )
        left = np.ones(length, dtype=np.float32)
        left[[p % length for p in self.operation.from_positions]] = 0.0

        def knock_out(pattern: mx.array) -> mx.array:
            kept = pattern * mx.array(left[: pattern.shape[-1]])
            total = mx.sum(kept, axis=-1, keepdims=True)
            return mx.where(total > 0, kept / mx.where(total > 0, total, 1.0), 0.0)

        return knock_out


def _cut(
    x: mx.array, point: HookPoint, positions: tuple[int, ...] | None, heads: tuple[int, ...] | None
) -> mx.array:
    """`x [n, …]` at these positions and heads."""
    where = axes(point)
    if positions is not None:
        x = mx.take(x, mx.array(positions), axis=where.pos)
    if heads is not None and where.head is not None:
        x = mx.take(x, mx.array(heads), axis=where.head)
    return x


def _number_of(text: str) -> list[int]:
    """A text as words of a seed, the same in every process."""
    return [int(each) for each in np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype=np.uint32)]
