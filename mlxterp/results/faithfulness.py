"""`FaithfulnessResult`: how well circuits do the work of their model. `mlxterp.causal` measures it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Bars, Component, Note, Show, Table, number
from mlxterp.results.values import NUMBER, converted, to_number

GROUPS = ("found", "without", "comparison", "random")


def shown(faithfulness: float) -> str:
    """As a person reads it; what is 0 but for rounding is 0."""
    return number(0.0 if abs(faithfulness) < 1e-9 else faithfulness)


@dataclass(frozen=True, kw_only=True)
class FaithfulnessRow:
    """One circuit, run with every other edge carrying the corrupted prompt's value.

    Attributes:
        label: how a reader names it: `the circuit`, `all but the circuit`, `random edges 1`.
        n_edges: how many edges it has.
        value: the metric with these edges only, as a mean over pairs.
        faithfulness: (value − corrupted) / (clean − corrupted): 1 = as the model, 0 = as the corrupted run.
        group: "found" for the circuit itself, "without" for the model without it, "comparison" and "random"
            for circuits of as many edges chosen otherwise.
        ci: an interval around `faithfulness`.
    """

    label: str
    n_edges: int
    value: float
    faithfulness: float
    group: str = "found"
    ci: tuple[float, float] | None = None


def _to_rows(rows: Iterable[FaithfulnessRow | Mapping[str, Any]]) -> tuple[FaithfulnessRow, ...]:
    return tuple(_to_row(row) for row in rows)


def _to_row(row: FaithfulnessRow | Mapping[str, Any]) -> FaithfulnessRow:
    data = dict(vars(row) if isinstance(row, FaithfulnessRow) else row)
    ci = data.get("ci")
    data |= {
        "value": to_number(data["value"]),
        "faithfulness": to_number(data["faithfulness"]),
        "ci": None if ci is None else (to_number(ci[0]), to_number(ci[1])),
    }
    return FaithfulnessRow(**data)


@dataclass(frozen=True, eq=False, kw_only=True)
class FaithfulnessResult(AnalysisResult):
    """Circuits and their faithfulness (Mueller et al. 2025, MIB): f(C) = (m(C) − m(∅)) / (m(M) − m(∅)).

    Attributes:
        rows: one per circuit, the one that was found first.
        metric, clean_metric, corrupted_metric: what was measured, with every edge and with none.
        n_edges: of the whole model.
    """

    kind: ClassVar[str] = "faithfulness"
    rows: tuple[FaithfulnessRow, ...] = field(metadata=converted(_to_rows))
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    n_edges: int

    def _check(self) -> None:
        unknown = sorted({row.group for row in self.rows} - set(GROUPS))
        if unknown:
            raise ResultError(f"faithfulness rows in the groups {unknown}. Groups are: {', '.join(GROUPS)}.")
        if not any(row.group == "found" for row in self.rows):
            raise ResultError("no row is in the group 'found'. Give the circuit that this is about.")

    @property
    def faithfulness(self) -> float:
        """Of the circuit that was found."""
        return next(row.faithfulness for row in self.rows if row.group == "found")

    @property
    def title(self) -> str:
        return "Faithfulness of the circuit"

    def components(self) -> tuple[Component, ...]:
        """Empty: circuits are no components."""
        return ()

    def row(self, label: str) -> FaithfulnessRow:
        """The row of this label; an unknown one raises ResultError, listing the rows."""
        for each in self.rows:
            if each.label == label:
                return each
        there = ", ".join(each.label for each in self.rows)
        raise ResultError(f"no circuit {label!r}. There are: {there}. Name one of these.")

    def of(self, group: str) -> tuple[float, ...]:
        """The faithfulness of each row of a group, those that are numbers."""
        if group not in GROUPS:
            raise ResultError(f"no group {group!r}. Groups are: {', '.join(GROUPS)}.")
        return tuple(r.faithfulness for r in self.rows if r.group == group and math.isfinite(r.faithfulness))

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}. {self.metric}: {number(self.clean_metric)} with all "
            f"{self.n_edges:,} edges, {number(self.corrupted_metric)} with none."
        ]
        for row in self.rows:
            if row.group != "random":
                interval = f", interval {shown(row.ci[0])} to {shown(row.ci[1])}" if row.ci else ""
                lines.append(
                    f"{row.label} ({row.n_edges:,} edges): faithfulness {shown(row.faithfulness)}{interval} "
                    f"({self.metric} {number(row.value)})."
                )
        random = self.of("random")
        if random:
            lines.append(
                f"{len(random)} random sets of as many edges: {shown(min(random))} to {shown(max(random))}."
            )
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        intervals = tuple(row.ci for row in self.rows if row.ci is not None)
        bars = Bars(
            title=self.title,
            labels=tuple(row.label for row in self.rows),
            values=tuple(row.faithfulness for row in self.rows),
            unit="faithfulness",
            intervals=intervals if len(intervals) == len(self.rows) else None,
            accented=tuple(i for i, row in enumerate(self.rows) if row.group == "found"),
            references=((1.0, "the whole model"),),
            reading="1 is as the model, 0 as the corrupted run; other edges carry the corrupted values.",
        )
        table = Table(
            title="Circuits",
            columns=("circuit", "edges", self.metric, "faithfulness", "group"),
            rows=tuple((r.label, r.n_edges, r.value, r.faithfulness, r.group) for r in self.rows),
        )
        note = (
            "Faithfulness depends on what stands in for the other edges (Miller et al. 2024): these are "
            "resampled from the corrupted prompt."
        )
        return bars, table, Note(note)
