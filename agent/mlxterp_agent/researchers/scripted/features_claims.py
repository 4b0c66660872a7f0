"""What the study of features declares, chosen from what exploring found on `setup.pairs`: features that the
model uses there, each and as a set, and one that it could use and does not.

A claim is a choice from the log alone, so a resumed study makes the same ones. See `features.py` for the
steps, `templates/experiments/features/behaviour.py.j2` for what is explored.
"""

from __future__ import annotations

from mlxterp.autointerpret.hypothesis import SESOI_GRID
from mlxterp.text import percent
from mlxterp_agent.researchers.scripted.claims import EXCEEDED, Claim, sesoi_of
from mlxterp_agent.researchers.scripted.study import Progress, listed

MOST_USED = 3
"""How many features are claimed one by one."""
MOST_NULLS = 2
"""How many nulls are claimed."""
LIKELY = 0.75
"""The largest share of what is to be ruled out that a null's explored effect may be."""


def used_features(progress: Progress) -> dict[int, float]:
    """The features whose effect while exploring makes a claim worthwhile, strongest first, with the effect:
    the share of the gap that clamping the feature to 0 takes out of the clean run."""
    measured = progress.numbers("behaviour").get("measured", {})
    effects = {int(feature): float(effect) for feature, (effect, _) in measured.items()}
    strong = {f: e for f, e in effects.items() if e >= EXCEEDED * SESOI_GRID[0]}
    return dict(sorted(strong.items(), key=lambda each: (-each[1], each[0]))[:MOST_USED])


def used_claims(progress: Progress) -> list[Claim]:
    """That the model uses each of the found features."""
    return [
        _ablation(f"feature_{i}", (feature,), effect, progress)
        for i, (feature, effect) in enumerate(used_features(progress).items(), 1)
    ]


def set_claims(progress: Progress) -> list[Claim]:
    """That the found features together are necessary, if there are several."""
    features = tuple(used_features(progress))
    if len(features) < 2:
        return []
    return [_ablation("necessary", features, float(progress.numbers("behaviour")["together"]), progress)]


def sufficient_claims(progress: Progress) -> list[Claim]:
    """That the strongest feature alone, set to what it is in the clean run, moves the corrupted run there."""
    numbers = progress.numbers("behaviour")
    if not used_features(progress) or numbers.get("set_to") is None:
        return []
    feature, explored = next(iter(used_features(progress))), float(numbers["sufficient"])
    if explored < EXCEEDED * SESOI_GRID[0]:
        return []
    sesoi, value, at = sesoi_of(explored), float(numbers["set_to"]), int(numbers["set_at"])
    return [
        Claim(
            id="sufficient",
            sites=(f"{numbers['hook_point']}@{at}",),
            source="clean",
            direction="increase",
            sesoi=sesoi,
            explored=explored,
            claim=f"Feature {_with_label(feature, progress)} is enough {_in_pairs(progress)}: set to "
            f"{value:g} at position {at} of the corrupted run it raises the logit difference by at least "
            f"{percent(sesoi)} of the gap.",
            short=f"f{feature} set as in the clean run ({percent(sesoi)})",
            rivals=(
                "Any change of this size at that position does as much.",
                "The model needs other features beside it.",
            ),
            falsified_if=f"its effect on held-out pairs is below {percent(sesoi)}, or random ones have it",
            features=(feature,),
            value=value,
        )
    ]


def null_claims(progress: Progress) -> list[Claim]:
    """Features that are active on these prompts and are expected not to matter: their effect while exploring
    was at most `LIKELY` of what is to be ruled out, and its interval ended below it; the largest first."""
    numbers, used = progress.numbers("behaviour"), used_features(progress)
    sesoi, found = SESOI_GRID[0], []
    for feature, (effect, half) in numbers.get("measured", {}).items():
        if int(feature) not in used and abs(effect) <= LIKELY * sesoi and abs(effect) + half <= sesoi:
            found.append((int(feature), float(effect)))
    found.sort(key=lambda each: (-abs(each[1]), each[0]))
    return [
        _null(f"null_{i}", feature, effect, sesoi, progress)
        for i, (feature, effect) in enumerate(found[:MOST_NULLS], 1)
    ]


def _ablation(name: str, features: tuple[int, ...], effect: float, progress: Progress) -> Claim:
    sesoi, named = sesoi_of(effect), listed(f"f{feature}" for feature in features)
    one = len(features) == 1
    subject = f"feature {_with_label(features[0], progress)}" if one else f"the features {named} together"
    return Claim(
        id=name,
        sites=(str(progress.numbers("behaviour")["hook_point"]),),
        source="corrupted",
        direction="decrease",
        sesoi=sesoi,
        explored=effect,
        claim=f"The model uses {subject} {_in_pairs(progress)}: with {'it' if one else 'them'} at 0 in the "
        "clean run, the reconstruction error kept, the logit difference falls by at least "
        f"{percent(sesoi)} of the gap.",
        short=f"{named} as necessary ({percent(sesoi)})",
        rivals=(
            "Any change of this size at this place does as much.",
            "The strongest of many features is so by chance on the prompts explored.",
        ),
        falsified_if=f"less than {percent(sesoi)} is lost on held-out pairs, or random directions do it too",
        features=features,
    )


def _in_pairs(progress: Progress) -> str:
    """`to say "were" and not "was" after "The dogs near the church" and the like`."""
    prompt, answer, foil = (str(each).strip() for each in progress.numbers("behaviour")["example"])
    return f'to say "{answer}" and not "{foil}" after "{prompt}" and the like'


def _with_label(feature: int, progress: Progress) -> str:
    """`f444 (words ending in -s)`, where it has a label."""
    label = progress.numbers("labels").get("kept", {}).get(str(feature))
    return f"f{feature} ({label['label']})" if label else f"f{feature}"


def _null(name: str, feature: int, effect: float, sesoi: float, progress: Progress) -> Claim:
    falls = effect >= 0
    return Claim(
        id=name,
        sites=(str(progress.numbers("behaviour")["hook_point"]),),
        source="corrupted",
        direction="decrease" if falls else "increase",
        sesoi=sesoi,
        explored=effect,
        claim=f"The model uses feature f{feature}, active there, {_in_pairs(progress)}: with it at 0 in the "
        f"clean run the logit difference {'falls' if falls else 'rises'} by at least {percent(sesoi)} of the "
        f"gap; while exploring it was {100 * abs(effect):.1f} %.",
        short=f"f{feature} as necessary ({percent(sesoi)})",
        rivals=("It is active there, and the answer does not depend on it.",),
        falsified_if=f"its effect on held-out pairs is below {percent(sesoi)} in size",
        null=True,
        features=(feature,),
    )
