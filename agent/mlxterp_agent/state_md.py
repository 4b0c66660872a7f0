"""STATE.md: what a researcher that begins without memory must know, in at most 6 kB.

It is written from the log and the budget alone, so the same log always gives the same bytes. Nothing is ever
read back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxterp.autointerpret.contract import STATE
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.project_files import write_in_project
from mlxterp_agent.storage.record import is_kept, tally, tally_text, verdict_of
from mlxterp_agent.text import cut, duration, one_line

LIMIT = 6000
_SECTION = 1700
_HEAD = 900
_MOST = 60
"""Lines of a section that are looked at; fewer fit."""


@dataclass(frozen=True)
class LogOverview:
    """What STATE.md shows of the log.

    Attributes:
        tally: how many lines ended with each verdict.
        kept, kept_count: the newest lines that were kept, newest first, and how many there are.
        last: the last ten, oldest first.
        others, others_count: the newest lines before them that were not kept, newest first, and how many
            there are.
    """

    tally: Mapping[str, int]
    kept: Sequence[ExperimentEntry]
    kept_count: int
    last: Sequence[ExperimentEntry]
    others: Sequence[ExperimentEntry]
    others_count: int


def overview_of(entries: Sequence[ExperimentEntry]) -> LogOverview:
    """The overview of these lines."""
    kept = [e for e in entries if is_kept(e)]
    others = [e for e in entries[:-10] if not is_kept(e)]
    return LogOverview(
        tally(entries),
        kept[: -_MOST - 1 : -1],
        len(kept),
        entries[-10:],
        others[: -_MOST - 1 : -1],
        len(others),
    )


def overview_of_index(index: LogIndex) -> LogOverview:
    """The overview of a log, from its index: only the lines that are shown are read."""
    entries, first_of_last = index.entries, len(index.entries) - 10
    last = entries[-10:]
    not_kept = [n for n in index.newest(_MOST + 10, kept=False) if n < first_of_last]
    return LogOverview(
        index.tally(),
        list(entries.at(index.newest(_MOST, kept=True))),
        index.kept(),
        last,
        list(entries.at(not_kept[:_MOST])),
        len(entries) - index.kept() - sum(not is_kept(e) for e in last),
    )


def state_text(*, question: str, model: str, log: LogOverview, budget: BudgetState) -> str:
    """The text of STATE.md: kept claims, open rivals, the last ten, dead ends, budget left."""
    head = "\n".join(
        [
            "# State of the investigation",
            "",
            "Written after every experiment from results.jsonl; edits are overwritten.",
            "",
            f"- Question: {one_line(question, 400)}",
            f"- Model: {one_line(model, 100)}",
            f"- Verdicts so far: {tally_text(log.tally)}",
            f"- Budget: {budget_words(budget)}",
        ]
    )
    sections = [
        _section(
            "Kept",
            [_line(e, with_conclusion=True) for e in log.kept],
            of=log.kept_count,
            none="Nothing yet.",
        ),
        _section("Open rivals", _rivals([*log.kept, *log.others, *log.last]), none="None declared."),
        _section(
            "Last ten",
            [_line(e, with_conclusion=not is_kept(e)) for e in reversed(log.last)],
            none="None yet.",
        ),
        _section(
            "Tried before, not kept",
            [_line(e, with_conclusion=False) for e in log.others],
            of=log.others_count,
            none="None.",
        ),
    ]
    return cut("\n\n".join([cut(head, _HEAD), *sections]), LIMIT - 1) + "\n"


def write_state(project: Path, *, question: str, model: str, log: LogOverview, budget: BudgetState) -> None:
    """Replaces STATE.md in one step, so that a reader never sees half of it."""
    text = state_text(question=question, model=model, log=log, budget=budget)
    write_in_project(project, STATE, text.encode(), flush=False)


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


def _section(title: str, lines: Sequence[str], *, none: str, of: int | None = None) -> str:
    body, size, total = [], 0, len(lines) if of is None else of
    for line in lines:
        size += len(line.encode()) + 1
        if size > _SECTION - 60:
            break
        body.append(line)
    if len(body) < total:
        body.append(f"- … and {total - len(body)} more in results.jsonl")
    return f"## {title}\n\n" + ("\n".join(body) if body else none)


def _line(entry: ExperimentEntry, *, with_conclusion: bool) -> str:
    words = entry.conclusion if with_conclusion and entry.conclusion else entry.hypothesis
    return f"- {entry.experiment_id} {verdict_of(entry)}: {one_line(words, 220 if with_conclusion else 110)}"


def _rivals(entries: Sequence[ExperimentEntry]) -> list[str]:
    lines: dict[str, None] = {}
    for entry in sorted(entries, key=lambda each: each.experiment_id, reverse=True):
        declared = (entry.record or {}).get("declared") or {}
        for rival in declared.get("rivals", ()):
            lines[f"- {entry.experiment_id}: {one_line(str(rival), 160)}"] = None
    return list(lines)
