"""The study of a sparse autoencoder's features: which have a label that holds, and which the model uses.

It explores on texts and on `setup.pairs`, then declares that features are used in the behaviour of the pairs.
See `features_claims.py` for what is declared, `templates/experiments/features/` for hypotheses, thresholds
and code of the experiments; a threshold that a sentence of the conclusion states is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mlxterp.autointerpret.hypothesis import SESOI_GRID
from mlxterp.text import percent
from mlxterp_agent.researchers.scripted.claims import (
    EXCEEDED,
    Claim,
    claim_sentence,
    verdict_sentences,
)
from mlxterp_agent.researchers.scripted.features_claims import (
    MOST_NULLS,
    MOST_USED,
    null_claims,
    set_claims,
    sufficient_claims,
    used_claims,
    used_features,
)
from mlxterp_agent.researchers.scripted.study import (
    Answer,
    Progress,
    Skip,
    Step,
    Study,
    Values,
    listed,
    sentences,
)

EXPLAINED = 0.5
"""Share of the variance about the mean that a dictionary explains on texts of a kind that it was not trained
on, to be worth labels."""
ACCURACY = 0.75
"""The least balanced accuracy on held-out documents of a label that describes its feature."""
CHANCE = 0.05
"""The largest p-value, against random directions of the same size, of an ablation that stands out."""
EVALUATED, FEWER_EVALUATED = 24, 8
"""On how many documents of each kind the share of the variance is measured; fewer on a second attempt."""
CANDIDATES, FEWER_CANDIDATES = 48, 12
"""How many features are examined; fewer on a second attempt."""
TESTED, FEWER_TESTED = 12, 4
"""How many labels are tested on fresh texts, exchanged, or steered with."""
ABLATED, FEWER_ABLATED = 8, 3
"""How many features are ablated on texts."""
EXACTLY, FEWER_EXACTLY = 10, 4
"""How many features are ablated on the pairs, the strongest by gradients."""


# Readings of the log.


def _kept_labels(progress: Progress) -> dict[int, Mapping[str, Any]]:
    """The labels that hold on held-out documents, by feature, the most confident first."""
    kept = progress.numbers("labels").get("kept", {})
    ordered = sorted(kept.items(), key=lambda each: (-float(each[1]["confidence"]), int(each[0])))
    return {int(feature): kept_label for feature, kept_label in ordered}


def _features_where(progress: Progress, step: str, key: str, field: str) -> list[int]:
    """The features for which a step reports True in a field."""
    reported = progress.numbers(step).get(key, {})
    return [int(feature) for feature, each in reported.items() if each[field] is True]


def _passed_labels(progress: Progress) -> list[int]:
    """The features whose labels passed the sensitivity test."""
    return _features_where(progress, "sensitivity", "tested", "passed")


def _supported(progress: Progress) -> list[int]:
    """The features of which the judge supported that the model uses them, each by itself."""
    steps = [step for step in USED if progress.verdict(step) == "supported"]
    return [int(progress.numbers(step)["features"][0]) for step in steps]


def _claims(progress: Progress) -> list[str]:
    """The steps that declared something, in their order."""
    return [step for step in CLAIMS if step in progress.measured]


def _standing_out(progress: Progress) -> list[int]:
    """The features whose ablation changes the output more than that of random features."""
    return _features_where(progress, "effects", "measured", "stands_out")


# The template values of each step.


def _survey(_: Progress, attempt: int) -> Values:
    return {
        "explained": EXPLAINED,
        "candidates": CANDIDATES if attempt == 1 else FEWER_CANDIDATES,
        "documents": EVALUATED if attempt == 1 else FEWER_EVALUATED,
    }


def _behaviour(_: Progress, attempt: int) -> Values:
    return {
        "exactly": EXACTLY if attempt == 1 else FEWER_EXACTLY,
        "at_least": EXCEEDED * SESOI_GRID[0],
        "most": MOST_USED,
    }


def _labels(progress: Progress, attempt: int) -> Values | Skip:
    """The features that the behaviour uses, then the candidates."""
    candidates = [*used_features(progress), *progress.numbers("survey")["candidates"]]
    if not candidates:
        return Skip("no feature fires often enough, and none too often", lasting=True)
    features = list(dict.fromkeys(candidates))
    return {"features": features[: None if attempt == 1 else FEWER_CANDIDATES], "accuracy": ACCURACY}


def _surest(progress: Progress, attempt: int) -> Values | Skip:
    """The features with a label, as many as are tested: those that the behaviour uses, then the most
    confident."""
    kept = _kept_labels(progress)
    ordered = [*(f for f in used_features(progress) if f in kept), *kept]
    features = list(dict.fromkeys(ordered))[: TESTED if attempt == 1 else FEWER_TESTED]
    return {"features": features} if features else Skip("no label holds")


def _decoys(progress: Progress, attempt: int) -> Values | Skip:
    if len(_kept_labels(progress)) < 2:
        return Skip("there are no two labels to exchange")
    return _surest(progress, attempt)


def _effects(progress: Progress, attempt: int) -> Values | Skip:
    chosen = (
        _passed_labels(progress)
        or list(_kept_labels(progress))
        or list(progress.numbers("survey")["candidates"])
    )
    if not chosen:
        return Skip("there is no feature to ablate", lasting=True)
    return {"features": chosen[: ABLATED if attempt == 1 else FEWER_ABLATED], "chance": CHANCE}


def _silent(progress: Progress, attempt: int) -> Values | Skip:
    silent = progress.numbers("survey")["silent"][: 8 // attempt]
    return {"features": silent} if silent else Skip("every feature fires somewhere on these texts")


Choice = Callable[[Progress], Sequence[Claim]]


def _claim(choice: Choice, index: int, progress: Progress, _: int) -> Values | Skip:
    """One of the claims that the log gives rise to."""
    claims = choice(progress)
    if index >= len(claims):
        return Skip("there is no such claim to make", lasting=True)
    return {"claim": claims[index]}


# One sentence for each step.


def _survey_sentence(progress: Progress) -> str:
    """How much the dictionary explains, and how many features fire."""
    numbers = progress.numbers("survey")
    worth = "" if numbers["explained"] >= EXPLAINED else ", which is too little to call it a description"
    unseen, known = (_explained(numbers["on_kind"][kind]) for kind in ("fresh_texts", "familiar_texts"))
    return (
        f"The {numbers['d_sae']:,} features at {numbers['hook_point']} explain {unseen}{worth}; {known}. "
        f"{numbers['l0']:.1f} of them fire on a token, {percent(numbers['silent_share'])} on none of "
        f"{numbers['n_tokens']:,}."
    )


def _explained(kind: Mapping[str, Any]) -> str:
    """`61% of the variance on 80 documents, of which the dictionary was trained on 0%`."""
    seen = kind["seen_in_training"]
    trained = (
        "what it was trained on is not recorded"
        if seen is None
        else f"{percent(seen)} of it was in the training"
    )
    return (
        f"{percent(kind['explained'])} of the variance on text of {kind['documents']} documents ({trained})"
    )


def _behaviour_sentence(progress: Progress) -> str:
    """Which features the behaviour uses, while exploring."""
    numbers, used = progress.numbers("behaviour"), used_features(progress)
    if not used:
        return "While exploring, no single feature took much of the behaviour's logit difference away."
    each = listed(f"f{feature} ({percent(effect)})" for feature, effect in used.items())
    together = f", together {percent(numbers['together'])}" if len(used) > 1 else ""
    return (
        f"While exploring {numbers['n_pairs']} pairs, clamping to 0 took out of the logit difference: {each}"
        f"{together}."
    )


def _labels_sentence(progress: Progress) -> str:
    numbers, kept = progress.numbers("labels"), _kept_labels(progress)
    examples = f", such as {listed(_named(progress, kept))}" if kept else ""
    return (
        f"Of {numbers['n']} candidates {len(kept)} have a label that reaches a balanced accuracy of "
        f"{ACCURACY} on held-out documents{examples}; for {numbers['abstained']} none was found."
    )


def _decoys_sentence(progress: Progress) -> str:
    numbers = progress.numbers("decoys")
    return (
        f"Exchanged among these features the labels reach {numbers['decoy']:.2f} in the median, in their own "
        f"places {numbers['own']:.2f}."
    )


def _sensitivity_sentence(progress: Progress) -> str:
    tested = progress.numbers("sensitivity")["tested"]
    undecided = sum(each["passed"] is None for each in tested.values())
    open_ones = f"; for {undecided} the texts were too few" if undecided else ""
    return f"On fresh texts {len(_passed_labels(progress))} of {len(tested)} tested labels pass{open_ones}."


def _effects_sentence(progress: Progress) -> str:
    numbers, standing_out = progress.numbers("effects"), _standing_out(progress)
    if not numbers["tested"]:
        return "On fresh texts none of the features fires where it could be ablated."
    strongest = ""
    if standing_out:
        measured = numbers["measured"]
        best = max(standing_out, key=lambda feature: float(measured[str(feature)]["effect"]))
        effect = float(measured[str(best)]["effect"])
        strongest = f"; most of all {listed(_named(progress, [best]))} ({effect:.3f} nats)"
    chance = "more than chance explains" if numbers["p_value"] <= CHANCE else "no more than chance explains"
    corrected = listed(f"f{feature}" for feature in numbers["holm"]) or "none"
    return (
        f"Ablated where they fire, {len(standing_out)} of {numbers['tested']} features change the next token "
        f"more than all but {percent(CHANCE)} of random features put in their place: {chance} "
        f"({numbers['expected_by_chance']:.1f} expected, p = {numbers['p_value']:.2g}){strongest}. "
        f"Corrected for their number stands out: {corrected}."
    )


def _steering_sentence(progress: Progress) -> str:
    numbers = progress.numbers("steering")
    return (
        f"Added to the stream, {numbers['raised']} of {numbers['n']} features raise the tokens they promote "
        "more than a random direction of the same norm does."
    )


def _silent_sentence(progress: Progress) -> str:
    numbers = progress.numbers("silent")
    if numbers["exact"]:
        return f"{numbers['n']} features that do not fire have an effect of exactly 0, as they must."
    return f"A silent feature has an effect of up to {numbers['largest']:.2g}: the ablation is wrong."


def _named(progress: Progress, features: Iterable[int], most: int = 5) -> list[str]:
    """`f42 (token " the")`, the first few."""
    labels, chosen = _kept_labels(progress), list(features)
    named = [
        f"f{feature} ({labels[feature]['label']})" if feature in labels else f"f{feature}"
        for feature in chosen[:most]
    ]
    return [*named, f"{len(chosen) - most} more"] if len(chosen) > most else named


# The answer, from all sentences.


def _answer(progress: Progress) -> Answer:
    """Which features are understood and used."""
    if "survey" not in progress.measured:
        return Answer("Nothing was measured.")
    both = [feature for feature in _supported(progress) if feature in _passed_labels(progress)]
    measured = [
        step.concludes(progress)
        for step in _STEPS
        if step.name in ("survey", "behaviour", "labels", "sensitivity", "effects")
        and step.name in progress.measured
        and step.concludes is not None
    ]
    verdict = ""
    if both:
        verdict = f"Understood and used: {listed(_named(progress, both))}."
    elif {"behaviour", "sensitivity"} <= set(progress.measured):
        verdict = (
            "No feature was found whose label holds on fresh texts and whose use is supported on held-out "
            "pairs."
        )
    limits = _limits(progress)
    text = sentences(
        verdict, *verdict_sentences(progress, _claims(progress)), *measured, f"Not shown: {limits[0]}"
    )
    return Answer(text, limits, criterion_met=bool(both))


def _limits(progress: Progress) -> list[str]:
    """What was not shown, the most serious first."""
    survey, limits = progress.numbers("survey"), []
    if survey["explained"] < EXPLAINED:
        limits.append("that the dictionary describes this model: it explains too little on these texts.")
    candidates = len(survey["candidates"])
    limits.append(
        f"what the other {survey['d_sae'] - candidates:,} features do: {candidates} were looked at."
    )
    if "behaviour" in progress.measured:
        limits.append("that the model uses these features in other behaviours than that of the pairs.")
    limits.append("that labels hold on texts of other kinds than the two that were looked at.")
    if "labels" in progress.measured:
        limits.append(
            "that a rule over tokens, positions and topics says all a feature does: labels are such rules."
        )
    return limits


def _declares(name: str, choice: Choice, index: int) -> Step:
    """The step that declares one claim, once exploring has found what to claim."""
    return Step(
        name,
        partial(_claim, choice, index),
        partial(claim_sentence, name),
        needs=("behaviour",),
        template="claim",
        attempts=1,
    )


USED = tuple(f"feature_{i + 1}" for i in range(MOST_USED))
NULLS = tuple(f"null_{i + 1}" for i in range(MOST_NULLS))
CLAIMS = (*USED, "necessary", "sufficient", *NULLS)

_STEPS = (  # name, values of its template, sentence, steps it needs besides the survey
    Step("survey", _survey, _survey_sentence),
    Step("behaviour", _behaviour, _behaviour_sentence),
    Step("labels", _labels, _labels_sentence),
    Step("decoys", _decoys, _decoys_sentence, ("labels",)),
    Step("sensitivity", _surest, _sensitivity_sentence, ("labels",)),
    Step("effects", _effects, _effects_sentence),
    Step("steering", _surest, _steering_sentence, ("labels",)),
    Step("silent", _silent, _silent_sentence),
    *(_declares(name, used_claims, i) for i, name in enumerate(USED)),
    _declares("necessary", set_claims, 0),
    _declares("sufficient", sufficient_claims, 0),
    *(_declares(name, null_claims, i) for i, name in enumerate(NULLS)),
)

FEATURES = Study(
    name="features",
    steps=_STEPS,
    priority=(
        *("survey", "behaviour", "labels", "sensitivity", USED[0], "effects", "necessary", NULLS[0]),
        *("sufficient", *USED[1:], "decoys", "silent", "steering", *NULLS[1:]),
    ),
    criterion="a feature has a label that holds on fresh texts, and its use is supported on held-out pairs",
    answer=_answer,
    cited=(
        ("explained", "survey", "explained"),
        ("on_kind", "survey", "on_kind"),
        ("used", "behaviour", "measured"),
        ("labels", "labels", "kept"),
        ("decoys", "decoys", "decoy"),
        ("sensitivity", "sensitivity", "tested"),
        ("effects", "effects", "measured"),
    ),
    no_start="the dictionary could not be surveyed",
)
