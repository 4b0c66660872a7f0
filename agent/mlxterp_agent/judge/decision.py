"""From the numbers of a measurement (`mlxterp.remeasure`) to what the statistics decide on.

Lives here: joining pairs by cluster, the sign of a direction, placebos, the gate, the two looks. Does not
live here: measuring (`judge.py`), the verdict (`mlxterp.autointerpret.keep_rule`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlxterp.autointerpret.keep_rule import Measured
from mlxterp.statistics.arrays import Flags, Floats
from mlxterp.statistics.decisions import (
    POWER_QUANTILE,
    Cells,
    Claim,
    Gate,
    Look,
    Prefixed,
    cells_of,
    gate,
    judge,
    look,
    more_than_all,
    placebo_bar,
)
from mlxterp.statistics.distributions import upper_t_quantile
from mlxterp.statistics.outcome import N_MIN, Direction
from mlxterp.statistics.ratio import SE_FLOOR, by_cluster, effect_of, jackknife

_STEPS = (8, 16, 24, 48, 96, 192, 384, 768)
_PASSENGER_LEVEL = 0.005  # of each side: a 99 % interval


@dataclass(frozen=True, eq=False)
class Rows:
    """A claim measured on pairs, one row a pair, in the order of looks.

    Attributes:
        change, gap: patched − zero, one − zero.
        clusters, slices: of each pair.
        others: changes by every other head of the layer `[m, n]`, where the claim compares.
        without: changes by the set without each member `[members, n]`.
    """

    change: Floats
    gap: Floats
    clusters: tuple[str, ...]
    slices: tuple[str | None, ...]
    fired: Flags
    changed: Flags
    identity_holds: Flags
    others: Floats | None = None
    without: Floats | None = None

    @property
    def finite(self) -> Flags:
        tables = [part for part in (self.others, self.without) if part is not None]
        every = [self.change, self.gap, *(row for table in tables for row in table)]
        return np.asarray(np.isfinite(np.stack(every)).all(axis=0))

    def finite_only(self) -> Rows:
        """Without pairs that have a number that is not finite."""
        kept = np.flatnonzero(self.finite)
        return Rows(
            self.change[kept],
            self.gap[kept],
            tuple(self.clusters[i] for i in kept),
            tuple(self.slices[i] for i in kept),
            self.fired[kept],
            self.changed[kept],
            self.identity_holds[kept],
            None if self.others is None else self.others[:, kept],
            None if self.without is None else self.without[:, kept],
        )

    def cells(self) -> Cells:
        return cells_of(self.change, self.gap, self.clusters)

    def cells_by_slice(self) -> dict[str, Cells]:
        """The cells of each slice by itself; none where the pairs have no slices."""
        found = {}
        for name in sorted({each for each in self.slices if each is not None}):
            members = [i for i, each in enumerate(self.slices) if each == name]
            of = [self.clusters[i] for i in members]
            found[name] = cells_of(self.change[members], self.gap[members], of)
        return found


def rows_of(result: Mapping[str, Any], direction: str, first: int) -> Rows:
    """The rows of the first claim of a result.

    Args:
        direction: of the claim.
        first: the place of these clusters among all, which names the texts of a role.
    """
    if not result["claims"]:
        return no_rows()
    claim = result["claims"][0]
    if claim["role"] is not None:
        return _role_rows(claim["role"], direction, tuple(result["clusters"]), first)
    m = claim["measurement"]
    zero = _floats(m["zero"])
    others, without = claim["other_heads"], claim["drop_one"]
    return Rows(
        change=_floats(m["patched"]) - zero,
        gap=_floats(m["one"]) - zero,
        clusters=tuple(result["clusters"]),
        slices=tuple(pair["slice"] for pair in result["pairs"]),
        fired=np.array(m["fired"], dtype=bool),
        changed=np.array(m["changed"], dtype=bool),
        identity_holds=np.array(m["identity_holds"], dtype=bool),
        others=None if others is None else _table(others["patched"]) - zero,
        without=None if without is None else _table(without["patched"]) - zero,
    )


def no_rows() -> Rows:
    """What there is of clusters that do not exist."""
    none, flags = np.empty(0), np.empty(0, dtype=bool)
    return Rows(none, none, (), (), flags, flags, flags)


def _role_rows(role: Mapping[str, Any], direction: str, clusters: tuple[str, ...], first: int) -> Rows:
    """Attention mass as the change, with a gap of 1. A text that belongs to no pair is a cluster of its own.

    Of several heads the weakest decides, because the claim is about each; for a claim that there is none, the
    strongest.
    """
    masses = _table(role["masses"])
    means = masses.mean(axis=0)
    mass = masses[:, int(means.argmax() if direction == "none" else means.argmin())]
    yes = np.ones(len(mass), dtype=bool)
    names = clusters or tuple(f"text {first + i}" for i in range(len(mass)))
    return Rows(mass, np.ones(len(mass)), names, (None,) * len(mass), yes, yes, yes)


def role_placebos(result: Mapping[str, Any]) -> dict[str, float]:
    """The mean attention mass of each head that is not claimed."""
    role = result["claims"][0]["role"]
    others = _table(role["others"])
    return dict(zip(role["other_heads"], others.mean(axis=0).tolist(), strict=True)) if others.size else {}


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of several looks, one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def tables(name: str) -> Floats | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found, axis=1)

    return Rows(
        np.concatenate([part.change for part in parts]),
        np.concatenate([part.gap for part in parts]),
        tuple(each for part in parts for each in part.clusters),
        tuple(each for part in parts for each in part.slices),
        np.concatenate([part.fired for part in parts]),
        np.concatenate([part.changed for part in parts]),
        np.concatenate([part.identity_holds for part in parts]),
        tables("others"),
        tables("without"),
    )


def placebo_effects(result: Mapping[str, Any]) -> dict[str, float]:
    """R at each placebo by its name; those that did not fire or are not finite are left out."""
    placebos = result["claims"][0]["placebos"] if result["claims"] else None
    if placebos is None:
        return {}
    zero = _floats(placebos["zero"])
    gap = _floats(placebos["one"]) - zero
    found = {}
    for each, patched, fired in zip(placebos["sets"], placebos["patched"], placebos["fired"], strict=True):
        change = _floats(patched) - zero
        if all(fired) and np.isfinite(change).all() and np.isfinite(gap).all():
            cells = cells_of(change, gap, result["clusters"])
            found[placebo_name(each)] = float(effect_of(cells.change, cells.gap))
    return found


def placebo_name(each: Mapping[str, Any]) -> str:
    """One name for a set of sites, and for a direction at them."""
    name = " + ".join(sorted(each["sites"]))
    return name if each["direction_seed"] is None else f"{name}, direction {each['direction_seed']}"


def gate_of(result: Mapping[str, Any], *, twin: bool = False) -> Gate:
    """The behaviour gate on a result's pairs, of the model or of its twin."""
    cells = result["twin_gate" if twin else "gate"]
    pairs, others, behind = cells["pairs"], cells["candidates"], cells["prefixed"]
    gaps = _gaps(pairs, result["clusters"])
    # A distance is larger in the corrupted run: there the gap has the other sign.
    towards = -1.0 if gaps.mean() < 0 else 1.0
    shown = None if others is None else np.logical_and(others["answer_preferred"], others["foil_preferred"])
    return gate(
        towards * gaps,
        _preferred(pairs),
        np.array([*pairs["answer_rank"], *pairs["foil_rank"]], dtype=float),
        int(cells["d_vocab"]),
        candidates=None if shown is None else shown.astype(float),
        prefixed=None
        if behind is None
        else Prefixed(towards * _gaps(behind, result["clusters"]), _preferred(behind)),
    )


