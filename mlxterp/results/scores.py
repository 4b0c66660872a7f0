"""`HeadScoresResult` and `MetricsResult`: attention scores of heads, and behaviour on the prompts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Cell, Component, Floats, Note, Show, Table, heatmap, number
from mlxterp.results.values import ARRAY_MAP, NUMBER_MAP, converted, to_number

_SCORES = {
    "previous_token": "mean attention from each position to the one before it",
    "duplicate_token": "mean attention to the earlier occurrence of the same token",
    "induction": "mean attention to the token after the earlier occurrence of the same token",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadScoresResult(AnalysisResult):
    """Scores of every head's attention pattern.

    Attributes:
        scores: per score name ("previous_token", "duplicate_token", "induction" …) an array
            [n_layers, n_heads] of mean attention weights, between 0 and 1.
        expected: per score name, what a head that attends evenly would have.
    """

    kind: ClassVar[str] = "head_scores"
    scores: Mapping[str, Floats] = field(metadata=ARRAY_MAP)
    expected: Mapping[str, float] = field(metadata=NUMBER_MAP, default_factory=dict)

    def _check(self) -> None:
        shapes = {values.shape for values in self.scores.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ResultError(
                f"scores of shapes {sorted(shapes)}. Give one [n_layers, n_heads] array per score name."
            )

    @property
    def title(self) -> str:
        return f"Attention scores of heads: {', '.join(_words(name) for name in self.scores)}"

    def score(self, name: str) -> Floats:
        """[n_layers, n_heads] of one score; an unknown name raises ResultError, listing the names."""
        if name not in self.scores:
            raise ResultError(f"no score {name!r}. There are: {', '.join(self.scores)}.")
        return self.scores[name]

    def top_heads(self, name: str, k: int = 5) -> list[Component]:
        """The k heads with the highest score of this name."""
        heads = [c for c in self._heads(name, suffix="") if math.isfinite(c.effect)]
        return sorted(heads, key=lambda c: -c.effect)[:k]

    def components(self) -> tuple[Component, ...]:
        """Every head once per score; with several scores the label says which: `L1.H3 induction`."""
        suffixed = len(self.scores) > 1
        return tuple(
            c for name in self.scores for c in self._heads(name, f" {_words(name)}" if suffixed else "")
        )

    def _heads(self, name: str, suffix: str) -> list[Component]:
        values = self.score(name)
        return [
            Component(
                f"L{layer}.H{head}{suffix}",
                float(values[layer, head]),
                name="pattern",
                layer=layer,
                head=head,
            )
            for layer, head in np.ndindex(values.shape)
        ]

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [f"{self.title}{f' ({on})' if on else ''}."]
        for name in self.scores:
            top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_heads(name, 3))
            even = f"; an even head has {number(self.expected[name])}" if name in self.expected else ""
            lines.append(f"{_words(name)} ({_SCORES.get(name, 'as named')}): {top}{even}.")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        drawn: list[Show] = []
        for name, values in self.scores.items():
            even = f" An even head has {number(self.expected[name])}." if name in self.expected else ""
            drawn.append(
                heatmap(
                    values.T,
                    title=f"{_words(name).capitalize()} score of each head",
                    rows=("head", tuple(f"H{i}" for i in range(values.shape[1]))),
                    columns=("layer", tuple(f"L{i}" for i in range(values.shape[0]))),
                    unit="attention",
                    reading=f"{_SCORES.get(name, name).capitalize()}, 0 to 1.{even}",
                    diverging=False,
                )
            )
        rows = tuple(
            (_words(name), c.label, c.effect) for name in self.scores for c in self.top_heads(name, 3)
        )
        drawn.append(Table(title="Highest scores", columns=("score", "head", "mean attention"), rows=rows))
        return tuple(drawn)


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """How the model answers one prompt.

    Attributes:
        prompt, answer: texts; `foil` the wrong answer it is compared with, if any.
        logit_diff: answer minus foil; None without a foil.
        prob: of the answer.
        rank: of the answer among all tokens; 1 = the model's first choice.
        top_token: what the model says first, if recorded.
        run: "clean" or "corrupted".
    """

    prompt: str
    answer: str
    prob: float
    rank: int
    foil: str | None = None
    logit_diff: float | None = None
    top_token: str | None = None
    run: str = "clean"


def _to_rows(rows: Iterable[MetricsRow | Mapping[str, Any]]) -> tuple[MetricsRow, ...]:
    return tuple(_to_row(row) for row in rows)


def _to_row(row: MetricsRow | Mapping[str, Any]) -> MetricsRow:
    data = dict(vars(row) if isinstance(row, MetricsRow) else row)
    diff = data.get("logit_diff")
    data |= {
        "prob": to_number(data["prob"]),
        "rank": int(data["rank"]),
        "logit_diff": None if diff is None else to_number(diff),
    }
    return MetricsRow(**data)


@dataclass(frozen=True, eq=False, kw_only=True)
class MetricsResult(AnalysisResult):
    """The behaviour itself, before anything is patched: one row per prompt, and named totals.

    Attributes:
        rows: one per prompt (and run).
        totals: named numbers over all prompts, beyond the means that `summary` gives.
    """

    kind: ClassVar[str] = "metrics"
    rows: tuple[MetricsRow, ...] = field(metadata=converted(_to_rows))
    totals: Mapping[str, float] = field(metadata=NUMBER_MAP, default_factory=dict)

    @property
    def title(self) -> str:
        return "Behaviour on the prompts"

    def components(self) -> tuple[Component, ...]:
        return ()

    def mean(self, name: str, *, run: str = "clean") -> float:
        """The mean of "logit_diff", "prob" or "rank" over the rows of a run; NaN when no row has it."""
        if name not in ("logit_diff", "prob", "rank"):
            raise ResultError(f"no metric {name!r}. There are: logit_diff, prob, rank.")
        values = [getattr(row, name) for row in self.rows if row.run == run]
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else math.nan

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [f"{self.title}{f' ({on})' if on else ''}."]
        for run in dict.fromkeys(row.run for row in self.rows):
            rows = [row for row in self.rows if row.run == run]
            first = sum(row.rank == 1 for row in rows)
            better = [row.logit_diff > 0 for row in rows if row.logit_diff is not None]
            over = f"; the answer beats the foil on {sum(better)} of {len(better)}" if better else ""
            diff = self.mean("logit_diff", run=run)
            mean = f", mean logit difference {number(diff)}" if math.isfinite(diff) else ""
            lines.append(
                f"{run}: the answer ranks first on {first} of {len(rows)} prompts{over}; "
                f"mean probability {number(self.mean('prob', run=run))}{mean}."
            )
        if self.totals:
            lines.append(", ".join(f"{name} {number(value)}" for name, value in self.totals.items()) + ".")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        several = len({row.run for row in self.rows}) > 1
        head = ("prompt", "answer", "foil", "logit difference", "probability", "rank", "model says")
        columns: tuple[str, ...] = ("run", *head) if several else head
        rows: list[tuple[Cell, ...]] = []
        for row in self.rows:
            cells = (row.prompt, row.answer, row.foil, row.logit_diff, row.prob, row.rank, row.top_token)
            rows.append((row.run, *cells) if several else cells)
        drawn: list[Show] = [Table(title="How the model answers", columns=columns, rows=tuple(rows))]
        wrong = [
            row
            for row in self.rows
            if row.run == "clean" and row.logit_diff is not None and row.logit_diff <= 0
        ]
        if wrong:
            named = ", ".join(repr(row.prompt) for row in wrong[:3])
            clean = sum(row.run == "clean" for row in self.rows)
            text = f"The foil is not below the answer on {len(wrong)} of {clean} prompts: {named}."
            drawn.append(Note(text, "caution"))
        return tuple(drawn)


def _words(name: str) -> str:
    return name.replace("_", " ")
