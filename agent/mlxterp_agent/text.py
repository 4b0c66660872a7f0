"""Text of experiments and agents, made safe to show: on a terminal, in a file name, on one line.

It may hold escape sequences, bidirectional overrides or ten thousand lines. What is printed, and every file
name that is made from it, goes through here. HTML and Markdown have their own escaping in the templates.
"""

from __future__ import annotations

import re
import unicodedata

from mlxterp.text import duration as duration

_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x1b\\|\x07|\x9c|$)"  # OSC, DCS, SOS, PM, APC
    r"|\x1b[ -/]*[0-~]",  # other two- and three-byte escapes
    re.DOTALL,
)


def plain(text: str) -> str:
    """`text` without terminal escapes, control and formatting characters; line breaks stay, tabs become
    spaces."""
    text = _ESCAPES.sub("", text).expandtabs(4)
    return "".join(
        c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    )


def one_line(text: str, width: int = 100) -> str:
    """`text` on one line of at most `width` characters; a cut is marked with an ellipsis."""
    flat = " ".join(plain(text).split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)].rstrip() + "…"


def slug(text: str, width: int = 40) -> str:
    """Lower-case letters, digits and hyphens only, cut between words if possible: safe in a file name."""
    flat = unicodedata.normalize("NFKD", plain(text)).encode("ascii", "ignore").decode()
    words = re.findall(r"[a-z0-9]+", flat.lower())
    kept = ""
    for word in words:
        longer = f"{kept}-{word}" if kept else word
        if len(longer) > width:
            break
        kept = longer
    return kept or "-".join(words)[:width] or "entry"


def tail(text: str, lines: int = 20, width: int = 2000) -> str:
    """The last `lines` lines of `text`, at most `width` characters: where a traceback says what happened."""
    kept = "\n".join(plain(text).rstrip().splitlines()[-lines:])
    return kept[-width:]


def line_in(traceback: str | None, file_name: str) -> str:
    """Where a traceback last was in this file, with the line's source: "line 20: model = load()"; or ""."""
    found = re.findall(
        rf'File "[^"\n]*{re.escape(file_name)}", line (\d+)[^\n]*\n(?!  File )([^\n]*)',
        plain(traceback or ""),
    )
    return f"line {found[-1][0]}: {one_line(found[-1][1])}".removesuffix(": ") if found else ""


def cut(text: str, size: int) -> str:
    """`text` shortened to at most `size` bytes of UTF-8, marked where it is cut."""
    raw = text.encode()
    if len(raw) <= size:
        return text
    return raw[: size - 4].decode(errors="ignore") + "…"
