"""Numbers, durations and foreign text as a person reads them. Standard library only, so anything may use it.

Does not live here: Markdown and its escaping (`mlxterp.results.markdown`), pages (`mlxterp.reports`).
"""

from __future__ import annotations

import math
import re
from numbers import Integral
from typing import SupportsFloat

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)


def number(value: SupportsFloat, digits: int = 3) -> str:
    """`0.412`, `-3.1`, `1,204`, `1.2e-05`; `n/a` for NaN, `yes` or `no` for a bool."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    value = float(value) + 0.0  # -0.0 is 0
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text and 1 <= abs(value) < 1e9 else text


def typeset(value: SupportsFloat, digits: int = 3) -> str:
    """`number` with a typographic minus, for pages and figures."""
    return number(value, digits).replace("-", "−")


def fixed(value: SupportsFloat, decimals: int) -> str:
    """`0.50`, `1,204.0`, never `-0.00`: as many decimals for each of several numbers that are compared."""
    value = float(value)
    if not math.isfinite(value):
        return typeset(value)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def decimals_of(low: float, high: float) -> int:
    """How many decimals show an interval's width with two digits: at least two."""
    width = abs(high - low)
    return 2 if not 0 < width < 0.1 else min(6, 1 + math.ceil(-math.log10(width)))


def percent(share: float) -> str:
    """`94 %`; `<1 %` and `>99 %` for what is not none or all of it; `n/a` for what is not a finite number."""
    if not math.isfinite(share):
        return "n/a"
    if 0 < share < 0.005 or 0.995 < share < 1:
        return "<1 %" if share < 0.5 else ">99 %"
    return f"{100 * share + 0.0:.0f} %"


def clip(text: str, longest: int = 6000) -> str:
    """The text, cut after a word and with an ellipsis when it is longer than its place can use."""
    return text if len(text) <= longest else f"{_whole_words(text, longest)} …"


def shortened(text: str, longest: int) -> str:
    """The text in at most this many characters: cut after a word, and with an ellipsis."""
    return text if len(text) <= longest else f"{_whole_words(text, longest - 1)}…"


def _whole_words(text: str, longest: int) -> str:
    """The words that fit; one word that is too long for its place is cut, as is what has no words."""
    if not text[longest].isalnum():
        return text[:longest].rstrip()
    end = re.search(r"[\w'’.-]*\Z", text[:longest])
    start = longest if end is None else end.start()
    return text[: start if start > longest // 2 else longest].rstrip()


def duration(seconds: float) -> str:
    """`0.25 s`, `8.2 s`, `41 s`, `3 min 12 s`, `7 h 12 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def slug(text: str, *, default: str) -> str:
    """At most 40 lower-case letters, digits and hyphens, for a file name; `default` if none is left."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-") or default


def visible(text: str) -> str:
    """The text without terminal colour codes, every other control or reordering character as a visible mark.

    What a reader sees is then what is there: a right-to-left override cannot turn a sentence around, and a
    lone surrogate or NUL, which no HTML or XML may hold, does not reach a file.
    """
    text = _ANSI.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _HIDDEN.sub(lambda found: _mark(ord(found.group())), text)


def _mark(code: int) -> str:
    return chr(0x2400 + code) if code < 32 else f"⟨U+{code:04X}⟩"
