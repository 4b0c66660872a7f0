"""STATE.md: what a researcher that begins without memory must know, in at most 6 kB.

It is written from the log and the budget alone, so the same log always gives the same bytes. Nothing is ever
read back from it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.storage.record import dependents, retractions, tally_text, tier_of, verdict_of
from mlxterp_agent.text import cut, duration, one_line

LIMIT = 6000
_SECTION = 1700
_HEAD = 900


def state_text(*, question: str, model: str, entries: Sequence[ExperimentEntry], budget: BudgetState) -> str:
    """The text of STATE.md: kept claims, open rivals, the last ten, dead ends, budget left."""
    overturned = retractions(entries)
    kept = [e for e in entries if tier_of(e) not in (None, "note") and e.experiment_id not in overturned]
    rest = [e for e in entries[:-10] if e not in kept]
    head = "\n".join(
        [
            "# State of the investigation",
            "",
            "Written after every experiment from results.jsonl; edits are overwritten.",
            "",
            f"- Question: {one_line(question, 400)}",
            f"- Model: {one_line(model, 100)}",
            f"- Verdicts so far: {tally_text(entries)}",
            f"- Budget: {budget_words(budget)}",
        ]
    )
    sections = [
        _section("Kept", [_line(e, with_conclusion=True) for e in reversed(kept)], none="Nothing yet."),
        *([_section("Retracted", _retracted(entries, overturned), none="")] if overturned else []),
        _section("Open rivals", _rivals(entries), none="None declared."),
        _section(
            "Last ten",
            [_line(e, with_conclusion=e not in kept) for e in reversed(entries[-10:])],
            none="None yet.",
        ),
        _section(
            "Tried before, not kept", [_line(e, with_conclusion=False) for e in reversed(rest)], none="None."
        ),
    ]
    return cut("\n\n".join([cut(head, _HEAD), *sections]), LIMIT - 1) + "\n"


def write_state(
    project: Path, *, question: str, model: str, entries: Sequence[ExperimentEntry], budget: BudgetState
) -> None:
    """Replaces STATE.md in one step, so that a reader never sees half of it."""
    text = state_text(question=question, model=model, entries=entries, budget=budget)
    beside = project / ".STATE.md.tmp"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, project / "STATE.md")


def budget_words(budget: BudgetState) -> str:
    """What is left, in one line."""
    parts = [_part(budget.experiments, budget.experiments_left, "experiments")]
    if budget.seconds_left is None:
        parts.append(f"{duration(budget.seconds)} spent")
    else:
        parts.append(f"{duration(budget.seconds)} spent, {duration(max(0.0, budget.seconds_left))} left")
    if budget.usd is not None or budget.usd_left is not None:
        left = "" if budget.usd_left is None else f", ${budget.usd_left:.2f} left"
        parts.append(f"{'unknown dollars' if budget.usd is None else f'${budget.usd:.2f}'} spent{left}")
    if budget.tokens is not None or budget.tokens_left is not None:
        parts.append(_part(budget.tokens, budget.tokens_left, "tokens"))
    return "; ".join(parts)


def _part(spent: int | None, left: int | None, what: str) -> str:
    used = "unknown" if spent is None else f"{spent:,}"
    return f"{used} {what}" if left is None else f"{used} {what}, {left:,} left"


def _section(title: str, lines: Sequence[str], *, none: str) -> str:
    body, size = [], 0
    for count, line in enumerate(lines):
        size += len(line.encode()) + 1
        if size > _SECTION - 60:
            body.append(f"- … and {len(lines) - count} more in results.jsonl")
            break
        body.append(line)
    return f"## {title}\n\n" + ("\n".join(body) if body else none)


def _line(entry: ExperimentEntry, *, with_conclusion: bool) -> str:
    words = entry.conclusion if with_conclusion and entry.conclusion else entry.hypothesis
    return f"- {entry.experiment_id} {verdict_of(entry)}: {one_line(words, 220 if with_conclusion else 110)}"


def _retracted(entries: Sequence[ExperimentEntry], overturned: Mapping[str, str]) -> list[str]:
    lines = [f"- {id}: {by} measured the opposite" for id, by in overturned.items()]
    return lines + [
        f"- {id} builds on {on}, which is retracted" for id, on in dependents(entries, overturned).items()
    ]


def _rivals(entries: Sequence[ExperimentEntry]) -> list[str]:
    lines = []
    for entry in reversed(entries):
        declared = (entry.record or {}).get("declared") or {}
        lines += [
            f"- {entry.experiment_id}: {one_line(str(rival), 160)}" for rival in declared.get("rivals", ())
        ]
    return lines
