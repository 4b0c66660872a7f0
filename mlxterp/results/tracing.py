"""`CausalTracingResult`: which single states bring a fact back after noise. `mlxterp.causal` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Note, Show, Table, heatmap, number
from mlxterp.results.values import ARRAY, NUMBER, TEXTS, converted


def _numbers(value: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(item) for item in value)


@dataclass(frozen=True, eq=False, kw_only=True)
class CausalTracingResult(AnalysisResult):
    """Indirect effects of restoring one state of the clean run into runs with a noisy subject.

    Attributes:
        effects: [n_layers, n_columns], the metric with the state restored minus the metric without: the
            indirect effect of Meng et al., in units of the metric. 0 = nothing came back.
        layers: the layer of each row; with a window, its middle one.
        columns: what a reader sees of each column: a token, or a role such as "last subject token".
        positions: the position of each column; empty when columns are roles averaged over prompts.
        subject: which columns belong to the subject.
        component: the hook point that was restored, over `window` layers at a time.
        metric, clean_metric, corrupted_metric: what was measured; the corrupted one is a mean over noise.
        noise_std: standard deviation of the noise on the subject's embeddings.
        n_samples, n_prompts: how many draws of noise per prompt, how many prompts.
        ci_low, ci_high: 95 % bootstrap interval, over prompts if there are several, else over noise.
    """

    kind: ClassVar[str] = "causal_tracing"
    effects: Floats = field(metadata=ARRAY)
    layers: tuple[int, ...] = field(metadata=converted(_numbers))
    columns: tuple[str, ...] = field(metadata=TEXTS)
    positions: tuple[int, ...] = field(metadata=converted(_numbers), default=())
    subject: tuple[int, ...] = field(metadata=converted(_numbers), default=())
    component: str
    window: int
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    noise_std: float = field(metadata=NUMBER)
    n_samples: int
    n_prompts: int = 1
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)

    def _check(self) -> None:
        shape = (len(self.layers), len(self.columns))
        if self.effects.shape != shape:
            raise ResultError(
                f"effects of shape {self.effects.shape} for {shape[0]} layers and {shape[1]} columns."
            )
        for name, bound in (("ci_low", self.ci_low), ("ci_high", self.ci_high)):
            if bound is not None and bound.shape != shape:
                raise ResultError(f"{name} of shape {bound.shape} for effects of shape {shape}.")
        if len(self.positions) not in (0, shape[1]) or not set(self.subject) <= set(range(shape[1])):
            raise ResultError(
                f"positions {self.positions} and subject {self.subject} for {shape[1]} columns: give one "
                "position per column or none, and of the subject indices of columns."
            )

    @property
    def total_effect(self) -> float:
        """What the noise took away: clean minus corrupted."""
        return self.clean_metric - self.corrupted_metric

    @property
    def title(self) -> str:
        span = f", {self.window} layers at a time" if self.window > 1 else ""
        return f"Causal tracing: {self.component} restored{span}"

    def components(self) -> tuple[Component, ...]:
        return tuple(
            Component(
                f"L{layer}.{self.component} {self._column(column)}",
                float(self.effects[row, column]),
                name=self.component,
                layer=layer,
                pos=self.positions[column] if self.positions else None,
                ci=None
                if self.ci_low is None or self.ci_high is None
                else (float(self.ci_low[row, column]), float(self.ci_high[row, column])),
            )
            for row, layer in enumerate(self.layers)
            for column in range(len(self.columns))
        )

    def _column(self, column: int) -> str:
        said = self.columns[column]
        return f"pos {self.positions[column]} {said!r}" if self.positions else f"at {said}"

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        best = self.top_components(3)
        return (
            f"{self.title}{f' ({on})' if on else ''}.\n"
            f"{self.metric}: clean {number(self.clean_metric)}, with noise on the subject "
            f"{number(self.corrupted_metric)}; an effect is how much of the difference of "
            f"{number(self.total_effect)} comes back.\n"
            "Strongest: "
            + ", ".join(f"{c.label} {number(c.effect)}" for c in best)
            + f". Noise of standard deviation {number(self.noise_std)}, {self.n_samples} draws"
            + (f", {self.n_prompts} prompts." if self.n_prompts > 1 else ".")
        )

    def shows(self) -> tuple[Show, ...]:
        stars = dict.fromkeys(self.subject, "*")
        rows = tuple(
            f"{self.positions[i]} {said!r}{stars.get(i, '')}" if self.positions else said
            for i, said in enumerate(self.columns)
        )
        reading = f"Restored {self.metric} minus {number(self.corrupted_metric)}, the metric with noise." + (
            " * marks the subject." if self.positions else ""
        )
        low, high = self.ci_low, self.ci_high
        bounds = None if low is None or high is None else (low.T, high.T)
        top = self.top_components(5)
        shown: list[Show] = [
            heatmap(
                self.effects.T,
                title=self.title,
                rows=("position" if self.positions else "role", rows),
                columns=("layer", tuple(f"L{layer}" for layer in self.layers)),
                unit=f"gain in {self.metric}",
                reading=reading,
                intervals=bounds,
            ),
            Table(
                title="Strongest states",
                columns=("state", "effect", "from", "to"),
                rows=tuple((c.label, c.effect, *(c.ci or (None, None))) for c in top),
                caption=f"The total effect of the noise is {number(self.total_effect)}.",
            ),
        ]
        if self.window > 1:
            shown.append(
                Note(
                    f"Each effect is that of {self.window} neighbouring layers restored together, fewer at "
                    "the ends; a single layer's share is smaller.",
                    "caution",
                )
            )
        return tuple(shown)
