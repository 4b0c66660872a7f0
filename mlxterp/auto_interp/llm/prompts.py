"""The prompts of a language model and the forms of its answers, for labels and for judging them.

The texts are in `templates/prompts/features/`. They are constant, so that the service reads them from its
cache, and are the `system` part; a question's data is a block of JSON (`block`). `VERSION` names them in
the provenance of labels; cached replies are found by the texts themselves.

Sources: the shape of the evidence (marked tokens with activations, promoted logits, tokens after) after Paulo
et al. 2024 (arXiv:2410.13928) and Gur-Arieh et al. 2025 (arXiv:2501.08319); the contrast with texts on which
the feature is silent, and candidates chosen by their score, after the same. Ours: "unclear" is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from mlxterp._files import locate
from mlxterp.auto_interp.evidence.evidence import Window
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
"""Labels of other features: the baseline for a judge's score of a label."""


@cache
def instructions(what: Literal["label", "revise", "pairs"] | Task) -> str:
    """The instructions for one kind of question, without data."""
    folder = locate("templates") / "prompts" / "features"
    names = ["label", "revise"] if what == "revise" else [what]
    return "\n".join((folder / f"{name}.md").read_text(encoding="utf-8") for name in names)


MARKED = 0.3
"""Tokens with more than this share of the window's strongest activation are marked (arXiv:2410.13928)."""

_LINE_ENDS = {each: f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}  # JSON lets them stand as they are


def active(window: Window) -> tuple[int, ...]:
    """The tokens of a positive window that are marked: the peak, and those not far below it."""
    least = MARKED * window.activations[window.peak]
    return tuple(i for i, each in enumerate(window.activations) if each > least)


def marked(tokens: Sequence[str], marks: Collection[int]) -> str:
    """The text with `<<` and `>>` around each run of marked tokens, and nowhere else."""
    runs = groupby(range(len(tokens)), key=lambda i: i in marks)
    parts = [(is_marked, "".join(tokens[i] for i in run)) for is_marked, run in runs]
    text = ""
    for number, (is_marked, part) in enumerate(parts):
        # A single angle would join our mark: "<" before "<<", ">" after ">>".
        shown = _harmless(part)
        if is_marked:
            text += f"<<{_inside(shown)}>>"
            continue
        if number > 0 and shown.startswith(">"):
            shown = "›" + shown[1:]
        if number < len(parts) - 1 and shown.endswith("<"):
            shown = shown[:-1] + "‹"
        text += shown
    return text


def shown(token: str) -> str:
    """A token as it stands in a marked text, were it the only one in its mark."""
    return _inside(_harmless(token))


def _inside(part: str) -> str:
    if part.startswith("<"):
        part = "‹" + part[1:]
    return part[:-1] + "›" if part.endswith(">") else part


def _harmless(text: str) -> str:
    text = re.sub(r"<{2,}", lambda run: "‹" * len(run[0]), text)
    return re.sub(r">{2,}", lambda run: "›" * len(run[0]), text)


def example(window: Window, strongest: float) -> dict[str, Any]:
    """A positive window for the labeler: text with marks, and each marked token with a level from 1 to 10.

    Args:
        strongest: the feature's greatest activation, which is 10.
    """
    levels = [
        [window.tokens[i], max(1, round(10 * min(1.0, window.activations[i] / strongest)))]
        for i in active(window)
    ]
    return {"text": marked(window.tokens, active(window)), "activations": levels}


def block(data: Mapping[str, Any]) -> str:
    """Data as one line of JSON between `<data>` and `</data>`, which no text in it can end."""
    line = json.dumps(data, ensure_ascii=False)
    for end, escaped in _LINE_ENDS.items():
        line = line.replace(end, escaped)
    # Half of a surrogate pair cannot be sent.
    line = line.replace("</", "<\\/").encode("utf-8", "replace").decode("utf-8")
    return f"<data>\n{line}\n</data>"
