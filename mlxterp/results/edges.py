"""`EdgeScoresResult`: a score for every edge of a model's graph. `mlxterp.causal` measures it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Note, Show, Table, component_bars, heatmap, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS

_METHODS = {
    "eap": "Edge attribution patching (EAP)",
    "eap-ig": "Edge attribution patching with integrated gradients (EAP-IG)",
    "clean-corrupted": "Edge attribution patching with gradients at both ends",
}
_LAYER = re.compile(r"L(\d+)\.")


@dataclass(frozen=True, eq=False, kw_only=True)
class EdgeScoresResult(AnalysisResult):
    """Scores of edges, as `causal.graph` names them: `L0.H2→L1.H1.k`, `input→L3.mlp`, `L1.H1→logits`.

    Attributes:
        edges: every edge, by receiver in forward order, then by sender.
        scores: one per edge: the estimated share of the gap (clean − corrupted metric) that goes when the
        edge
            carries its sender's corrupted value. Positive: the edge supports the behaviour.
        method: "eap", "eap-ig" or "clean-corrupted"; `steps` are those of "eap-ig".
        metric, clean_metric, corrupted_metric: what was measured, and both baselines.
        per_example: [n_examples, n_edges] when several pairs were measured.
        ci_low, ci_high: an interval around each score.
    """

    kind: ClassVar[str] = "edge_scores"
    edges: tuple[str, ...] = field(metadata=TEXTS)
    scores: Floats = field(metadata=ARRAY)
    method: str
    steps: int | None = None
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    per_example: Floats | None = field(metadata=ARRAY, default=None)
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)

    def _check(self) -> None:
        if self.method not in _METHODS:
            raise ResultError(f"method {self.method!r}. Methods are: {', '.join(_METHODS)}.")
        n = len(self.edges)
        wrong = [edge for edge in self.edges if edge.count("→") != 1]
        if wrong:
            raise ResultError(f"the edge {wrong[0]!r} has no two ends. Write it as in 'L0.H2→L1.H1.k'.")
        for name, values in (("scores", self.scores), ("ci_low", self.ci_low), ("ci_high", self.ci_high)):
            if values is not None and values.shape != (n,):
                raise ResultError(f"{name} of shape {values.shape} for {n} edges.")
        if self.per_example is not None and self.per_example.shape[1:] != (n,):
            raise ResultError(
                f"per_example of shape {self.per_example.shape} for {n} edges; it is [n_examples, n_edges]."
            )

    @property
    def title(self) -> str:
        steps = f", {self.steps} steps" if self.steps else ""
        return f"{_METHODS[self.method]}{steps}: {len(self.edges):,} edges"

    @property
    def metric_changes(self) -> Floats:
        """The estimates in units of the metric, as the papers write them: negative where an edge supports the
        metric."""
        return -self.scores * (self.clean_metric - self.corrupted_metric)

    @property
    def whole_input(self) -> float:
        """The sum over the edges that leave the input: the estimate of corrupting all of it, truly 1."""
        return float(sum(s for edge, s in zip(self.edges, self.scores, strict=True) if edge[:6] == "input→"))

    def score(self, edge: str) -> float:
        """The score of one edge, by its name; `->` is read as an arrow too."""
        name = edge.replace("->", "→")
        if name not in self.edges:
            raise ResultError(
                f"there is no edge {edge!r}. Edges are written as in {self.edges[0]} or {self.edges[-1]}; "
                f"the strongest are: {', '.join(c.label for c in self.top_components(5))}."
            )
        return float(self.scores[self.edges.index(name)])

    def components(self) -> tuple[Component, ...]:
        return tuple(self._component(i) for i in range(len(self.edges)))

    def top_components(self, k: int = 10) -> list[Component]:
        """The k edges of largest score in magnitude, strongest first. NaN scores are left out."""
        size = np.abs(self.scores)
        order = np.argsort(-np.where(np.isnan(size), -1.0, size), kind="stable")[:k]
        return [self._component(int(i)) for i in order if np.isfinite(self.scores[i])]

    def _component(self, i: int) -> Component:
        ci = None
        if self.ci_low is not None and self.ci_high is not None:
            ci = (float(self.ci_low[i]), float(self.ci_high[i]))
        return Component(label=self.edges[i], effect=float(self.scores[i]), name="edge", ci=ci)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}.",
            f"{self.metric}: clean {number(self.clean_metric)}, corrupted {number(self.corrupted_metric)}. "
            "A score is the estimated share of this gap that goes when the edge carries the corrupted value.",
        ]
        top = self.top_components(6)
        if top:
            lines.append("Strongest: " + ", ".join(f"{c.label} {number(c.effect)}" for c in top) + ".")
        return "\n".join([*lines, *self._cautions()])

    def _cautions(self) -> tuple[str, ...]:
        found: tuple[str, ...] = (
            "Estimated to first order, no edge was patched: confirm what matters by patching. The edges from "
            f"the input add up to {number(self.whole_input)}; in a linear model, to 1.",
        )
        if self.method == "eap":
            found += (
                "Where attention is saturated (one key has nearly all of it) the gradient at queries and "
                "keys is near 0, and edges into them are missed. EAP-IG sees them.",
            )
        return found

    def shows(self) -> tuple[Show, ...]:
        top = self.top_components(20)
        reading = "Share of the gap lost when the edge carries the corrupted value; an estimate."
        bars = component_bars(top, title="Strongest edges", unit="score", reading=reading, accented=3)
        columns: tuple[str, ...] = ("sender", "receiver", "score")
        rows = tuple((*c.label.split("→"), c.effect, *(c.ci or ())) for c in top)
        if top and top[0].ci is not None:
            columns += ("from", "to")
        caption = f"The strongest {len(top)} of {len(self.edges):,} edges."
        table = Table(title="Strongest edges", columns=columns, rows=rows, caption=caption)
        return (bars, self._map(), table, *(Note(text, "caution") for text in self._cautions()))

    def _map(self) -> Show:
        """Between each two layers, the score of largest magnitude."""
        senders, receivers = zip(*(edge.split("→") for edge in self.edges), strict=True)
        rows = tuple(dict.fromkeys(_layer(name) for name in senders))
        columns = tuple(dict.fromkeys(_layer(name) for name in receivers))
        found = np.zeros((len(rows), len(columns)))
        row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (rows, columns))
        for sender, receiver, score in zip(senders, receivers, self.scores, strict=True):
            where = row_of[_layer(sender)], column_of[_layer(receiver)]
            if abs(score) > abs(found[where]):
                found[where] = score
        return heatmap(
            found,
            title="Between layers: the strongest edge",
            rows=("from", rows),
            columns=("to", columns),
            unit="score",
            reading="Rows write, columns read.",
        )


def _layer(name: str) -> str:
    found = _LAYER.match(name)
    return f"L{found[1]}" if found else name
