"""What a language model is told and in which form it answers, for labels and for judging them.

The words are in `templates/prompts/features/`. They are constant, so that the service reads them from its
cache, and go into `system` only; a question's own data is a block of JSON (`rendering.py`). `VERSION` names
them where labels are kept; kept replies are known by the words themselves.

Sources: the shape of the evidence (marked tokens with activations, promoted logits, tokens after) after Paulo
et al. 2024 (arXiv:2410.13928) and Gur-Arieh et al. 2025 (arXiv:2501.08319); the contrast with texts on which
the feature is silent, and candidates chosen by their score, after the same. Ours: "unclear" is an answer.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mlxterp._files import locate
from mlxterp.auto_interp.label import Kind

VERSION = "features-1"

LABEL_WORDS = 6
DESCRIPTION_WORDS = 25


class Candidate(BaseModel):
    """One label that the model proposes."""

    reasoning: str = Field(description="what the marked tokens share and the counterexamples lack, briefly")
    label: str = Field(description=f"at most {LABEL_WORDS} words")
    description: str = Field(description=f"at most {DESCRIPTION_WORDS} words")
    kind: Kind
    positive_cues: list[str] = Field(description="up to 5 words or forms on which it fires")
    exclusions: list[str] = Field(description="up to 5 near misses on which it does not fire")
    confidence: Annotated[int, Field(ge=0, le=100)]


class Candidates(BaseModel):
    """Labels, the likeliest first."""

    candidates: list[Candidate]


class Judged(BaseModel):
    """How likely one numbered text has what was described."""

    i: int
    prob: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class Judgement(BaseModel):
    """One entry for each text that was shown."""

    p: list[Judged]


Task = Literal["detection", "fuzzing"]

DECOYS: tuple[tuple[str, str], ...] = (
    ("currency sign before an amount", "Fires on $, £ or € directly before a number."),
    ("second person in questions", "Fires on you and your in sentences that end in a question mark."),
    ("names of colours", "Fires on red, blue, green and other words for colours."),
    ("closing brackets in code", "Fires on brackets that end a call or a block of program text."),
    ("weather and seasons", "Fires on rain, snow, wind, summer, winter."),
    ("past participles after have", "Fires on gone, been, seen and the like after have, has or had."),
    ("years in dates", "Fires on numbers of four digits that name a year."),
    ("family relations", "Fires on mother, brother, aunt and other words for relatives."),
)
"""Labels of other features, to see what a judge makes of a label that was not written for this one."""


@cache
def instructions(what: Literal["label", "revise", "pairs"] | Task) -> str:
    """What the model is told for this, without any data."""
    folder = locate("templates") / "prompts" / "features"
    names = ["label", "revise"] if what == "revise" else [what]
    return "\n".join((folder / f"{name}.md").read_text(encoding="utf-8") for name in names)
