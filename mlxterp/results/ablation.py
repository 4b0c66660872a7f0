"""`AblationResult`: what ablating named sets of components does to a metric. `mlxterp.causal` measures it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Bars, Component, Note, Show, Table, number, percent
from mlxterp.results.values import NUMBER, converted, to_number, to_texts

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
    ci: tuple[float, float] | None = None


def _to_rows(rows: Iterable[AblationRow | Mapping[str, Any]]) -> tuple[AblationRow, ...]:
    return tuple(_to_row(row) for row in rows)


def _to_row(row: AblationRow | Mapping[str, Any]) -> AblationRow:
    data = dict(vars(row) if isinstance(row, AblationRow) else row)
    ci = data.get("ci")
    data |= {
        "components": to_texts(data["components"]),
        "value": to_number(data["value"]),
        "share": to_number(data["share"]),
        "ci": None if ci is None else (to_number(ci[0]), to_number(ci[1])),
    }
    return AblationRow(**data)


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
    rows: tuple[AblationRow, ...] = field(metadata=converted(_to_rows))
    ablation: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float | None = field(metadata=NUMBER, default=None)

    def _check(self) -> None:
        unknown = sorted({row.group for row in self.rows} - set(GROUPS))
        if unknown:
            raise ResultError(f"ablation rows in the groups {unknown}. Groups are: {', '.join(GROUPS)}.")

    @property
    def title(self) -> str:
        keeps = {row.keep for row in self.rows}
        what = {frozenset({True}): "Keeping only", frozenset({False}): "Ablating"}.get(
            frozenset(keeps), "Ablating, and keeping only,"
        )
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

    def components(self) -> tuple[Component, ...]:
        """Sets that were ablated, with the share of the metric that ablating them removed."""
        return tuple(self._component(row) for row in self.rows if not row.keep)

    @staticmethod
    def _component(row: AblationRow) -> Component:
        layer = head = None
        name = ""
        if len(row.components) == 1 and row.components[0].startswith("L"):
            first, _, rest = row.components[0].partition(".")
            if first[1:].isdecimal():
                layer = int(first[1:])
                is_head = rest[:1] == "H" and rest[1:].isdecimal()
                head, name = (int(rest[1:]), "z") if is_head else (None, rest)
        ci = None if row.ci is None else (1 - row.ci[1], 1 - row.ci[0])
        return Component(row.label, 1 - row.share, name=name, layer=layer, head=head, ci=ci)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}. "
            f"{self.metric} without ablation: {number(self.clean_metric)}."
        ]
        for row in self.rows:
            if row.group == "random":
                continue
            what = "Keeping only" if row.keep else "Ablating"
            size = f" ({len(row.components)} components)" if len(row.components) > 1 else ""
            left = f"leaves {percent(row.share)} of it ({self.metric} {number(row.value)})"
            lines.append(f"{what} {row.label}{size} {left}{self._against_random(row.keep)}.")
        return "\n".join(lines)

    def _against_random(self, keep: bool) -> str:  # noqa: FBT001
        random = [share for share in self.shares("random", keep=keep) if math.isfinite(share)]
        if not random:
            return ""
        spread = f", {percent(min(random))} to {percent(max(random))}" if len(random) > 1 else ""
        plural = "s" if len(random) > 1 else ""
        return f"; {len(random)} random set{plural} of that kind: {percent(float(np.mean(random)))}{spread}"

    def shows(self) -> tuple[Show, ...]:
        drawn: list[Show] = []
        for keep, title in (
            (False, "What is left after ablating"),
            (True, "What is left when only these are kept"),
        ):
            rows = [row for row in self.rows if row.keep == keep]
            if not rows:
                continue
            intervals = tuple(row.ci for row in rows if row.ci is not None)
            drawn.append(
                Bars(
                    title=title,
                    labels=tuple(row.label for row in rows),
                    values=tuple(row.share for row in rows),
                    unit=f"share of {self.metric} kept",
                    intervals=intervals if len(intervals) == len(rows) else None,
                    accented=tuple(i for i, row in enumerate(rows) if row.group == "found"),
                    references=((1.0, "no ablation"),),
                    reading=f"1 is the clean {self.metric}, 0 is none of it; {self.ablation} ablation.",
                )
            )
        rows_of_table = tuple(
            (
                row.label,
                "kept" if row.keep else "ablated",
                len(row.components),
                row.value,
                row.share,
                row.group,
            )
            for row in self.rows
        )
        drawn.append(
            Table(
                title="Ablated sets",
                columns=("set", "what was done", "components", self.metric, "share kept", "group"),
                rows=rows_of_table,
            )
        )
        if not any(row.group == "random" for row in self.rows):
            drawn.append(Note("No random sets of equal size were measured for comparison.", "caution"))
        return tuple(drawn)
