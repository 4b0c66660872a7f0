"""Windows of text as a language model is shown them: marked, numbered, and unable to pass for instructions.

Lives here: marks around tokens, the block of data in a question. Does not live here: what is asked
(`prompts.py`), what is done with the answer (`labeler.py`, `scorers.py`).

Texts come from anywhere, also from somebody who writes "ignore the above". So everything that is data is one
line of JSON between <data> and </data>: no text can end the line or the block, and `<<` of a text becomes
`‹‹`, so that `<<` in it is always our mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from mlxterp.auto_interp.evidence.evidence import Window

MARKED = 0.3
"""Tokens with more than this share of the window's strongest activation are marked (arXiv:2410.13928)."""

_LINE_ENDS = {each: f"\\u{ord(each):04x}" for each in "\x85\u2028\u2029"}  # JSON lets them stand as they are


def active(window: Window) -> tuple[int, ...]:
    """Which tokens of a positive window are marked: the peak, and what is not far below it."""
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
    """A positive window for who writes the label: text with marks, and each marked token from 1 to 10.

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
