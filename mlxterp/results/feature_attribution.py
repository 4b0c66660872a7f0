"""`FeatureAttributionResult`: what ablating each feature of an SAE would do, estimated for all at once.
`mlxterp.sae.analysis.attribution` measures it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.feature_activity import INTS, feature_component
from mlxterp.results.shows import Component, Floats, Note, Show, Table, component_bars, number
from mlxterp.results.values import ARRAY, NUMBER

_MOST_BARS = 20
_FAR = 0.2  # of the measured change: integrated gradients that miss it by more took too few steps


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureAttributionResult(AnalysisResult):
    """What ablating each feature would do, estimated by gradients.

    Attributes:
        features: every feature that the ablation would change at a counted position.
        scores: the estimated change of the metric, mean over examples, in the sign of `FeatureEffectsResult`.
        error_score: the same for the reconstruction's error, all of it.
        method: "gradient", or "ig" (integrated gradients, with `steps`).
        ablation, metric, clean_metric, per_example, ci_low, ci_high: as in `FeatureEffectsResult`.
        ablated_metric: measured with every feature and the error ablated together. Integrated gradients add
            up to this minus `clean_metric`, if there are enough steps; plain gradients need not.
    """

    kind: ClassVar[str] = "feature_attribution"
    features: tuple[int, ...] = field(metadata=INTS)
    scores: Floats = field(metadata=ARRAY)
    error_score: float = field(metadata=NUMBER)
    method: str
    steps: int | None = None
    ablation: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    ablated_metric: float = field(metadata=NUMBER)
    hook_point: str
    per_example: Floats | None = field(metadata=ARRAY, default=None)
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)

    def _check(self) -> None:
        if self.method not in ("gradient", "ig"):
            raise ResultError(f"method {self.method!r}. Methods are: gradient, ig.")
        for name in ("scores", "ci_low", "ci_high"):
            values = getattr(self, name)
            if values is not None and values.shape != (len(self.features),):
                raise ResultError(f"{name} of shape {values.shape} for {len(self.features)} features.")

    @property
    def title(self) -> str:
        how = f"integrated gradients, {self.steps} steps" if self.method == "ig" else "gradient × activation"
        return f"Attribution of {self.metric} to {len(self.features)} features at {self.hook_point} ({how})"

    @property
    def added_up(self) -> float:
        """All scores and the error's together."""
        return math.fsum([*self.scores.tolist(), self.error_score])

    def components(self) -> tuple[Component, ...]:
        low, high = self.ci_low, self.ci_high
        return tuple(
            feature_component(
                f,
                float(self.scores[i]),
                self.hook_point,
                None if low is None or high is None else (float(low[i]), float(high[i])),
            )
            for i, f in enumerate(self.features)
        )

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [f"{self.title}{f' ({on})' if on else ''}."]
        top = self.top_components(6)
        if top:
            lines.append("Strongest: " + ", ".join(f"{c.label} {number(c.effect)}" for c in top) + ".")
        return "\n".join([*lines, self._sum(), *self._cautions()])

    def _cautions(self) -> tuple[str, ...]:
        change = self.ablated_metric - self.clean_metric
        if self.method == "ig" and abs(self.added_up - change) > _FAR * abs(change):
            return _ESTIMATE, "The scores should add up to the measured change: take more steps."
        return (_ESTIMATE,)

    def _sum(self) -> str:
        return (
            f"All scores and the error's ({number(self.error_score)}) add up to {number(self.added_up)}; "
            f"ablating everything takes {self.metric} from {number(self.clean_metric)} to "
            f"{number(self.ablated_metric)}, a change of {number(self.ablated_metric - self.clean_metric)}."
        )

    def shows(self) -> tuple[Show, ...]:
        top = self.top_components(_MOST_BARS)
        bars = component_bars(
            top, title="Strongest features", unit=f"estimated change of {self.metric}", reading=_ESTIMATE
        )
        rows = tuple((c.label, c.effect, *(c.ci or ())) for c in top)
        columns = ("feature", "score", *(("from", "to") if self.ci_low is not None else ()))
        caption = f"The strongest {len(top)} of {len(self.features):,}."
        table = Table(title="Strongest features", columns=columns, rows=rows, caption=caption)
        return bars, table, Note(self._sum()), *(Note(text, "caution") for text in self._cautions())


_ESTIMATE = "Estimated by gradients, nothing was ablated: confirm what matters with `feature_effects`."
