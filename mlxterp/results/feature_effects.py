"""What ablating single features of an SAE does, beside random features of the same size; and its estimate for
all features at once. `mlxterp.sae.analysis` measures them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.features import feature_component, feature_label
from mlxterp.results.views import (
    Component,
    Floats,
    Interval,
    Note,
    Show,
    bars,
    cautions,
    effects_table,
    intervals,
    listed,
)
from mlxterp.statistics.distributions import binomial_sf
from mlxterp.statistics.multiple import holm
from mlxterp.text import number

LEVEL = 0.05
"""A feature is said to do more than random ones if so few of them would do as much by chance."""

_MOST_BARS = 20
_DONE = {
    "zero": "taken out of the activation",
    "corrupted": "set to its activation on the corrupted prompt",
}


@dataclass(frozen=True, kw_only=True)
class AgainstChance:
    """How many of several features do more than random ones of their size, and how many would by chance.

    Attributes:
        tested: how many features.
        passed: those with p ≤ 0.05 each by itself; of 8 tested, one passes by chance in 32 % of studies.
        holm: those that pass corrected for all of them (Holm 1979): a false one among them has a probability
            of 5 % at most. Needs `controls_for_holm` random features for each.
        by_chance: the probability at which a feature that does nothing in particular passes.
        p_value: the chance that as many pass or more, if none does anything in particular: binomial, with
            controls drawn for each feature by itself. A study that asks whether the model uses these features
            at all rests on this number, not on `passed` being more than none.
    """

    tested: int
    passed: tuple[int, ...]
    holm: tuple[int, ...]
    by_chance: float
    p_value: float
    controls_for_holm: int

    @property
    def more_than_chance(self) -> bool:
        """Whether more features pass than chance explains (p ≤ 0.05)."""
        return self.p_value <= LEVEL

    def sentence(self) -> str:
        """The outcome as a text."""
        expected = number(self.tested * self.by_chance)
        text = (
            f"{len(self.passed)} of {self.tested} features tested pass; {expected} would by chance, and as "
            f"many or more with a probability of {number(self.p_value)}"
        )
        if self.holm:
            return f"{text}. Corrected for their number: {', '.join(map(feature_label, self.holm))}."
        return (
            f"{text}. None passes corrected for their number, for which each needs {self.controls_for_holm} "
            "random features or more."
        )


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
    features: tuple[int, ...]
    effects: Floats
    fired: tuple[int, ...]
    maxima: Floats
    controls: Floats
    percentiles: Floats
    ablation: str
    metric: str
    clean_metric: float
    hook_point: str
    tolerance: float = 0.0
    inactive_controls: bool = False
    per_example: Floats | None = None
    ci_low: Floats | None = None
    ci_high: Floats | None = None

    def _check(self) -> None:
        n = len(self.features)
        self._require_one_of("ablation", _DONE)
        per_feature = ("effects", "maxima", "percentiles", "ci_low", "ci_high")
        self._require_shape(per_feature, (n,), f"{n} features")
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

    def against_chance(self) -> AgainstChance:
        """What of `beyond_controls` is left once it counts how many features were tested.

        Tested are those that the ablation changes somewhere and that have controls.

        Raises:
            ResultError: no feature was tested.
        """
        p_values, fired = self.p_values, np.array(self.fired, dtype=bool)
        tested = np.flatnonzero(np.isfinite(p_values) & fired)
        if not len(tested):
            raise ResultError(
                f"none of {len(self.features)} features was tested: a test needs controls=, and a text on "
                "which the ablation changes the feature. Ablate features that fire there."
            )
        beyond = self.beyond_controls()
        adjusted = dict(zip(tested.tolist(), holm(p_values[tested]).tolist(), strict=True))
        n = np.isfinite(self.controls[tested]).sum(axis=1)
        by_chance = float((np.floor(LEVEL * (1 + n) + 1e-9) / (1 + n)).max())
        passed = tuple(f for f in beyond if self.features.index(f) in adjusted)
        return AgainstChance(
            tested=len(tested),
            passed=passed,
            holm=tuple(f for f in passed if adjusted[self.features.index(f)] <= LEVEL),
            by_chance=by_chance,
            p_value=binomial_sf(len(passed), len(tested), by_chance),
            controls_for_holm=math.ceil(len(tested) / LEVEL) - 1,
        )

    def effect(self, feature: int) -> float:
        """The effect of one feature, by its index."""
        if feature not in self.features:
            there = ", ".join(map(feature_label, self.features))
            raise ResultError(f"feature {feature} was not ablated. These were: {there}. Name one of them.")
        return float(self.effects[self.features.index(feature)])

    def components(self) -> tuple[Component, ...]:
        return _feature_components(self.features, self.effects, self.hook_point, (self.ci_low, self.ci_high))

    def summary(self) -> str:
        lines = [
            f"{self._headline()}. Each feature was {_DONE[self.ablation]}, the error "
            f"kept; {self.metric} without ablation: {number(self.clean_metric)}."
        ]
        if self.all_zero:
            return self._with_limits(*lines, self._nothing())
        top = [c for c in self.top_components(6) if c.effect != 0.0]
        lines.append(f"Largest effects: {listed(top)}.")
        return self._with_limits(*lines, *self._against_controls())

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
        if beyond and len(self.features) > 1:
            texts.append(self.against_chance().sentence())
        return tuple(texts)

    def shows(self) -> tuple[Show, ...]:
        components, p_values, beyond = self.components(), self.p_values, set(self.beyond_controls())
        order = sorted(range(len(components)), key=lambda i: -abs(components[i].effect))
        ranked = [components[i] for i in order]
        band = self.band
        drawn = bars(
            ranked[:_MOST_BARS],
            title="Effect of ablating a feature",
            unit=f"change of {self.metric}",
            reading="The lines are the central 95 % of random features of the same size.",
            accented=[place for place, i in enumerate(order[:_MOST_BARS]) if self.features[i] in beyond],
            grey="features that are not told from random ones",
            references=() if band is None else ((band[0], "random, 2.5 %"), (band[1], "random, 97.5 %")),
        )
        table = effects_table(
            ranked,
            title="Effects",
            columns=("feature", "effect"),
            caption="The percentile is among random features put in the feature's place at the same size.",
            more={
                "percentile": self.percentiles[order].tolist(),
                "p": p_values[order].tolist(),
                "largest activation": self.maxima[order].tolist(),
                "positions": [self.fired[i] for i in order],
            },
        )
        limits = [self._nothing()] if self.features and self.all_zero else []
        notes: tuple[Note, ...] = ()
        if band is None:
            limits.append("No random features were measured for comparison.")
        elif self.inactive_controls:
            notes = (
                Note(
                    "Too few features fire on these texts, so random features that do not fire here are "
                    "among the controls."
                ),
            )
        return drawn, table, *cautions(limits), *notes


def _feature_components(
    features: tuple[int, ...], effects: Floats, hook_point: str, ends: tuple[Floats | None, Floats | None]
) -> tuple[Component, ...]:
    """Features with their effects and intervals."""
    each: list[Interval | None] = intervals(*ends, len(features))
    return tuple(
        feature_component(feature, effect, hook_point, ci)
        for feature, effect, ci in zip(features, effects.tolist(), each, strict=True)
    )


_ESTIMATE = "Estimated by gradients, nothing was ablated: confirm what matters with `feature_effects`."
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
    features: tuple[int, ...]
    scores: Floats
    error_score: float
    method: str
    steps: int | None = None
    ablation: str
    metric: str
    clean_metric: float
    ablated_metric: float
    hook_point: str
    per_example: Floats | None = None
    ci_low: Floats | None = None
    ci_high: Floats | None = None

    def _check(self) -> None:
        self._require_one_of("method", ("gradient", "ig"))
        n = len(self.features)
        self._require_shape(("scores", "ci_low", "ci_high"), (n,), f"{n} features")

    @property
    def title(self) -> str:
        how = f"integrated gradients, {self.steps} steps" if self.method == "ig" else "gradient × activation"
        return f"Attribution of {self.metric} to {len(self.features)} features at {self.hook_point} ({how})"

    @property
    def added_up(self) -> float:
        """All scores and the error's together."""
        return math.fsum([*self.scores.tolist(), self.error_score])

    def components(self) -> tuple[Component, ...]:
        return _feature_components(self.features, self.scores, self.hook_point, (self.ci_low, self.ci_high))

    def summary(self) -> str:
        lines = [f"{self._headline()}."]
        top = self.top_components(6)
        if top:
            lines.append(f"Strongest of {len(self.features):,}: {listed(top)}.")
        return self._with_limits(*lines, self._sum(), *self._limits())

    def _limits(self) -> tuple[str, ...]:
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
        top, title = self.top_components(_MOST_BARS), "Strongest features"
        drawn = bars(top, title=title, unit=f"estimated change of {self.metric}", reading=_ESTIMATE)
        table = effects_table(
            top,
            title=title,
            columns=("feature", "score"),
            caption=f"The strongest {len(top)} of {len(self.features):,}.",
        )
        return drawn, table, Note(self._sum()), *cautions(self._limits())
