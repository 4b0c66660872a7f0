"""`AblationResult`: what ablating named sets of components does to a metric. `mlxterp.causal` measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxterp.component_names import parse_component
from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Component, Interval, Show, Table, bars, cautions
from mlxterp.statistics.significance import p_among_controls
from mlxterp.text import number, percent

CONTROLS = 19
"""Random sets that it takes for the best set to have p = 0.05."""

GROUPS = ("found", "random", "null")


@dataclass(frozen=True, kw_only=True)
class AblationRow:
    """One set of components and the metric with it ablated, or with everything else ablated.

    Attributes:
        label: how a reader names the set: `L9.H6`, `found heads`, `random set 3`.
        components: the labels of its members, `L9.H6` or `L3.mlp_out`.
        keep: False: these were ablated (necessity). True: all others of their kind were (sufficiency).
        value: the metric after the ablation.
        share: of the clean metric that is left; 1 = nothing lost. With a corrupted baseline, 0 is that one.
        group: "found" for what the experiment is about, "random" for comparison sets, "null" for sets
            predicted not to matter.
        ci: an interval around `share`.
    """

    label: str
    components: tuple[str, ...]
    value: float
    share: float
    keep: bool = False
    group: str = "found"
    ci: Interval | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class AblationResult(AnalysisResult):
    """The metric with sets of components ablated.

    Attributes:
        rows: one per set.
        ablation: what stands in for the ablated activation: "mean", "zero" or "resample".
        metric, clean_metric: what was measured, and its value without any ablation.
        corrupted_metric: the value that counts as nothing left; None when shares are relative to 0.
    """

    kind: ClassVar[str] = "ablation"
    rows: tuple[AblationRow, ...]
    ablation: str
    metric: str
    clean_metric: float
    corrupted_metric: float | None = None

    def _check(self) -> None:
        unknown = sorted({row.group for row in self.rows} - set(GROUPS))
        if unknown:
            raise ResultError(f"ablation rows in the groups {unknown}. Groups are: {', '.join(GROUPS)}.")

    @property
    def title(self) -> str:
        keeps = {row.keep for row in self.rows}
        whats = [("Keeping only", {True}), ("Ablating", {False})]
        what = next((what for what, only in whats if keeps == only), "Ablating, and keeping only,")
        names = [row.label for row in self.rows if row.group == "found"]
        return f"{what} {names[0] if len(names) == 1 else 'sets of components'} ({self.ablation} ablation)"

    def row(self, label: str, *, keep: bool = False) -> AblationRow:
        """The row of this label, ablated or kept; an unknown one raises ResultError, listing the rows."""
        for each in self.rows:
            if each.label == label and each.keep == keep:
                return each
        what = "kept" if keep else "ablated"
        there = ", ".join(f"{each.label} ({'kept' if each.keep else 'ablated'})" for each in self.rows)
        raise ResultError(
            f"no {what} set {label!r}. There are: {there}. Name one of these, with keep= to match."
        )

    def shares(self, group: str, *, keep: bool = False) -> tuple[float, ...]:
        """The shares kept by the sets of one group."""
        if group not in GROUPS:
            raise ResultError(f"no group {group!r}. Groups are: {', '.join(GROUPS)}.")
        return tuple(row.share for row in self.rows if row.group == group and row.keep == keep)

    def p_among_random(self, label: str, *, keep: bool = False) -> float | None:
        """The rank of a set among the random sets of its kind: (1 + those that do at least as much) / (1 +
        all), one-sided. Ablated, a set does more the less it leaves; kept alone, the more.

        None without random sets. The best of 11 has p = 1/11 = 0.09: it takes 19 random sets for 0.05.
        """
        own = self.row(label, keep=keep).share
        random = self._random_shares(keep=keep)
        if not random or not math.isfinite(own):
            return None
        sign = 1 if keep else -1
        return p_among_controls(sign * own, [sign * share for share in random])

    def _random_shares(self, *, keep: bool) -> list[float]:
        """The shares of the random sets that are numbers; equal sets are one control."""
        rows = [row for row in self.rows if row.group == "random" and row.keep == keep]
        distinct = {row.components: row.share for row in reversed(rows) if math.isfinite(row.share)}
        return list(distinct.values())

    def components(self) -> tuple[Component, ...]:
        """Sets that were ablated, with the share of the metric that ablating them removed."""
        return tuple(_removed(row) for row in self.rows if not row.keep)

    def summary(self) -> str:
        lines = [f"{self._headline()}. {self.metric} without ablation: {number(self.clean_metric)}."]
        for row in self.rows:
            if row.group == "random":
                continue
            what = "Keeping only" if row.keep else "Ablating"
            size = f" ({len(row.components)} components)" if len(row.components) > 1 else ""
            left = f"leaves {percent(row.share)} of it ({self.metric} {number(row.value)})"
            random = _range_of(self.shares("random", keep=row.keep))
            p = self.p_among_random(row.label, keep=row.keep)
            rank = "" if p is None else f"; p = {number(p, 2)} by rank"
            lines.append(f"{what} {row.label}{size} {left}{random}{rank}.")
        return self._with_limits(*lines, *self._too_few_controls())

    def _too_few_controls(self) -> tuple[str, ...]:
        """What the random sets do not show, where there are some."""
        counts = {len(self._random_shares(keep=keep)) for keep in (False, True)} - {0}
        few = min(counts, default=CONTROLS)
        if few >= CONTROLS:
            return ()
        beside = f"{few} random set{'s' * (few != 1)}"
        return (
            f"The best beside {beside} has p = {number(1 / (1 + few), 2)}: that does not show that the set "
            f"does more than others. It takes {CONTROLS} different ones for p = 0.05 (random_sets=).",
        )

    def shows(self) -> tuple[Show, ...]:
        drawn: list[Show] = [
            bars(
                (Component(row.label, row.share, ci=row.ci) for row in rows),
                title=title,
                unit=f"share of {self.metric} kept",
                accented=[i for i, row in enumerate(rows) if row.group == "found"],
                grey="what it is compared with",
                references=((1.0, "no ablation"),),
                reading=f"1 is the clean {self.metric}, 0 is none of it; {self.ablation} ablation.",
            )
            for title, rows in (
                ("What is left after ablating", [row for row in self.rows if not row.keep]),
                ("What is left when only these are kept", [row for row in self.rows if row.keep]),
            )
            if rows
        ]
        table = Table(
            title="Ablated sets",
            columns=("set", "what was done", "components", self.metric, "share kept", "group"),
            rows=tuple(
                (r.label, "kept" if r.keep else "ablated", len(r.components), r.value, r.share, r.group)
                for r in self.rows
            ),
        )
        compared = any(row.group == "random" for row in self.rows)
        alone = () if compared else ("No random sets of equal size were measured for comparison.",)
        return (*drawn, table, *cautions((*alone, *self._too_few_controls())))


def _removed(row: AblationRow) -> Component:
    """A set and what ablating it removed; a set of one head or hook point names its place in the model."""
    ci = None if row.ci is None else (1 - row.ci[1], 1 - row.ci[0])
    if len(row.components) != 1:
        return Component(row.label, 1 - row.share, ci=ci)
    found = parse_component(row.components[0])
    return Component(row.label, 1 - row.share, name=found.name, layer=found.layer, head=found.head, ci=ci)


def _range_of(shares: tuple[float, ...]) -> str:
    """What random sets keep, to stand behind what a set keeps; nothing where none was measured."""
    random = [share for share in shares if math.isfinite(share)]
    if not random:
        return ""
    spread = f", {percent(min(random))} to {percent(max(random))}" if len(random) > 1 else ""
    plural = "s" if len(random) > 1 else ""
    return f"; {len(random)} random set{plural} of that kind: {percent(float(np.mean(random)))}{spread}"
