"""`search_log`: one entry by its id, the entries about a site, or those that hold some words; at most 3 kB.

The same answers over MCP and for the API researcher.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.component_names import canonical_component
from mlxterp_agent.outcome import LIMIT, entry_lines
from mlxterp_agent.storage.record import RUNS, verdict_of
from mlxterp_agent.text import cut, one_line

SHOWN = 10
"""Entries that a search lists."""

_ID = re.compile(r"\d{1,6}")
_SITES = re.compile(r"\bL\d+\.(?:[Hh]\d+|[a-z_]+(?:\.[hH]\d+)?)(?:@-?\d+)?|\b(?:embed|final_norm|logits)\b")


def search_text(entries: Sequence[ExperimentEntry], query: str, last: int = SHOWN) -> str:
    """The entries that a query finds, newest first.

    Args:
        query: an id such as 0007: that entry with its numbers. A site such as L1.H1 or L1.z.h1, in any
            spelling: the entries that declare, report or name it, with its number. Words: the entries that
            hold all of them. Nothing: the newest.
        last: how many are listed at most.
    """
    wanted = query.strip()
    if _ID.fullmatch(wanted):
        found = next((e for e in reversed(entries) if e.experiment_id == wanted.zfill(4)), None)
        return _none(entries, wanted) if found is None else _whole(found)
    site = _canonical(wanted)
    if site is not None:
        hits = [(e, _at(e, site)) for e in entries if site in set(_sites_of(e))]
    else:
        words = wanted.lower().split()
        hits = [(e, "") for e in entries if all(word in _text(e) for word in words)]
    if not hits:
        return _none(entries, wanted)
    shown = hits[-max(1, min(last, SHOWN)) :]
    lines = [
        f"{len(hits)} of {len(entries)} experiments match, newest first; an id shows one with its numbers"
    ]
    for entry, number in reversed(shown):
        lines.append(f"{entry.experiment_id} {verdict_of(entry)}: {one_line(entry.conclusion, 200)}")
        lines.append(f"  hypothesis: {one_line(entry.hypothesis, 120)}{number}")
    return cut("\n".join(lines), LIMIT)


def _none(entries: Sequence[ExperimentEntry], query: str) -> str:
    asked = one_line(query, 80)
    return f"none of the {len(entries)} entries matches {asked!r}; search for other words, or for a site"


def _whole(entry: ExperimentEntry) -> str:
    record = entry.record or {}
    declared = record.get("declared") or {}
    lines = entry_lines(entry)
    lines[1:1] = [
        f"  hypothesis: {one_line(entry.hypothesis, 500)}",
        f"  method: {one_line(entry.method, 200)}",
    ]
    if declared:
        sites = ", ".join(map(str, declared.get("site", ())))
        lines.append(
            f"  declared: {one_line(str(declared.get('claim', '')), 300)} (at {one_line(sites, 200)})"
        )
    if record.get("run"):
        lines.append(f"  its experiment.py: {RUNS}/{record['run']}/experiment.py")
    return cut("\n".join(lines), LIMIT)


def _canonical(text: str) -> str | None:
    try:
        return str(canonical_component(text))
    except ValueError:
        return None


def _sites_of(entry: ExperimentEntry) -> Iterator[str]:
    """The sites that an entry declares, has numbers of, or names in its texts."""
    declared = (entry.record or {}).get("declared") or {}
    names = [*map(str, declared.get("site", ())), *(name for name, _ in _named_numbers(entry.result))]
    for text in (entry.hypothesis, entry.method, entry.conclusion, *names):
        for found in _SITES.findall(text):
            site = _canonical(found)
            if site is not None:
                yield site


def _at(entry: ExperimentEntry, site: str) -> str:
    """What the entry measured at this site, if it says so by name."""
    for name, value in _named_numbers(entry.result):
        if _canonical(name) == site:
            return f"; {one_line(name, 40)} {value:.4g}"
    return ""


def _named_numbers(result: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in result.items():
        if name == "analysis":
            continue
        if isinstance(value, Mapping):
            yield from _named_numbers(value)
        elif isinstance(value, (int, float)):
            yield str(name), float(value)


def _text(entry: ExperimentEntry) -> str:
    record = entry.record or {}
    reasons = [str(reason) for reason in record.get("reasons", ())]
    parts = (entry.experiment_id, verdict_of(entry), entry.hypothesis, entry.method, entry.conclusion)
    return " ".join([*map(str, parts), str(record.get("tier") or ""), *reasons]).lower()
