"""Seals: each supervised line of the log carries the SHA-256 of every byte before it.

Lives here: checking them in one pass. What a seal can show: that earlier bytes, also lines that others wrote,
are not what they were. What it cannot: who changed them, or a change of the last line; for that the
supervisor keeps seals of the whole file outside the project, and gives them here as anchors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from mlxterp.autointerpret.encoding import MAX_LINE

SCHEMA = "autointerp/1"


class Seal(NamedTuple):
    """The SHA-256 of the first `at` bytes of the log."""

    at: int
    sha256: str


class SealProblem(NamedTuple):
    """What does not fit, and at which line."""

    line: int
    what: str


def check(raw: bytes, anchors: Iterable[Seal] = ()) -> list[SealProblem]:
    """Every disagreement between the bytes of a log and its seals, in the order of the lines."""
    *lines, fragment = raw.split(b"\n")
    problems: list[SealProblem] = []
    sha, at, last_good, broken = hashlib.sha256(), 0, 0, False
    first_with: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        value, unreadable = _read(line)
        if unreadable:
            problems.append(SealProblem(number, unreadable))
        name = value.get("experiment_id")
        if type(name) is str and name:
            if name in first_with:
                problems.append(
                    SealProblem(number, f"experiment_id {name!r} is already that of line {first_with[name]}")
                )
            first_with.setdefault(name, number)
        record = value.get("record")
        if type(record) is dict and "seal" in record and not broken:
            what = _disagreement(record, number, at, sha.hexdigest(), last_good)
            if what:
                # Every later seal covers the same changed bytes; repeating it for each would say nothing new.
                broken = True
                problems.append(SealProblem(number, what))
            else:
                last_good = number
        sha.update(line)
        sha.update(b"\n")
        at += len(line) + 1
    if fragment:
        problems.append(
            SealProblem(len(lines) + 1, f"{len(fragment)} bytes without a line feed: a write was cut off")
        )
    return sorted([*problems, *_against_anchors(raw, anchors)])


def _read(line: bytes) -> tuple[dict[str, Any], str]:
    if not line.strip():
        return {}, ""
    if len(line) >= MAX_LINE:
        return {}, f"it has {len(line):,} bytes, and a line may have {MAX_LINE:,}"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "it cannot be read as JSON"
    return (value, "") if type(value) is dict else ({}, "it is not a JSON object")


def _disagreement(record: dict[str, Any], number: int, at: int, sha256: str, last_good: int) -> str:
    if record.get("at") == at and record["seal"] == sha256:
        return (
            ""
            if record.get("seq") == number
            else f"its seq is {record.get('seq')!r}, and it is line {number}"
        )
    since = f"lines {max(last_good, 1)} to {number - 1}" if number > 1 else "the bytes before it"
    moved = (
        ""
        if record.get("at") == at
        else f" ({at} bytes are before it, and it was written after {record.get('at')!r})"
    )
    return f"{since} are not what they were when it was written{moved}; seals after it cannot be checked"


def _against_anchors(raw: bytes, anchors: Iterable[Seal]) -> list[SealProblem]:
    problems: list[SealProblem] = []
    sha, done = hashlib.sha256(), 0
    for anchor in sorted(anchors):
        line = raw.count(b"\n", 0, anchor.at)
        if anchor.at > len(raw):
            problems.append(SealProblem(line, f"the log ends after {len(raw)} bytes, and had {anchor.at}"))
            continue
        sha.update(raw[done : anchor.at])
        done = anchor.at
        if sha.hexdigest() != anchor.sha256:
            problems.append(SealProblem(line, "the log up to here is not what the supervisor recorded"))
    return problems