def _gaps(cells: Mapping[str, Any], clusters: Sequence[str]) -> Floats:
    """The gap of each cluster."""
    gap = _floats(cells["clean"]) - _floats(cells["corrupted"])
    return cells_of(gap, np.ones_like(gap), clusters).change


def _preferred(cells: Mapping[str, Any]) -> Floats:
    return np.array([*cells["answer_preferred"], *cells["foil_preferred"]], dtype=float)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was found at the last look.

    Attributes:
        look: 1 or 2.
        found: the look's numbers.
        measured: what the keep rule sees; whether it replays is not known here.
        not_exceeded: other heads that the claimed one is not shown to exceed, by their place.
        passengers: members of a set whose share is not told from nothing, by their place.
    """

    look: int
    found: Look
    measured: Measured
    not_exceeded: tuple[int, ...] | None = None
    passengers: tuple[int, ...] | None = None


def decide_rows(
    rows: Rows,
    declared: Mapping[str, Any],
    placebos: Mapping[str, float],
    alpha: float,
    *,
    last: bool = False,
) -> Decision:
    """A look at these rows at half of the claim's level: the first, or the `last` one at all clusters.

    Raises:
        StatisticsError: there is no gap, or fewer than two clusters.
    """
    cells = rows.cells()
    direction = _direction(declared["direction"], cells)
    claim = Claim(
        sesoi=float(declared["sesoi"]),
        direction=direction,
        bar=placebo_bar(list(placebos.values())) if placebos else None,
        slices=rows.cells_by_slice(),
    )
    found = look(cells, claim, alpha / 2) if last else judge(cells, claim, alpha)
    not_exceeded = None
    if rows.others is not None and found.n >= N_MIN:
        not_exceeded = _not_exceeded(rows, cells, found, direction, alpha)
    return Decision(
        look=2 if last else 1,
        found=found,
        measured=Measured(
            comparison=found.comparison,
            n=found.n,
            more_than_others=None if not_exceeded is None else not not_exceeded,
            more_clusters=_more_clusters(found, claim.sesoi),
        ),
        not_exceeded=not_exceeded,
        passengers=_passengers(rows) if rows.without is not None else None,
    )


def same_rows(one: Rows, other: Rows) -> bool:
    """Whether two measurements of the same pairs gave the same numbers, up to what a run repeats to."""
    return same_numbers((one.change, one.gap), (other.change, other.gap))


def same_numbers(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> bool:
    """The same for changes and gaps."""
    (change, gap), (other_change, other_gap) = one, other
    if change.shape != other_change.shape or not len(change):
        return change.shape == other_change.shape
    allowed = SE_FLOOR * max(float(np.abs(gap).mean()), 1e-12)
    return bool((np.abs(np.stack([change - other_change, gap - other_gap])) <= allowed).all())


def _direction(declared: str, cells: Cells) -> Direction:
    """The sign of R that was predicted. R is positive where the edited run moves towards the other one; with
    a metric that is lower there, that is a decrease."""
    if declared in ("none", "either"):
        return declared  # type: ignore[return-value]
    return "increase" if (declared == "increase") == bool(cells.gap.sum() > 0) else "decrease"


def _not_exceeded(
    rows: Rows, cells: Cells, found: Look, direction: Direction, alpha: float
) -> tuple[int, ...]:
    assert rows.others is not None
    sign = -1.0 if direction == "decrease" or (direction == "either" and found.effect < 0) else 1.0
    others = np.stack([cells_of(each, rows.gap, rows.clusters).change for each in rows.others], axis=1)
    n = found.n
    return more_than_all(sign * cells.change[:n], sign * others[:n], cells.gap[:n], alpha / 2)


def _passengers(rows: Rows) -> tuple[int, ...]:
    assert rows.without is not None
    found = []
    for member, without in enumerate(rows.without):
        cells = cells_of(rows.change - without, rows.gap, rows.clusters)
        share = jackknife(*by_cluster(cells.change, cells.gap, None))
        wide = upper_t_quantile(_PASSENGER_LEVEL, len(cells) - 1) * max(float(share.se), SE_FLOOR)
        if abs(float(share.effect)) <= wide:
            found.append(member)
    return tuple(found)


def _more_clusters(found: Look, sesoi: float) -> int | None:
    """About how many more clusters would show an effect of 1.5 S in 19 of 20 cases, in coarse steps so that
    little is told of the spread; None where that many are there already."""
    q = upper_t_quantile(found.alpha, found.n - 1)
    needed = found.n * (found.se * (q + POWER_QUANTILE) / sesoi) ** 2
    more = math.ceil(needed - found.n) if math.isfinite(needed) else 0
    if more <= 0:
        return None
    return next((step for step in _STEPS if more <= step), _STEPS[-1])


def _floats(values: Sequence[Any]) -> Floats:
    return np.array([float(each) for each in values], dtype=np.float64)


def _table(rows: Sequence[Sequence[Any]]) -> Floats:
    return np.array([[float(each) for each in row] for row in rows], dtype=np.float64)
