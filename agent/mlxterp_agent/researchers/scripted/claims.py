"""What the studies declare: a claim as they choose it from the log, and the sentence on its verdict.

See `heads_claims.py` and `features_claims.py` for the choices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlxterp.autointerpret.hypothesis import SESOI_GRID
from mlxterp_agent.researchers.scripted.study import Progress, listed

EXCEEDED = 1.5
"""How many times the smallest effect of interest a site explored at, for its claim to be worth making."""


@dataclass(frozen=True)
class Claim:
    """A hypothesis to declare.

    Attributes:
        id: its name in the study.
        sites: as a declaration writes them, "L23.z.h4@-1".
        source: of the patch: "clean" is denoising, "corrupted" noising. Of a feature
            likewise: the run that is not edited.
        direction: where the intervention is expected to move the logit difference, or would if it did
            something.
        sesoi: one of the grid.
        explored: its effect while exploring; None if it was not measured.
        claim: in a sentence; `short` in a few words.
        rivals, falsified_if: as in a `Hypothesis`.
        null: whether it is expected to be ruled out.
        features, value: the features of the dictionary that are clamped, and to what; empty for a patch.
    """

    id: str
    sites: tuple[str, ...]
    source: str
    direction: str
    sesoi: float
    explored: float | None
    claim: str
    short: str
    rivals: tuple[str, ...]
    falsified_if: str
    null: bool = False
    features: tuple[int, ...] = ()
    value: float = 0.0

    @property
    def forecast(self) -> dict[str, float]:
        """The probability of each outcome."""
        if self.null:
            return {"supported": 0.1, "refuted": 0.05, "ruled_out": 0.85}
        if self.explored is not None and abs(self.explored) >= EXCEEDED * self.sesoi:
            return {"supported": 0.85, "refuted": 0.05, "ruled_out": 0.1}
        return {"supported": 0.4, "refuted": 0.1, "ruled_out": 0.5}


def sesoi_of(effect: float) -> float:
    """The largest smallest effect of interest that an effect exceeds by half; the least there is if none."""
    return max((s for s in SESOI_GRID if abs(effect) >= EXCEEDED * s), default=SESOI_GRID[0])


def claim_sentence(step: str, progress: Progress) -> str:
    """The verdict on a declared claim, and the claim."""
    claim = str(progress.measured[step].result["claim"])
    return f"{verdict_words(step, progress)}: {claim}"


def verdict_words(step: str, progress: Progress) -> str:
    """`Supported on held-out pairs`, `Inconclusive (missing: interval)`."""
    match progress.verdict(step):
        case "supported":
            return "Supported on held-out pairs"
        case "refuted":
            return "Refuted on held-out pairs"
        case "ruled_out":
            return "Ruled out on held-out pairs"
        case "inconclusive":
            reasons = progress.reasons(step)
            return f"Inconclusive{f' ({reasons})' if reasons else ''}"
        case _:
            return "Not judged"


def verdict_sentences(progress: Progress, steps: Iterable[str]) -> list[str]:
    """`Supported on held-out pairs: L0.H2 (50%) and L1.H1 (50%).`, by verdict, of the steps that declared."""
    of_words: dict[str, list[str]] = {}
    for step in steps:
        short = str(progress.measured[step].result["short"])
        of_words.setdefault(verdict_words(step, progress), []).append(short)
    return [f"{words}: {listed(shorts)}." for words, shorts in of_words.items()]
