"""The conclusion of a study of features: sentences made of the numbers in the log, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from mlxterp_agent.researchers.scripted.concluding import (
    Cited,
    Conclusion,
    left_out,
    listed,
    predictions,
    some,
)
from mlxterp_agent.researchers.scripted.features.criteria import (
    ACCURACY,
    CHANCE,
    EXPLAINED,
    ORDER,
)
from mlxterp_agent.researchers.scripted.features.facts import (
    Survey,
    kept_labels,
    passed_labels,
    standing_out,
    survey_of,
)
from mlxterp_agent.researchers.scripted.plan import Known

CRITERION = "a feature has a label that holds on fresh texts, and its ablation stands out from random ones"

_NAMED = 5


def conclusion(known: Known) -> Conclusion:
    """The conclusion that this log supports."""
    survey = survey_of(known)
    if survey is None:
        text = "Nothing was measured."
        return Conclusion(text, [text], left_out(known, ORDER), [], answered=False, criterion=CRITERION)
    passed, matter = passed_labels(known), standing_out(known)
    both = [feature for feature in passed if feature in matter]
    limits = _limits(known, survey)
    shown = some(
        _dictionary(survey),
        _labels(known),
        _decoys(known),
        _sensitivity(known),
        _effects(known),
        _steering(known),
        _silent(known),
        predictions(known),
    )
    text = " ".join(
        some(
            _dictionary(survey),
            _labels(known),
            _sensitivity(known),
            _effects(known),
            _answer(known, both),
            f"Not shown: {limits[0]}" if limits else "",
        )
    )
    return Conclusion(text, shown, limits, _cited(known), answered=bool(both), criterion=CRITERION)


def _dictionary(survey: Survey) -> str:
    worth = "" if survey.explained >= EXPLAINED else ", which is too little to call it a description"
    return (
        f"The {survey.d_sae:,} features at {survey.hook_point} explain {survey.explained:.0%} of the "
        "variance "
        f"on {survey.n_held_out} held-out documents{worth}; {survey.l0:.1f} of them fire on a token, "
        f"{survey.silent_share:.0%} on none of {survey.n_tokens:,}."
    )


def _answer(known: Known, both: list[int]) -> str:
    """Which features are both: understood, and used."""
    if known.numbers("effects") is None or known.numbers("sensitivity") is None:
        return ""
    if not both:
        return (
            "No feature was found whose label holds on fresh texts and which the model can be shown to use."
        )
    return f"Understood and used: {listed(_named(known, both))}."


def _labels(known: Known) -> str:
    numbers = known.numbers("labels")
    if numbers is None:
        return ""
    kept = kept_labels(known)
    examples = f", such as {listed(_named(known, list(kept)))}" if kept else ""
    return (
        f"Of {numbers['n']} candidates {len(kept)} have a label that reaches a balanced accuracy of "
        f"{ACCURACY} on "
        f"held-out documents{examples}; for {numbers['abstained']} none was found."
    )


def _decoys(known: Known) -> str:
    numbers = known.numbers("decoys")
    if numbers is None:
        return ""
    return (
        f"Exchanged among these features the labels reach {numbers['decoy']:.2f} in the median, in their own "
        f"places {numbers['own']:.2f}."
    )


def _sensitivity(known: Known) -> str:
    numbers = known.numbers("sensitivity")
    if numbers is None:
        return ""
    tested = numbers["tested"]
    undecided = sum(each["passed"] is None for each in tested.values())
    open_ones = f"; for {undecided} the texts were too few" if undecided else ""
    return f"On fresh texts {len(passed_labels(known))} of {len(tested)} tested labels pass{open_ones}."


def _effects(known: Known) -> str:
    numbers = known.numbers("effects")
    if numbers is None:
        return ""
    matter = standing_out(known)
    strongest = ""
    if matter:
        best = max(matter, key=lambda feature: float(numbers["measured"][str(feature)]["effect"]))
        effect = float(numbers["measured"][str(best)]["effect"])
        strongest = f", most of all {listed(_named(known, [best]))} ({effect:.3f} nats)"
    return (
        f"Ablated where they fire, {len(matter)} of {len(numbers['measured'])} features change the next "
        "token more "
        f"than all but {CHANCE:.0%} of random features put in their place{strongest}."
    )


def _steering(known: Known) -> str:
    numbers = known.numbers("steering")
    if numbers is None:
        return ""
    return (
        f"Added to the stream, {numbers['raised']} of {numbers['n']} features raise the tokens they promote "
        "more than a random direction of the same norm does."
    )


def _silent(known: Known) -> str:
    numbers = known.numbers("silent")
    if numbers is None:
        return ""
    if numbers["exact"]:
        return f"{numbers['n']} features that do not fire have an effect of exactly 0, as they must."
    return f"A silent feature has an effect of up to {numbers['largest']:.2g}: the ablation is wrong."


def _named(known: Known, features: Iterable[int]) -> list[str]:
    """`f42 (token " the")`, the first few."""
    labels = kept_labels(known)
    chosen = list(features)
    named = [
        f"f{feature} ({labels[feature]['label']})" if feature in labels else f"f{feature}"
        for feature in chosen[:_NAMED]
    ]
    return [*named, f"{len(chosen) - _NAMED} more"] if len(chosen) > _NAMED else named


def _limits(known: Known, survey: Survey) -> list[str]:
    """What was not shown, the most serious first."""
    limits = []
    if survey.explained < EXPLAINED:
        limits.append("that the dictionary describes this model: it explains too little on these texts.")
    limits.append(
        f"what the other {survey.d_sae - len(survey.candidates):,} features do: {len(survey.candidates)} "
        "were "
        "looked at."
    )
    limits.append(f"that this holds for other texts than these {survey.n_documents} documents' kind.")
    if known.numbers("labels") is not None:
        limits.append(
            "that a rule over tokens, positions and topics says all a feature does: labels are such rules."
        )
    return [*limits, *left_out(known, ORDER)]


def _cited(known: Known) -> list[Cited]:
    wanted: Iterable[Cited] = (
        ("explained", "survey", "explained"),
        ("l0", "survey", "l0"),
        ("labels", "labels", "kept"),
        ("decoys", "decoys", "decoy"),
        ("sensitivity", "sensitivity", "tested"),
        ("effects", "effects", "measured"),
    )
    return [each for each in wanted if each[1] in known.measured]
