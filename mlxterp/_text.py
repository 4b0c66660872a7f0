"""Small texts that several packages write: a duration, a part of a file name. Imports nothing else."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
    """Seconds as people read them: `0.06 s`, `8.2 s`, `41 s`, `3 min 20 s`, `7 h 12 min`."""
    if seconds < 59.5:
        return f"{seconds:.{2 if seconds < 1 else 1 if seconds < 10 else 0}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def slug(text: str, *, default: str) -> str:
    """At most 40 lower-case letters, digits and hyphens, for a file name; `default` if none is left."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40].strip("-") or default
