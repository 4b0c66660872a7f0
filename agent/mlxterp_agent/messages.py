"""The texts of the command about an investigation: its status, its log, its last message."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.display.json_lines import entry_fields
from mlxterp_agent.exit_codes import CONTRACT, INTERRUPTED, Ended
from mlxterp_agent.state_md import budget_words
from mlxterp_agent.storage.record import tally_text, verdict_of
from mlxterp_agent.supervisor.project_view import Overview
from mlxterp_agent.text import duration, one_line

_SHOWN = 8
_ANSWER_AMONG = 10
"""Newest entries in which a conclusion is looked for."""
_KEPT_SHOWN = 12


def status_text(seen: Overview) -> str:
    """One screen: question, model, verdicts, budget, supervisor, the last experiments."""
    config = seen.project.config
    who = "not supervised now"
    if seen.holder is not None:
        since = f" since {datetime.fromtimestamp(seen.holder.started):%H:%M}" if seen.holder.started else ""
        who = f"supervised by process {seen.holder.pid or 'unknown'}{since}"
    lines = [
        f"question   {one_line(config.question, 200)}",
        f"model      {one_line(config.model, 100)}",
        f"state      {who}; {one_line(seen.stop_reason, 160)}",
        f"verdicts   {tally_text(seen.tally)}",
        f"budget     {budget_words(seen.budget())}",
    ]
    if seen.uncommitted:
        lines.append(f"git        {seen.uncommitted}")
    if seen.entries:
        lines += ["", *log_lines(seen.entries[-_SHOWN:])]
    return "\n".join(lines)


def status_fields(seen: Overview) -> dict[str, Any]:
    """The same for a program."""
    budget = seen.budget()
    return {
        "question": seen.project.config.question,
        "model": seen.project.config.model,
        "supervised_by": None if seen.holder is None else seen.holder.pid,
        "stop_reason": seen.stop_reason,
        "entries": len(seen.entries),
        "kept": seen.kept_count,
        "verdicts": dict(seen.tally),
        "spent": seen.spent._asdict(),
        "experiments_left": budget.experiments_left,
        "last": entry_fields(seen.entries[-1]) if seen.entries else None,
    }


def log_lines(entries: Sequence[ExperimentEntry]) -> list[str]:
    """The log as a table: id, verdict, time, conclusion."""
    width = max((len(verdict_of(entry)) for entry in entries), default=0)
    return [
        f"{entry.experiment_id or '----':>6}  {verdict_of(entry):{width}}  {_took(entry):>12}  "
        f"{one_line(entry.conclusion or entry.hypothesis, 120)}"
        for entry in entries
    ]


def _is_conclusion(entry: ExperimentEntry) -> bool:
    """Whether the scripted researcher concludes here: a synthesis, which measures nothing and is a note."""
    driver = (entry.record or {}).get("driver") or {}
    concludes = entry.metadata.get("role") == "conclusion" and driver.get("name") == "scripted"
    return concludes and not verdict_of(entry).startswith("invalid")


def closing_text(
    seen: Overview, ended: Ended, report_failed: str | None, *, report_soon: bool, width: int = 100
) -> str:
    """What was found, where the report is, how to continue."""
    project = seen.project.path
    kept = list(seen.kept())
    answers = [entry for entry in seen.entries[-_ANSWER_AMONG:] if _is_conclusion(entry)]
    lines = [
        f"Stopped: {one_line(ended.reason, 300)}",
        f"{seen.spent.experiments} experiments in {duration(seen.spent.seconds)}: {tally_text(seen.tally)}",
        "",
    ]
    for entry in answers[-1:]:
        lines += [
            *textwrap.wrap(f"Answer ({entry.experiment_id}): {one_line(entry.conclusion, 2000)}", width),
            "",
        ]
    others = [entry for entry in kept if entry not in answers[-1:]]
    shown = [f"  {e.experiment_id} {verdict_of(e)}: {e.conclusion}" for e in others[-_KEPT_SHOWN:]]
    lines.append("Kept:" if kept else "Nothing was kept.")
    lines += [f"  … and {len(others) - len(shown)} more"] if len(others) > len(shown) else []
    lines += [f"  {one_line(line.strip(), width - 2)}" for line in shown]
    lines.append("")
    if report_failed is not None:
        lines.append(f"Report:   not written: {one_line(report_failed, 300)}")
    else:
        lines.append(
            f"Report:   open {project / 'report.html'}{' (there in a few seconds)' if report_soon else ''}"
        )
    if seen.uncommitted:
        lines.append(f"Git:      {seen.uncommitted}")
    if kept:
        lines.append(f"Findings: {project / 'findings'}; committed in {project}, see git log")
    lines.append(f"Go on:    {_how_to_continue(seen, ended)}")
    return "\n".join(lines)


def _how_to_continue(seen: Overview, ended: Ended) -> str:
    project = seen.project.path
    if ended.exit_code == INTERRUPTED:
        return f"autointerp start {project}"
    if ended.exit_code == CONTRACT:
        return f"look at what was changed (autointerp log {project}), then autointerp start {project}"
    used = seen.options.max_experiments if seen.options is not None else None
    if used is not None and seen.spent.experiments >= used:
        return f"autointerp start {project} --max-experiments {2 * used}"
    return f"edit {project / 'program.md'}, or write your own experiment.py and: autointerp run {project}"


def _took(entry: ExperimentEntry) -> str:
    return "" if entry.duration_seconds is None else duration(entry.duration_seconds)
