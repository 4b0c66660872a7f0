"""What restoring single states after noise brings back (causal tracing). `mlxterp.causal` measures it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import (
    Component,
    Floats,
    Show,
    cautions,
    effects_table,
    heatmap,
    intervals,
    listed,
)
from mlxterp.text import number


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
        ci_low, ci_high: 95 % interval, over prompts if there are several, else over noise.
    """

    kind: ClassVar[str] = "causal_tracing"
    effects: Floats
    layers: tuple[int, ...]
    columns: tuple[str, ...]
    positions: tuple[int, ...] = ()
    subject: tuple[int, ...] = ()
    component: str
    window: int
    metric: str
    clean_metric: float
    corrupted_metric: float
    noise_std: float
    n_samples: int
    n_prompts: int = 1
    ci_low: Floats | None = None
    ci_high: Floats | None = None

    def _check(self) -> None:
        shape = (len(self.layers), len(self.columns))
        of = f"{shape[0]} layers and {shape[1]} columns"
        self._require_shape(("effects", "ci_low", "ci_high"), shape, of)
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
        places = self.positions or (None,) * len(self.columns)
        columns = [
            f"at {column}" if pos is None else f"pos {pos} {column!r}"
            for pos, column in zip(places, self.columns, strict=True)
        ]
        sites = itertools.product(self.layers, zip(places, columns, strict=True))
        ends = intervals(self.ci_low, self.ci_high, self.effects.size)
        return tuple(
            Component(
                f"L{layer}.{self.component} {column}",
                effect,
                name=self.component,
                layer=layer,
                pos=pos,
                ci=ci,
            )
            for (layer, (pos, column)), effect, ci in zip(
                sites, self.effects.ravel().tolist(), ends, strict=True
            )
        )

    def summary(self) -> str:
        prompts = f", {self.n_prompts} prompts" if self.n_prompts > 1 else ""
        return self._with_limits(
            f"{self._headline()}.\n"
            f"{self.metric}: clean {number(self.clean_metric)}, with noise on the subject "
            f"{number(self.corrupted_metric)}; an effect is how much of the difference of "
            f"{number(self.total_effect)} comes back.\n"
            f"Strongest of {self.effects.size}: {listed(self.top_components(3))}. Noise of standard "
            f"deviation {number(self.noise_std)}, {self.n_samples} draws{prompts}."
        )

    def shows(self) -> tuple[Show, ...]:
        stars = dict.fromkeys(self.subject, "*")
        rows = tuple(
            f"{self.positions[i]} {column!r}{stars.get(i, '')}" if self.positions else column
            for i, column in enumerate(self.columns)
        )
        reading = f"Restored {self.metric} minus {number(self.corrupted_metric)}, the metric with noise." + (
            " * marks the subject." if self.positions else ""
        )
        low, high = self.ci_low, self.ci_high
        drawn = heatmap(
            self.effects.T,
            title=self.title,
            rows=("position" if self.positions else "role", rows),
            columns=("layer", tuple(f"L{layer}" for layer in self.layers)),
            unit=f"gain in {self.metric}",
            reading=reading,
            intervals=None if low is None or high is None else (low.T, high.T),
        )
        table = effects_table(
            self.top_components(5),
            title="Strongest states",
            columns=("state", "effect"),
            caption=f"The total effect of the noise is {number(self.total_effect)}.",
        )
        if self.window == 1:
            return drawn, table
        limit = (
            f"Each effect is that of {self.window} neighbouring layers restored together, fewer at the ends; "
            "a single layer's share is smaller."
        )
        return drawn, table, *cautions([limit])
