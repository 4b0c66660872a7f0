"""STATE.md: what a researcher that begins without memory must know, in at most 6 kB.

It is written from the log, the researcher's notes and the budget alone, so the same log always gives the same
bytes. Nothing is ever read back from it. Texts of agents are shown as text: no HTML of theirs, and no links.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlxterp.autointerpret.contract import STATE
from mlxterp.autointerpret.entry import ExperimentEntry, retractions
from mlxterp.autointerpret.fingerprint import claim_fingerprint
from mlxterp.autointerpret.prediction import COVERAGE
from mlxterp.text import percent
from mlxterp_agent.researcher_notes import notes_of
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.storage.log_index import LogIndex
from mlxterp_agent.storage.project_files import write_in_project
from mlxterp_agent.storage.record import (
    OPEN,
    control_of,
    dependents,
    is_kept,
    rivals_of,
    tally,
    tally_text,
    verdict_of,
)
from mlxterp_agent.text import cut, duration, one_line

LIMIT = 6000
_HEAD = 1100
_KEPT, _RIVALS, _LAST, _NOTES, _OTHERS = 1300, 650, 1500, 850, 500
"""Bytes of each section."""
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


def state_text(
    *, question: str, model: str, log: LogOverview, budget: BudgetState, notes: Sequence[str] = ()
) -> str:
    """The text of STATE.md: kept claims, open rivals, the last ten, notes, dead ends, budget left."""
    overturned = retractions(log.kept)
    head = "\n".join(
        [
            "# State of the investigation",
            "",
            "Written after every experiment from results.jsonl; edits are overwritten.",
            "",
            f"- Question: {as_text(question, 400)}",
            f"- Model: {as_text(model, 100)}",
            f"- Verdicts so far: {tally_text(log.tally)}",
            f"- Budget: {budget_words(budget)}",
            *_untested(log),
            *_calibration(log),
        ]
    )
    sections = [
        _section(
            "Kept",
            [
                _line(e, with_conclusion=True) + _also(others)
                for e, others in _distinct(log.kept)
                if e.experiment_id not in overturned
            ],
            of=log.kept_count - _repeated(log.kept),
            none="Nothing yet.",
            size=_KEPT,
        ),
        _section(
            "Open rivals",
            _rivals([*log.kept, *log.others, *log.last]),
            none="None declared.",
            size=_RIVALS,
        ),
        *(
            [_section("Retracted", _retracted(log.kept, overturned), none="", size=_RIVALS)]
            if overturned
            else []
        ),
        _section(
            "Last ten",
            [_line(e, with_conclusion=not is_kept(e)) for e in reversed(log.last)],
            none="None yet.",
            size=_LAST,
        ),
        _section(
            "Notes of the researcher",
            [f"- {as_text(note, 1000)}" for note in reversed(notes)],
            none="None. The tool `note` keeps one.",
            size=_NOTES,
        ),
        _section(
            "Tried before, not kept",
            [_line(e, with_conclusion=False) for e in log.others],
            of=log.others_count,
            none="None.",
            size=_OTHERS,
        ),
    ]
    return cut("\n\n".join([cut(head, _HEAD), *sections]), LIMIT - 1) + "\n"


def write_state(
    project: Path,
    *,
    question: str,
    model: str,
    log: LogOverview,
    budget: BudgetState,
    notice: Callable[[str], None],
) -> None:
    """Replaces STATE.md in one step, so that a reader never sees half of it.

    Args:
        notice: gets a sentence for what stood in its place, such as a link.
    """
    notes = notes_of(project)
    text = state_text(question=question, model=model, log=log, budget=budget, notes=notes)
    write_in_project(project, STATE, text.encode(), flush=False, notice=notice)


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


def as_text(text: str, width: int) -> str:
    """A text of an agent on one line of Markdown: what would be HTML or a link is shown as it is written."""
    shown = one_line(text, width).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown.replace("[", "\\[").replace("]", "\\]").replace("://", ":&#47;&#47;")


def _untested(log: LogOverview) -> list[str]:
    """That leads are no findings, and what the judge would accept."""
    leads = log.tally.get("lead", 0)
    if not leads:
        return []
    which = "your one lead was not" if leads == 1 else f"none of your {leads} leads was"
    return [
        f"- {which.capitalize()} tested on held-out pairs. The judge tests what experiment.py declares: "
        "`print(declare(result))` makes a HYPOTHESIS of a result, to paste at the top level."
    ]


def _calibration(log: LogOverview) -> list[str]:
    """How often predictions held, among the entries that are shown."""
    seen = {entry.experiment_id: entry for entry in (*log.kept, *log.last, *log.others)}
    numbers = [
        each
        for entry in seen.values()
        for each in ((entry.record or {}).get("predicted") or {}).get("numbers", ())
    ]
    if not numbers:
        return []
    held = sum(bool(each["held"]) for each in numbers)
    aim = f"{percent(COVERAGE)} would be calibrated"
    return [f"- Predictions: {held} of {len(numbers)} numbers lay in their intervals; {aim}."]


def _section(title: str, lines: Sequence[str], *, none: str, size: int, of: int | None = None) -> str:
    body, used, total = [], 0, len(lines) if of is None else of
    for line in lines:
        used += len(line.encode()) + 1
        if used > size - len(title) - 60:
            break
        body.append(line)
    if len(body) < total:
        body.append(f"- … and {total - len(body)} more in results.jsonl")
    return f"## {title}\n\n" + ("\n".join(body) if body else none)


def _line(entry: ExperimentEntry, *, with_conclusion: bool) -> str:
    words = entry.conclusion if with_conclusion and entry.conclusion else entry.hypothesis
    line = f"- {entry.experiment_id} {verdict_of(entry)}: {as_text(words, 220 if with_conclusion else 110)}"
    if with_conclusion and verdict_of(entry) == "lead":
        line += f" Control: {as_text(control_of(entry), 80) or 'none is named'}."
    return line


def _distinct(kept: Sequence[ExperimentEntry]) -> list[tuple[ExperimentEntry, list[str]]]:
    """Kept entries, newest first, with the ids of older ones that had the judge measure the same."""
    groups: dict[str, tuple[ExperimentEntry, list[str]]] = {}
    for entry in kept:
        declared = (entry.record or {}).get("declared")
        key = _measured_by(declared) if isinstance(declared, dict) else None
        if key is not None and key in groups:
            groups[key][1].append(entry.experiment_id)
        else:
            groups[key or f"{entry.experiment_id}"] = (entry, [])
    return list(groups.values())


def _measured_by(declared: Mapping[str, object]) -> str | None:
    """What a declaration has the judge measure, equal for rewordings; None if that cannot be read."""
    try:
        return claim_fingerprint(declared, "", mirrored=False)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _repeated(kept: Sequence[ExperimentEntry]) -> int:
    return sum(len(others) for _, others in _distinct(kept))


def _also(others: Sequence[str]) -> str:
    return (
        f" (the same was measured in {', '.join(others[:5])}{' …' if len(others) > 5 else ''})"
        if others
        else ""
    )


def _retracted(entries: Sequence[ExperimentEntry], overturned: Mapping[str, str]) -> list[str]:
    lines = [f"- {id}: {by} measured the opposite" for id, by in overturned.items()]
    return lines + [
        f"- {id} builds on {on}, which is retracted" for id, on in dependents(entries, overturned).items()
    ]


def _rivals(entries: Sequence[ExperimentEntry]) -> list[str]:
    lines: dict[str, None] = {}
    for entry in sorted(entries, key=lambda each: each.experiment_id, reverse=True):
        if verdict_of(entry) in OPEN:
            for rival in rivals_of(entry):
                lines[f"- {entry.experiment_id}: {as_text(rival, 160)}"] = None
    return list(lines)
