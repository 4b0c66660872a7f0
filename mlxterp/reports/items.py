"""One entry of the log as the values that a page shows.

Lives here: verdicts and what they mean, the analyses and numbers inside an entry. Does not live here: which
entries stand where (`investigation.py`), the keep rule (`mlxterp.autointerpret`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxterp.errors import MlxterpError
from mlxterp.results import AnalysisResult
from mlxterp.results.entry_results import analyses, named_numbers
from mlxterp.results.views import Drawable, Show, drawables
from mlxterp.text import clip, duration, number

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

_FIGURES_SHOWN = 2
_FIGURES_OF_ENTRY = 6
_MEANINGS = {
    "supported": "Declared before it ran; the held-out measurement supports it.",
    "refuted": "Declared before it ran; the held-out measurement shows the opposite.",
    "ruled_out": "Declared before it ran; the held-out measurement rules out an effect that would matter.",
    "inconclusive": "The held-out measurement decides it neither way.",
    "lead": "The researcher calls it informative; the run was clean. "
    "The supervisor has not confirmed it on the pairs that it holds out.",
    "note": "The run was clean; the researcher does not call it informative.",
    "retracted": "A later experiment overturned it.",
    "interrupted": "It began and did not end: the supervisor or the machine stopped.",
    "by hand": "Logged by hand: no supervisor saw it run, and nothing checked it.",
    "invalid:contract": "It changed what an experiment may not change.",
    "invalid:execution": "It crashed, ran out of time or memory, or was killed.",
    "invalid:nonfinite": "Its numbers are missing or not finite.",
    "invalid:no_op": "Its intervention changed nothing, or it repeats another experiment.",
    "invalid:instrument": "The positive control failed, so nothing measured then can be trusted.",
}


@dataclass(frozen=True)
class Badge:
    """A verdict as a reader sees it: its label, its tone (a CSS class), what it means."""

    label: str
    tone: str
    meaning: str


@dataclass(frozen=True)
class Item:
    """One entry of the log as the templates print it."""

    id: str
    step: str
    group: str
    badge: Badge
    hypothesis: str
    headline: str
    conclusion: str
    method: str
    seconds: str
    effect: str
    reasons: tuple[str, ...]
    finding: str
    numbers: tuple[tuple[str, str], ...] = ()
    figures: tuple[Drawable, ...] = ()
    more: tuple[Show, ...] = ()
    summaries: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    error: str = ""


def item_of(project: Path, entry: ExperimentEntry) -> Item:
    """The entry as a page shows it; what cannot be shown is named in its `problems`."""
    record = entry.record or {}
    group, badge = _verdict(entry)
    shows: list[Show] = []
    summaries, problems = [], []
    for where, data in analyses(entry.result):
        try:
            result = AnalysisResult.from_dict(data)
            shows += result.shows()
            summaries.append(result.summary())
        except (
            MlxterpError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            ArithmeticError,
        ) as error:
            problems.append(f"{where} cannot be shown: {type(error).__name__}: {clip(str(error), 300)}")
    figures = drawables(shows)
    rest = [show for show in shows if show not in figures[:_FIGURES_SHOWN]]
    hidden = figures[_FIGURES_OF_ENTRY:]
    if hidden:
        rest = [show for show in rest if show not in hidden]
        problems.append(f"{len(hidden)} more figures are left out; the log holds their numbers.")
    headline, rest_of_conclusion = _headline(clip(entry.conclusion))
    return Item(
        id=entry.experiment_id if re.fullmatch(r"[\w.-]{1,40}", entry.experiment_id) else "unnumbered",
        step=_words(entry.result.get("step") or entry.metadata.get("step") or entry.method or "no report"),
        group=group,
        badge=badge,
        hypothesis=clip(entry.hypothesis),
        headline=headline,
        conclusion=rest_of_conclusion,
        method=entry.method,
        seconds="" if entry.duration_seconds is None else duration(entry.duration_seconds),
        effect=_effect(record),
        reasons=tuple(clip(str(reason), 600) for reason in _listed(record.get("reasons"))),
        finding=_finding_path(project, entry.experiment_id),
        numbers=tuple(named_numbers(entry.result)),
        figures=tuple(figures[:_FIGURES_SHOWN]),
        more=tuple(rest),
        summaries=tuple(summaries),
        problems=tuple(problems),
        error=_error(entry),
    )


def _headline(conclusion: str) -> tuple[str, str]:
    """The first sentence, and what follows it."""
    text = conclusion.strip()
    end = re.match(r"[^\n]{12,240}?[.!?](?=\s+\S)|[^\n]{12,240}(?=\n)", text)
    return (end.group(), text[end.end() :].strip()) if end else (text, "")


def _verdict(entry: ExperimentEntry) -> tuple[str, Badge]:
    """The group an entry belongs to in the tally, and its badge."""
    if not entry.record:
        tone = "hand" if entry.informative else "quiet"
        label = "by hand, informative" if entry.informative else "by hand"
        return "by hand", Badge(label, tone, _MEANINGS["by hand"])
    verdict = str(entry.record.get("verdict") or "")
    tier = str(entry.record.get("tier") or "")
    if tier == "retracted" or verdict == "retracted":
        return "retracted", Badge("retracted", "wrong", _MEANINGS["retracted"])
    execution = entry.record.get("execution")
    if verdict == "interrupted" or (
        isinstance(execution, Mapping) and execution.get("status") == "interrupted"
    ):
        return "interrupted", Badge("interrupted", "wrong", _MEANINGS["interrupted"])
    if verdict.startswith("invalid"):
        return "invalid", Badge(verdict, "wrong", _MEANINGS.get(verdict, "It does not count."))
    if tier in ("finding", "claim"):
        return tier, Badge(f"{tier}: {_words(verdict)}", "finding", _MEANINGS.get(verdict, ""))
    if tier == "lead":
        return "lead", Badge("lead", "lead", _MEANINGS["lead"])
    if verdict == "inconclusive":
        return "inconclusive", Badge("inconclusive", "quiet", _MEANINGS["inconclusive"])
    return "note", Badge(_words(verdict) or "note", "quiet", _MEANINGS.get(verdict, _MEANINGS["note"]))


def _error(entry: ExperimentEntry) -> str:
    """What a failed run left behind, where a supervisor recorded it."""
    if not entry.record:
        return ""
    parts = [entry.result.get("error"), entry.result.get("traceback"), entry.result.get("printed")]
    return clip("\n\n".join(part for part in parts if isinstance(part, str) and part.strip()), 4000)


def _effect(record: Mapping[str, Any]) -> str:
    """The held-out effect as a sentence, where a judge measured one."""
    measured = record.get("measured")
    confirm = measured.get("confirm") if isinstance(measured, Mapping) else None
    if not isinstance(confirm, Mapping) or not isinstance(confirm.get("effect"), (int, float)):
        return ""
    text = f"Held-out effect {number(confirm['effect'])}"
    ci = confirm.get("ci")
    if isinstance(ci, (list, tuple)) and len(ci) == 2 and all(isinstance(end, (int, float)) for end in ci):
        text += f", interval {number(ci[0])} to {number(ci[1])}"
    if isinstance(confirm.get("n"), int):
        text += f", {confirm['n']} items"
    return text + "."


def _finding_path(project: Path, experiment_id: str) -> str:
    folder = project / "findings"
    if not re.fullmatch(r"[0-9]{1,9}", experiment_id) or not folder.is_dir():
        return ""
    found = sorted(folder.glob(f"{experiment_id}-*"))
    return f"findings/{found[0].name}" if found else ""


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _words(name: Any) -> str:
    return str(name).replace("_", " ")
