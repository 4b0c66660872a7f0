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
from mlxterp.reports.evidence import Evidence, HeldOut, evidence_of, gate_sentence
from mlxterp.reports.sourced import (
    NOTHING,
    Reference,
    Sentence,
    Sourced,
    from_line,
    plain_id,
    quoted,
    sentence,
)
from mlxterp.results import AnalysisResult
from mlxterp.results.entry_results import analyses, named_numbers
from mlxterp.results.views import Drawable, Show, drawables
from mlxterp.text import clip, duration

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

_FIGURES_SHOWN = 2
_FIGURES_OF_ENTRY = 6
_MEANINGS = {
    "supported": "Declared before it ran; measured again on held-out pairs, twice, it holds.",
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
    """One entry of the log as the templates print it.

    Attributes:
        heading: what it says, in one sentence: of a claim the verdict and the claim, else the first sentence
            of the conclusion.
        rest: of the conclusion. `summary` is all of it, `asked` the hypothesis, both cut to fit a table.
        evidence, searched, gate: of a declared claim.
        numbers: the numbers that the entry's own code logged under names of its own.
    """

    id: str
    step: Sourced
    group: str
    badge: Badge
    heading: Sentence
    rest: Sourced | None
    summary: Sourced
    hypothesis: Sourced
    asked: Sourced
    method: Sourced
    seconds: Sourced | None
    evidence: Evidence
    searched: Sentence
    gate: Sentence
    would_change: Sentence
    overturned: Sentence
    judged: bool
    reasons: tuple[Sourced, ...]
    finding: str
    features: tuple[str, ...] = ()
    numbers: tuple[tuple[str, str], ...] = ()
    figures: tuple[Drawable, ...] = ()
    more: tuple[Show, ...] = ()
    summaries: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Context:
    """What other lines say of an entry.

    Attributes:
        held_out: its numbers from the closing line; None before that, and for what was not judged.
        scale: what the pictures of effects have to reach; None without any.
        searched: how many sites were measured before it was declared.
        retracted_by: the id of the line that overturned it.
    """

    held_out: HeldOut | None = None
    scale: tuple[float, float] | None = None
    searched: Sentence = NOTHING
    retracted_by: str | None = None


def item_of(project: Path, entry: ExperimentEntry, context: Context) -> Item:
    """The entry as a page shows it; what cannot be shown is named in its `problems`."""
    record, name = entry.record or {}, entry.experiment_id
    declared = record.get("declared") or {}
    group, badge = _verdict(entry)
    if context.retracted_by is not None:
        group = "retracted"
        badge = Badge("retracted", "wrong", _MEANINGS["retracted"])
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
    first, others = _headline(clip(entry.conclusion))
    heading, others = _heading(entry, first, others)
    took = entry.duration_seconds
    return Item(
        id=plain_id(name),
        step=_step(entry),
        group=group,
        badge=badge,
        heading=heading,
        rest=quoted(name, "conclusion", text=others) if others else None,
        summary=quoted(name, "conclusion", text=clip(entry.conclusion, 220)),
        hypothesis=quoted(name, "hypothesis", text=clip(entry.hypothesis)),
        asked=quoted(name, "hypothesis", text=clip(entry.hypothesis, 220)),
        method=quoted(name, "method", text=clip(entry.method)),
        seconds=None
        if took is None
        else from_line(name, "duration_seconds", value=took, text=duration(took)),
        evidence=evidence_of(entry, context.held_out, context.scale),
        searched=context.searched if declared else Sentence(),
        gate=gate_sentence(entry, context.held_out),
        would_change=_would_change(name, declared),
        overturned=sentence("It was ", Reference(context.retracted_by), ".")
        if context.retracted_by is not None
        else NOTHING,
        judged=bool((record.get("measured") or {}).get("confirm")),
        reasons=tuple(
            quoted(name, "record", "reasons", i, text=clip(str(reason), 600))
            for i, reason in enumerate(_listed(record.get("reasons")))
        ),
        finding=_finding_path(project, name),
        features=_features(declared),
        numbers=tuple(named_numbers(entry.result)),
        figures=tuple(figures[:_FIGURES_SHOWN]),
        more=tuple(rest),
        summaries=tuple(summaries),
        problems=tuple(problems),
        error=_error(entry),
    )


_VERDICT_FIRST = {
    "supported": "Supported: ",
    "refuted": "Refuted, the opposite was measured: ",
    "ruled_out": "Ruled out: ",
}


def _heading(entry: ExperimentEntry, first: str, others: str) -> tuple[Sentence, str]:
    """The sentence over an entry, and what of its conclusion that leaves unsaid."""
    record, name = entry.record or {}, entry.experiment_id
    claim = (record.get("declared") or {}).get("claim")
    verdict = _VERDICT_FIRST.get(str(record.get("verdict")))
    if isinstance(claim, str) and claim.strip() and verdict:
        said = quoted(name, "record", "declared", "claim", text=clip(claim.strip(), 600))
        left = others if claim.strip() in first else f"{first} {others}".strip()
        return sentence(verdict, said), left
    return sentence(quoted(name, "conclusion", text=first)), others


def _step(entry: ExperimentEntry) -> Sourced:
    for keys, value in (
        (("result", "step"), entry.result.get("step")),
        (("metadata", "step"), entry.metadata.get("step")),
        (("method",), entry.method),
    ):
        if value:
            return quoted(entry.experiment_id, *keys, text=clip(_words(value), 80))
    return Sourced("no report")


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
        group = "ruled out" if verdict == "ruled_out" else "finding"
        return group, Badge(f"{tier}: {_words(verdict)}", "finding", _MEANINGS.get(verdict, ""))
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


def _would_change(name: str, declared: Mapping[str, Any]) -> Sentence:
    """What the researcher said would make the claim wrong, and the explanations that it leaves open."""
    if not declared:
        return Sentence()
    at = ("record", "declared")
    said = clip(str(declared.get("falsified_if") or "?"), 300).rstrip(".")
    text = sentence("It would be wrong if ", quoted(name, *at, "falsified_if", text=said), ".")
    for i, each in enumerate(declared.get("rivals") or ()):
        rival = quoted(name, *at, "rivals", i, text=clip(str(each), 200).rstrip("."))
        text = sentence(text, " Rival explanations: " if i == 0 else " ", rival, ".")
    return text


def _features(declared: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the features that a claim intervenes on."""
    given = (declared.get("intervention") or {}).get("features") or ()
    return tuple(f"f{each}" for each in given if type(each) is int and each >= 0)


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
