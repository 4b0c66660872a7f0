"""What each step of a study of features asks, given what is known: the values of its experiment.py.

Predictions are stated here, before a run. What does not live here: thresholds (`criteria.py`), the wording of
the conclusion (`conclude.py`), the code of the experiments (`templates/experiments/features/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlxterp_agent.researchers.scripted.features.conclude import conclusion
from mlxterp_agent.researchers.scripted.features.criteria import (
    ABLATED,
    ACCURACY,
    CANDIDATES,
    CHANCE,
    CONFIDENCE,
    DECOY,
    DENSEST,
    EXPLAINED,
    FEWER_ABLATED,
    FEWER_CANDIDATES,
    FEWER_TESTED,
    LABELLED,
    LEAST_TOKENS,
    ORDER,
    PASSED,
    STANDS_OUT,
    TESTED,
)
from mlxterp_agent.researchers.scripted.features.facts import (
    Survey,
    kept_labels,
    passed_labels,
    survey_of,
)
from mlxterp_agent.researchers.scripted.plan import (
    Known,
    Question,
    Skip,
    Step,
    step_of,
)

NO_LABELS = "no label holds"


def build(name: str, known: Known, attempt: int) -> Step | Skip:
    """The step of this name as it would be run now, or why it has nothing to ask."""
    survey = survey_of(known)
    asked: Question | Skip
    if name == "survey":
        asked = _survey(attempt)
    elif name == "conclusion":
        asked = _conclusion(known)
    elif survey is None:
        return Skip("the dictionary was not surveyed")
    else:
        asked = _BUILDERS[name](known, survey, attempt)
    return step_of(name, asked, attempt)


def _survey(attempt: int) -> Question:
    return Question(
        "features/survey",
        f"On texts held out, the dictionary explains at least {EXPLAINED:.0%} of the variance. Rival: it "
        "does "
        "not describe this model on these texts, and its features mean nothing here.",
        {
            "explained": EXPLAINED,
            "candidates": CANDIDATES if attempt == 1 else FEWER_CANDIDATES,
            "least": LEAST_TOKENS,
            "densest": DENSEST,
        },
    )


def _labels(_: Known, survey: Survey, attempt: int) -> Question | Skip:
    if not survey.candidates:
        return Skip("no feature fires often enough, and none too often", lasting=True)
    return Question(
        "features/labels",
        f"A rule fitted on some documents says on others where a feature fires, with a balanced accuracy of "
        f"{ACCURACY}, for at least {LABELLED:.0%} of the candidates. Rival: the features follow nothing that "
        "such a rule can say.",
        {
            "features": list(survey.candidates[: None if attempt == 1 else FEWER_CANDIDATES]),
            "confidence": CONFIDENCE,
            "accuracy": ACCURACY,
            "labelled": LABELLED,
        },
    )


def _decoys(known: Known, _: Survey, attempt: int) -> Question | Skip:
    labels = list(kept_labels(known))[: TESTED if attempt == 1 else FEWER_TESTED]
    if len(labels) < 2:
        return Skip("there are no two labels to exchange" if known.numbers("labels") else NO_LABELS)
    return Question(
        "features/decoys",
        f"Labels belong to their features: given to another one they reach a balanced accuracy below {DECOY} "
        "in the median. Rival: they are so general that they fit any feature.",
        {"features": labels, "decoy": DECOY},
    )


def _sensitivity(known: Known, _: Survey, attempt: int) -> Question | Skip:
    labels = list(kept_labels(known))[: TESTED if attempt == 1 else FEWER_TESTED]
    if not labels:
        return Skip(NO_LABELS)
    return Question(
        "features/sensitivity",
        f"On texts that nothing was fitted on, at least {PASSED:.0%} of the surest labels pass: the feature "
        "fires where the label says and not elsewhere. Rival: the labels describe the texts they were "
        "made of.",
        {"features": labels, "passed": PASSED},
    )


def _effects(known: Known, survey: Survey, attempt: int) -> Question | Skip:
    chosen = passed_labels(known) or list(kept_labels(known)) or list(survey.candidates)
    chosen = chosen[: ABLATED if attempt == 1 else FEWER_ABLATED]
    if not chosen:
        return Skip("there is no feature to ablate", lasting=True)
    return Question(
        "features/effects",
        "Ablating a feature where it fires, the reconstruction error kept, changes the next token more "
        "than all "
        f"but {CHANCE:.0%} of random features put in its place do, for at least {STANDS_OUT:.0%} of "
        "them. Rival: "
        "the model does not read these features in particular.",
        {"features": chosen, "chance": CHANCE, "stands_out": STANDS_OUT},
    )


def _steering(known: Known, _: Survey, attempt: int) -> Question | Skip:
    labels = list(kept_labels(known))[: TESTED if attempt == 1 else FEWER_TESTED]
    if not labels:
        return Skip(NO_LABELS)
    return Question(
        "features/steering",
        "Adding a feature's direction raises the tokens that its decoder row promotes through the "
        "unembedding "
        "more than a random direction of the same norm does, for most features. Rival: later layers undo or "
        "ignore it.",
        {"features": labels},
    )


def _silent(_: Known, survey: Survey, attempt: int) -> Question | Skip:
    if not survey.silent:
        return Skip("every feature fires somewhere on these texts")
    return Question(
        "features/silent",
        "A feature that does not fire on a text has an effect of exactly 0 when it is ablated there. "
        "Rival: the "
        "ablation changes something else as well.",
        {"features": list(survey.silent[: 8 // attempt])},
    )


def _conclusion(known: Known) -> Question:
    written = conclusion(known)
    return Question(
        "conclusion",
        "The steps so far, taken together, answer the question. Rival: they do not, and what is missing is "
        "named.",
        {
            "evidence": {step: known.measured[step].entry_id for step in ORDER if step in known.measured},
            "cited": written.cited,
            "shown": written.shown,
            "not_shown": written.not_shown,
            "answered": written.answered,
            "criterion": written.criterion,
            "conclusion": written.text,
        },
    )


_BUILDERS: Mapping[str, Callable[[Known, Survey, int], Question | Skip]] = {
    "labels": _labels,
    "decoys": _decoys,
    "sensitivity": _sensitivity,
    "effects": _effects,
    "steering": _steering,
    "silent": _silent,
}
