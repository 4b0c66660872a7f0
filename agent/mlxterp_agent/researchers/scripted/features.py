"""The study of a sparse autoencoder's features: which have a label that holds, and which the model uses.

See `templates/experiments/features/` for hypotheses, thresholds and code of the experiments; a threshold that
a sentence of the conclusion states is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlxterp.text import percent
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
"""Share of the variance about the mean that a dictionary explains on held-out texts, to be worth labels."""
ACCURACY = 0.75
"""The least balanced accuracy on held-out documents of a label that describes its feature."""
CHANCE = 0.05
"""The largest p-value, against random directions of the same size, of an ablation that stands out."""
CANDIDATES, FEWER_CANDIDATES = 48, 12
"""How many features are examined; fewer on a second attempt."""
TESTED, FEWER_TESTED = 12, 4
"""How many labels are tested on fresh texts, exchanged, or steered with."""
ABLATED, FEWER_ABLATED = 8, 3
"""How many features are ablated."""


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


def _standing_out(progress: Progress) -> list[int]:
    """The features whose ablation changes the output more than that of random features."""
    return _features_where(progress, "effects", "measured", "stands_out")


# The template values of each step.


def _survey(_: Progress, attempt: int) -> Values:
    return {"explained": EXPLAINED, "candidates": CANDIDATES if attempt == 1 else FEWER_CANDIDATES}


def _labels(progress: Progress, attempt: int) -> Values | Skip:
    candidates = list(progress.numbers("survey")["candidates"])
    if not candidates:
        return Skip("no feature fires often enough, and none too often", lasting=True)
    return {"features": candidates[: None if attempt == 1 else FEWER_CANDIDATES], "accuracy": ACCURACY}


def _surest(progress: Progress, attempt: int) -> Values | Skip:
    """The features with the most confident labels, as many as are tested."""
    features = list(_kept_labels(progress))[: TESTED if attempt == 1 else FEWER_TESTED]
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


# One sentence for each step.


def _survey_sentence(progress: Progress) -> str:
    """How much the dictionary explains, and how many features fire."""
    numbers = progress.numbers("survey")
    worth = "" if numbers["explained"] >= EXPLAINED else ", which is too little to call it a description"
    return (
        f"The {numbers['d_sae']:,} features at {numbers['hook_point']} explain "
        f"{percent(numbers['explained'])} of the variance on {numbers['n_held_out']} held-out "
        f"documents{worth}; {numbers['l0']:.1f} of them fire on a token, "
        f"{percent(numbers['silent_share'])} on none of {numbers['n_tokens']:,}."
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
    measured, standing_out = progress.numbers("effects")["measured"], _standing_out(progress)
    strongest = ""
    if standing_out:
        best = max(standing_out, key=lambda feature: float(measured[str(feature)]["effect"]))
        effect = float(measured[str(best)]["effect"])
        strongest = f", most of all {listed(_named(progress, [best]))} ({effect:.3f} nats)"
    return (
        f"Ablated where they fire, {len(standing_out)} of {len(measured)} features change the next token "
        f"more than all but {percent(CHANCE)} of random features put in their place{strongest}."
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
    standing_out = _standing_out(progress)
    both = [feature for feature in _passed_labels(progress) if feature in standing_out]
    measured = [
        step.concludes(progress)
        for step in _STEPS
        if step.name in ("survey", "labels", "sensitivity", "effects")
        and step.name in progress.measured
        and step.concludes is not None
    ]
    verdict = ""
    if both:
        verdict = f"Understood and used: {listed(_named(progress, both))}."
    elif {"effects", "sensitivity"} <= set(progress.measured):
        verdict = (
            "No feature was found whose label holds on fresh texts and which the model can be shown to use."
        )
    limits = _limits(progress)
    return Answer(sentences(*measured, verdict, f"Not shown: {limits[0]}"), limits, criterion_met=bool(both))


def _limits(progress: Progress) -> list[str]:
    """What was not shown, the most serious first."""
    survey, limits = progress.numbers("survey"), []
    if survey["explained"] < EXPLAINED:
        limits.append("that the dictionary describes this model: it explains too little on these texts.")
    candidates = len(survey["candidates"])
    limits.append(
        f"what the other {survey['d_sae'] - candidates:,} features do: {candidates} were looked at."
    )
    limits.append(f"that this holds for other texts than these {survey['n_documents']} documents' kind.")
    if "labels" in progress.measured:
        limits.append(
            "that a rule over tokens, positions and topics says all a feature does: labels are such rules."
        )
    return limits


_STEPS = (  # name, values of its template, sentence, steps it needs besides the survey
    Step("survey", _survey, _survey_sentence),
    Step("labels", _labels, _labels_sentence),
    Step("decoys", _decoys, _decoys_sentence, ("labels",)),
    Step("sensitivity", _surest, _sensitivity_sentence, ("labels",)),
    Step("effects", _effects, _effects_sentence),
    Step("steering", _surest, _steering_sentence, ("labels",)),
    Step("silent", _silent, _silent_sentence),
)

FEATURES = Study(
    name="features",
    steps=_STEPS,
    priority=("survey", "labels", "sensitivity", "effects", "decoys", "silent", "steering"),
    criterion="a feature has a label that holds on fresh texts, and its ablation stands out from random ones",
    answer=_answer,
    cited=(
        ("explained", "survey", "explained"),
        ("l0", "survey", "l0"),
        ("labels", "labels", "kept"),
        ("decoys", "decoys", "decoy"),
        ("sensitivity", "sensitivity", "tested"),
        ("effects", "effects", "measured"),
    ),
    no_start="the dictionary could not be surveyed",
)
