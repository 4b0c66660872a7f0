"""What `feature_investigation` says: sentences made from results, naming only what passed its controls.

Lives here: the words. Does not live here: when they are said (`features.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlxterp.causal.prompts.encoding import prompt_text, str_tokens
from mlxterp.core.model import InterpretableModel
from mlxterp.results import (
    ActiveFeaturesResult,
    FeatureEffectsResult,
    FeatureExamplesResult,
    FeatureLabelsResult,
    Step,
)
from mlxterp.results.feature_effects import LEVEL
from mlxterp.sae.analysis.runs import Runs
from mlxterp.sae.sae import SAE
from mlxterp.text import number, percent

SAID = 5
"""Features that a sentence names."""

_MEANINGS = {
    "kl": "the KL divergence of the next-token distribution from the unchanged run's, in nats",
    "log_prob": "the log-probability of the answer, in nats",
    "logit_diff": "the logit of the answer minus that of the foil",
}


def question(model: InterpretableModel, sae: SAE, runs: Runs) -> str:
    """What is asked, of which model and SAE, on what, and how it is measured."""
    n = len(runs.texts.examples)
    text = prompt_text(model, runs.texts.examples[0].clean)
    said = str_tokens(model, [int(runs.said[0])])[0]
    prob = number(float(runs.said_probs[0]), 2)
    on = f"{text!r}, which {model.name} continues with {said!r} (probability {prob})"
    on = on if n == 1 else f"{n} texts; in the first, {on}"
    return (
        f"Which features of the SAE at {sae.hook_point} fire, and which of them matter to what comes next? "
        f"On {on}. Measured by {runs.metric.name}: {_MEANINGS.get(runs.metric.name, runs.metric.direction)}."
    )


def fires(result: ActiveFeaturesResult) -> str:
    """What fires, where, and how much of the activation that is."""
    counting = result.measured_on.get("positions")
    where = f"at the {result.n_counted} positions that count ({counting})"
    if not result.features:
        return f"No feature fires {where}."
    strongest = ", ".join(
        f"f{f} ({number(a)} at {token!r})"
        for f, a, token in zip(result.features[:SAID], result.maxima.tolist(), result.at_token, strict=False)
    )
    fit = "" if result.fvu is None else f" The features leave out {percent(result.fvu)} of the variance here."
    return (
        f"{result.n_active:,} of {result.d_sae:,} features fire {where}, {number(result.l0)} at a position. "
        f"Those that write most: {strongest}.{fit}"
    )


def limits_of_fit(result: ActiveFeaturesResult) -> tuple[str, ...]:
    """A caution where the SAE leaves much out, and where it sees what it was not trained on."""
    found = []
    if result.fvu is not None and result.fvu > 0.5:
        found.append(
            f"The reconstruction leaves out {percent(result.fvu)} of the variance on this text, so the "
            "features say little of what the model does here."
        )
    if sinks := result.measured_on.get("norm_outliers"):
        found.append(
            f"At {sinks} of the counted positions the activation is more than ten times as long as the "
            "median: attention sinks, which SAEs are trained without. What fires there is no evidence; "
            "positions= leaves them out."
        )
    return tuple(found)


def matters(result: FeatureEffectsResult) -> str:
    """Which features do more than random ones of their size; no other is named as important."""
    n, metric = len(result.features), result.metric
    if not n:
        return "No feature fires at a counted position, so there was nothing to ablate."
    if result.all_zero:
        return result.summary().splitlines()[1]
    how = "ablated one at a time with the error kept"
    band, beyond = result.band, result.beyond_controls()
    if band is None:
        return f"{n} features were {how}, and not compared with random ones, so none is called important."
    reach = f"central 95 % of all: {number(band[0])} to {number(band[1])}"
    if not beyond:
        return (
            f"None of {n} features, {how}, changes {metric} more than random features of its size do "
            f"({reach})."
        )
    named = ", ".join(f"f{f} ({number(result.effect(f))})" for f in beyond[:SAID])
    more = f" and {len(beyond) - SAID} more" if len(beyond) > SAID else ""
    verb = "changes" if len(beyond) == 1 else "change"
    return (
        f"{len(beyond)} of {n} features, {how}, {verb} {metric} more than random features of its size do "
        f"(p ≤ {LEVEL:g}; {reach}): {named}{more}."
    )


def limits(result: FeatureEffectsResult) -> tuple[str, ...]:
    """What limits the ablations: few controls, many tests, one text, intervals that hold 0."""
    found: list[str] = []
    tested = int(np.isfinite(result.p_values).sum())
    counts = np.isfinite(result.controls).sum(axis=1)
    if tested and (1 + counts.min()) * LEVEL < 1:
        found.append(
            f"Some features were compared with only {int(counts.min())} random ones: too few to say that one "
            f"does more (p ≤ {LEVEL:g} takes 19)."
        )
    if result.inactive_controls:
        found.append("Random features that do not fire here are among the controls: too few others do.")
    beyond = result.beyond_controls()
    if beyond and tested >= 10:
        found.append(f"Of {tested} features about {number(LEVEL * tested)} would pass by chance.")
    for f in beyond[:SAID]:
        i = result.features.index(f)
        if result.ci_low is not None and result.ci_high is not None:
            low, high = float(result.ci_low[i]), float(result.ci_high[i])
            if low <= 0 <= high:
                found.append(f"The interval of f{f}, {number(low)} to {number(high)}, holds 0.")
    if result.per_example is None and result.features:
        found.append(
            "One text was looked at: there is no interval, and nothing shows that this holds on others."
        )
    return tuple(found)


def found(result: FeatureExamplesResult) -> str:
    """What each feature fires on in the corpus."""
    size = f"{result.n_tokens:,} tokens of {result.n_documents:,} texts"
    parts = [_fires_on(result, f) for f in result.features[:SAID]]
    more = f" (the first {SAID} of {len(result.features)} features)" if len(result.features) > SAID else ""
    return f"In {size}: {'; '.join(parts)}{more}." if parts else f"In {size} no feature was looked for."


def _fires_on(result: FeatureExamplesResult, feature: int) -> str:
    own = result.of(feature)
    if not own:
        return f"f{feature} does not fire"
    density = 100 * float(result.densities[result.features.index(feature)])
    tokens = dict.fromkeys(each.tokens[each.peak] for each in own)
    shown = ", ".join(repr(token) for token in list(tokens)[:3])
    return f"f{feature} fires at {number(density, 2)} % of the tokens, most strongly at {shown}"


def labelled(result: FeatureLabelsResult) -> str:
    """Which features have a label, and how sure it is."""
    named = [f"f{label['feature_id']} {_label(label)}" for label in result.named[:SAID]]
    if not named:
        return f"None of {len(result.labels)} features has a label that holds on held-out text."
    return f"{len(result.named)} of {len(result.labels)} features have a label: {'; '.join(named)}."


def _label(label: Mapping[str, Any]) -> str:
    return f"{label['label']!r} (confidence {percent(label['confidence'])})"


def conclusion(steps: Sequence[Step]) -> str:
    """What all steps say together: the features that passed their controls, and what they fire on."""
    effects = next((s.result for s in steps if isinstance(s.result, FeatureEffectsResult)), None)
    if effects is None:
        return ""
    beyond = effects.beyond_controls()
    if not beyond:
        return f"No feature is shown to matter to {effects.metric} here."
    named = [f"f{f} ({number(effects.effect(f))})" for f in beyond[:SAID]]
    parts = [f"Beyond random features of their size, by change of {effects.metric}: {', '.join(named)}."]
    for result in (step.result for step in steps):
        if isinstance(result, FeatureExamplesResult):
            parts.append(f"{'; '.join(_fires_on(result, f) for f in beyond[:SAID])}.")
        if isinstance(result, FeatureLabelsResult):
            known = {label["feature_id"]: label for label in result.named}
            parts += [f"f{f} is labelled {_label(known[f])}." for f in beyond[:SAID] if f in known]
    return " ".join(parts)
