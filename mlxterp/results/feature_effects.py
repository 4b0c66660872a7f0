"""`FeatureEffectsResult`: what ablating single features of an SAE does, beside random features of the same
size. `mlxterp.sae.analysis.effects` measures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.feature_activity import INTS, feature_component, feature_label
from mlxterp.results.shows import Bars, Component, Floats, Note, Show, Table, component_bars, number
from mlxterp.results.values import ARRAY, NUMBER

LEVEL = 0.05
"""A feature is said to do more than random ones if so few of them would do as much by chance."""

_MOST_BARS = 20
_DONE = {
    "zero": "taken out of the activation",
    "corrupted": "set to its activation on the corrupted prompt",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureEffectsResult(AnalysisResult):
    """The metric with one feature ablated at a time, the reconstruction's error kept.

    Attributes:
        features: in the order in which they were asked for, or strongest first.
        effects: metric with the feature ablated minus metric without, mean over examples. A distance such as
            "kl" is never negative; of a behaviour, a negative effect means that the feature supports it. A
            feature that is not changed anywhere has exactly 0.
        fired: at how many counted positions the ablation changes each feature.
        maxima: each feature's largest activation at those positions.
        controls: [n_features, n_controls], the effects of as many random features in its place: the same
            positions, the same amount, another decoder direction. NaN where there were fewer.
        percentiles: the share of its controls whose effect is smaller in magnitude; NaN without controls.
        ablation: "zero", or "corrupted" (each feature as on the corrupted prompt).
        metric, clean_metric: what was measured, and its mean without ablation.
        per_example: [n_examples, n_features] when several examples were measured.
        ci_low, ci_high: 95 % interval of each effect over examples.
        tolerance: two values of the metric that are closer than this are the same value.
        inactive_controls: whether random features that do not fire here had to be used too.
    """

    kind: ClassVar[str] = "feature_effects"
    features: tuple[int, ...] = field(metadata=INTS)
    effects: Floats = field(metadata=ARRAY)
    fired: tuple[int, ...] = field(metadata=INTS)
    maxima: Floats = field(metadata=ARRAY)
    controls: Floats = field(metadata=ARRAY)
    percentiles: Floats = field(metadata=ARRAY)
    ablation: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    hook_point: str
    tolerance: float = field(metadata=NUMBER, default=0.0)
    inactive_controls: bool = False
    per_example: Floats | None = field(metadata=ARRAY, default=None)
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)

    def _check(self) -> None:
        n = len(self.features)
        if self.ablation not in _DONE:
            raise ResultError(f"ablation {self.ablation!r}. Ablations are: {', '.join(_DONE)}.")
        for name in ("effects", "maxima", "percentiles", "ci_low", "ci_high"):
            values = getattr(self, name)
            if values is not None and values.shape != (n,):
                raise ResultError(f"{name} of shape {values.shape} for {n} features.")
        if n and self.controls.shape[:1] != (n,):
            raise ResultError(f"controls of shape {self.controls.shape} for {n} features.")

    @property
    def title(self) -> str:
        return f"Effects of {len(self.features)} features at {self.hook_point} on {self.metric}"

    @property
    def band(self) -> tuple[float, float] | None:
        """The central 95 % of the controls' effects, all features together; None without controls."""
        found = self.controls[np.isfinite(self.controls)]
        if not found.size:
            return None
        low, high = np.percentile(found, [2.5, 97.5])
        return float(low), float(high)

    @property
    def all_zero(self) -> bool:
        """Whether no feature has any effect on this metric, within its tolerance."""
        return bool(np.all(np.abs(self.effects) <= self.tolerance))

    @property
    def p_values(self) -> Floats:
        """The chance that a random feature has an effect as large: (1 + those that have) / (1 + controls).

        NaN without controls. 19 are needed for a value of 0.05.
        """
        known = np.isfinite(self.controls)
        n = known.sum(axis=1)
        larger = (np.abs(np.where(known, self.controls, 0.0)) >= np.abs(self.effects)[:, None]) & known
        return np.where(n > 0, (1.0 + larger.sum(axis=1)) / (1.0 + n), np.nan)

    def beyond_controls(self) -> tuple[int, ...]:
        """The features that do more than random ones of their size (p ≤ 0.05), strongest first."""
        size = np.abs(self.effects)
        passed = (self.p_values <= LEVEL) & (size > self.tolerance)
        return tuple(self.features[i] for i in np.argsort(-size, kind="stable") if passed[i])

    def effect(self, feature: int) -> float:
        """The effect of one feature, by its index."""
        if feature not in self.features:
            there = ", ".join(map(feature_label, self.features))
            raise ResultError(f"feature {feature} was not ablated. These were: {there}. Name one of them.")
        return float(self.effects[self.features.index(feature)])

    def components(self) -> tuple[Component, ...]:
        return tuple(
            feature_component(f, float(self.effects[i]), self.hook_point, self._ci(i))
            for i, f in enumerate(self.features)
        )

    def _ci(self, i: int) -> tuple[float, float] | None:
        if self.ci_low is None or self.ci_high is None:
            return None
        return float(self.ci_low[i]), float(self.ci_high[i])

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}. Each feature was {_DONE[self.ablation]}, the error "
            f"kept; {self.metric} without ablation: {number(self.clean_metric)}."
        ]
        if self.all_zero:
            return "\n".join([*lines, self._nothing()])
        top = [c for c in self.top_components(6) if c.effect != 0.0]
        lines.append("Largest effects: " + ", ".join(f"{c.label} {number(c.effect)}" for c in top) + ".")
        return "\n".join([*lines, *self._against_controls()])

    def _nothing(self) -> str:
        if not any(self.fired):
            return "Every effect is exactly 0: none of them is changed at a counted position."
        largest = number(float(np.abs(self.effects).max()))
        return (
            f"No feature has an effect: {self.metric} changes by {largest} at most, within its tolerance of "
            f"{number(self.tolerance)}. Another metric may see what they do."
        )

    def _against_controls(self) -> tuple[str, ...]:
        band, beyond = self.band, self.beyond_controls()
        if band is None:
            return ("No random features were measured for comparison.",)
        passed = ", ".join(f"f{f}" for f in beyond)
        texts = [
            f"Random features of the same size: {number(band[0])} to {number(band[1])} (central 95 %). "
            + (
                f"Beyond its own (p ≤ {LEVEL:g}): {passed}."
                if beyond
                else "No feature does more than they do."
            )
        ]
        fewest = int(np.isfinite(self.controls).sum(axis=1).min())
        if (1 + fewest) * LEVEL < 1:
            texts.append(f"Some have only {fewest} random features: too few for p ≤ {LEVEL:g}.")
        tested = int(np.isfinite(self.p_values).sum())
        if beyond and tested >= 10:
            texts.append(f"Of {tested} features about {number(tested * LEVEL)} would pass by chance.")
        return tuple(texts)

    def shows(self) -> tuple[Show, ...]:
        order = sorted(range(len(self.features)), key=lambda i: -abs(float(self.effects[i])))
        shown, p_values = order[:_MOST_BARS], self.p_values
        rows = tuple(
            (
                feature_label(self.features[i]),
                float(self.effects[i]),
                *((float(self.ci_low[i]), float(self.ci_high[i])) if self._ci(i) else ()),  # type: ignore[index]
                float(self.percentiles[i]),
                float(p_values[i]),
                float(self.maxima[i]),
                self.fired[i],
            )
            for i in order
        )
        interval = ("from", "to") if self.ci_low is not None else ()
        columns = ("feature", "effect", *interval, "percentile", "p", "largest activation", "positions")
        caption = "The percentile is among random features put in the feature's place at the same size."
        drawn: list[Show] = [
            self._bars(shown),
            Table(title="Effects", columns=columns, rows=rows, caption=caption),
        ]
        if self.features and self.all_zero:
            drawn.append(Note(self._nothing(), "caution"))
        if self.band is None:
            drawn.append(Note("No random features were measured for comparison.", "caution"))
        elif self.inactive_controls:
            drawn.append(
                Note(
                    "Too few features fire on these texts, so random features that do not fire here are "
                    "among the controls."
                )
            )
        return tuple(drawn)

    def _bars(self, shown: list[int]) -> Bars:
        bars = component_bars(
            [self.components()[i] for i in shown],
            title="Effect of ablating a feature",
            unit=f"change of {self.metric}",
            reading="The lines are the central 95 % of random features of the same size.",
            accented=0,
        )
        beyond = set(self.beyond_controls())
        accented = tuple(place for place, i in enumerate(shown) if self.features[i] in beyond)
        band = self.band
        lines = () if band is None else ((band[0], "random, 2.5 %"), (band[1], "random, 97.5 %"))
        return Bars(**vars(bars) | {"accented": accented, "references": lines})
