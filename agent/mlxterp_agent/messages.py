"""The texts of the command about an investigation: its status, its log, its last message."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mlxterp.autointerpret.contract import SETUP, load_project
from mlxterp.autointerpret.entry import ExperimentEntry, is_closing
from mlxterp.autointerpret.scaffold import example_caution
from mlxterp.text import number
from mlxterp_agent.display.json_lines import entry_fields
from mlxterp_agent.endings import go_on
from mlxterp_agent.exit_codes import Ended
from mlxterp_agent.state_md import budget_words
from mlxterp_agent.storage.record import tally_text, tier_of, verdict_of
from mlxterp_agent.supervisor.prepare import Evidence, Made
from mlxterp_agent.supervisor.project_view import Overview
from mlxterp_agent.text import duration, one_line

_SHOWN = 8
_KEPT_SHOWN = 12
_NEWEST = 50
"""Lines among which the conclusion and the closing line are looked for."""


def prompts_text(made: Made) -> str:
    """The table of a person's own prompts, and its summary; "" for a scaffold's example."""
    return "" if made.prompts is None else f"{made.prompts.table()}\n\n{made.prompts.summary()}"


def made_text(made: Made, evidence: Evidence) -> str:
    """What `init` made, what can be decided with it, and what to do next."""
    project = load_project(made.path)
    caution = example_caution(made.path, project.config)
    lines = [text] if (text := prompts_text(made)) else []
    lines.append(f"made {made.path}")
    if caution:
        lines += [
            f"EXAMPLE: {caution}.",
            f"  question   {one_line(project.config.question, 200)}",
            "  What `start` would measure is the example. Bring pairs of your own, in a new directory: "
            f"autointerp init DIR --question Q --prompts FILE; or put them into {made.path / SETUP}.",
        ]
    lines.append(evidence.text)
    if not evidence.usable:
        lines.append(f"Correct {made.path / SETUP} before you start it.")
    elif caution:
        lines.append(f"When setup.py holds pairs of the question: autointerp start {made.path}")
    else:
        lines.append(f"Read program.md and setup.py there, then: autointerp start {made.path}")
    return "\n".join(lines)


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
        *([f"prompts    {caution}"] if (caution := example_caution(seen.project.path, config)) else []),
        f"state      {who}; {one_line(seen.stop_reason, 160)}",
        f"verdicts   {tally_text(seen.tally)}",
        f"budget     {budget_words(seen.budget())}",
    ]
    if seen.history.exploring_cpu:
        lines.append(f"computed   {_cpu_words(seen)}")
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
        "cpu_seconds": {
            "exploring": round(seen.history.exploring_cpu, 1),
            "judging": round(seen.history.judging_cpu, 1),
        },
        "experiments_left": budget.experiments_left,
        "last": entry_fields(seen.entries[-1]) if seen.entries else None,
    }


def _cpu_words(seen: Overview) -> str:
    history = seen.history
    return (
        f"{history.exploring_cpu:.0f} s of CPU time by experiments, {history.judging_cpu:.0f} s by measuring "
        "their claims again"
    )


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
    answer = _conclusion(seen)
    kept = [entry for entry in seen.kept() if entry != answer]
    lines = [
        f"Stopped: {one_line(ended.reason, 300)}",
        f"{seen.spent.experiments} experiments in {duration(seen.spent.seconds)}: {tally_text(seen.tally)}",
        *([_cpu_words(seen)] if seen.history.exploring_cpu else []),
        "",
    ]
    if answer is not None:
        caution = example_caution(project, seen.project.config)
        title = "Of the scaffold's example, which does not answer the question" if caution else "Answer"
        text = f"{title} ({answer.experiment_id}): {one_line(answer.conclusion, 2000)}"
        lines += [*textwrap.wrap(text, width), ""]
    found = [entry for entry in kept if tier_of(entry) != "lead"]
    leads = [entry for entry in kept if tier_of(entry) == "lead"]
    lines += _listed("Findings, measured again on held-out pairs:", found, width, _held_out_numbers(seen))
    lines += _listed("Leads, not confirmed:", leads, width, {})
    if not kept:
        lines.append("Nothing was kept.")
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
    if found:
        lines.append(f"Replay:   cd {project} && autointerp replay --all")
    lines.append(f"Go on:    {go_on(ended, project, seen.options)}")
    return "\n".join(lines)


def _conclusion(seen: Overview) -> ExperimentEntry | None:
    """The newest entry that draws the conclusion of the investigation; None without one."""
    newest = list(seen.entries[-_NEWEST:])
    return next((each for each in reversed(newest) if _is_conclusion(each)), None)


def _held_out_numbers(seen: Overview) -> dict[str, str]:
    """By the id of an entry, its effect and interval, where the investigation is closed."""
    found: dict[str, str] = {}
    for entry in seen.entries[-_NEWEST:]:
        if is_closing(entry):
            for name, each in entry.result["held_out"].items():
                found[name] = f"{number(each['effect'])} [{number(each['low'])}, {number(each['high'])}]"
    return found


def _listed(
    title: str, entries: Sequence[ExperimentEntry], width: int, numbers: Mapping[str, str]
) -> list[str]:
    """The newest of some entries below a title; nothing without entries."""
    if not entries:
        return []
    shown = entries[-_KEPT_SHOWN:]
    lines = [title]
    lines += [f"  … and {len(entries) - len(shown)} more"] if len(entries) > len(shown) else []
    for entry in shown:
        known = numbers.get(entry.experiment_id)
        measured = "" if known is None else f" {known}"
        text = f"{entry.experiment_id} {verdict_of(entry)}{measured}: {entry.conclusion}"
        lines.append(f"  {one_line(text, width - 2)}")
    return lines


def _took(entry: ExperimentEntry) -> str:
    return "" if entry.duration_seconds is None else duration(entry.duration_seconds)
