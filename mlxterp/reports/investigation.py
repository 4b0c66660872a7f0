"""The report of an investigation: what the person finds in the morning, made from log entries alone.

Lives here: which entries stand where, the tally, the budget. Numbers come from the log; nothing is computed
anew. Does not live here: one entry (`items.py`), files and figures (`page.py`), the layout
(`templates/`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxterp.reports.evidence import (
    calibration,
    effects_figure,
    failed_predictions,
    held_out_numbers,
    is_closing,
    needs_a_person,
    next_experiments,
    retractions,
)
from mlxterp.reports.items import Item, item_of
from mlxterp.reports.page import Page, moment, write
from mlxterp.results.entry_results import analyses
from mlxterp.results.views import Bars
from mlxterp.text import clip, duration

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

_PLURALS = {
    "finding": "findings",
    "ruled out": "ruled out",
    "lead": "leads",
    "note": "notes",
    "retracted": "retracted",
    "inconclusive": "inconclusive",
    "invalid": "invalid",
    "interrupted": "interrupted",
    "by hand": "logged by hand",
}


@dataclass(frozen=True)
class Limit:
    """What was spent of something, and how much there was."""

    name: str
    spent: str
    limit: str
    share: float | None


@dataclass(frozen=True)
class Investigation:
    """Everything the templates print."""

    question: str
    model: str
    tally: str
    spent: str
    stop_reason: str
    span: str
    answer: Item | None
    findings: tuple[Item, ...]
    leads: tuple[Item, ...]
    by_hand: tuple[Item, ...]
    tried: tuple[Item, ...]
    wrong: tuple[Item, ...]
    limits: tuple[Limit, ...]
    measured_with: tuple[tuple[str, str], ...]
    without_jail: str = field(default="")
    first_kept: str = field(default="")
    caution: str = field(default="")
    effects: Bars | None = None
    needs: tuple[str, ...] = ()
    surprises: tuple[str, ...] = ()
    calibration: str = ""
    next_experiments: tuple[str, ...] = ()
    selftest: str = ""
    closed: bool = False


def write_investigation_report(
    project: Path,
    entries: Sequence[ExperimentEntry],
    *,
    config: Mapping[str, Any],
    spent: Mapping[str, Any],
    stop_reason: str,
    selftest: str = "",
) -> tuple[Path, Path]:
    """Writes `report.md` (figures in `report_files/`) and `report.html` into the project; returns both paths.

    Args:
        entries: the log, oldest first; entries without a `record` were logged by hand.
        config: the project's configuration: question, model, the limits of the budget; `caution` says why
            what was measured does not answer the question.
        spent: `experiments`, `seconds`, `usd`, `tokens`; what is missing or None is not known.
        stop_reason: why the run ended, as a sentence or a few words.
        selftest: how often the rule keeps something false, as a sentence; "" if it was never measured here.
    """
    view = investigation(
        project, entries, config=config, spent=spent, stop_reason=stop_reason, selftest=selftest
    )
    paths = (project / "report.md", project / "report.html")
    for path, format in zip(paths, ("markdown", "html"), strict=True):
        page = Page(format, figures_in="report_files/" if format == "markdown" else None)
        write(path, page.render("investigation", view=view), page.files)
    return paths


def investigation(
    project: Path,
    entries: Sequence[ExperimentEntry],
    *,
    config: Mapping[str, Any],
    spent: Mapping[str, Any],
    stop_reason: str,
    selftest: str = "",
) -> Investigation:
    """The values of the report, before any template."""
    numbers, overturned = held_out_numbers(entries), retractions(entries)
    closed, entries = any(map(is_closing, entries)), [each for each in entries if not is_closing(each)]
    items = [
        (
            item_of(
                project,
                entry,
                held_out=numbers.get(entry.experiment_id),
                retracted_by=overturned.get(entry.experiment_id),
            ),
            entry,
        )
        for entry in entries
    ]
    answers = [item for item, entry in items if entry.metadata.get("role") == "conclusion"]
    answer = answers[-1] if answers else None
    kept = [item for item, _ in items if item is not answer]
    leads = tuple(item for item in kept if item.group == "lead")
    findings = tuple(item for item in kept if item.group in ("finding", "ruled out"))
    first = next((item.id for item in (*findings, *leads)), "")
    stamps = [entry.timestamp for entry in entries if entry.timestamp is not None]
    return Investigation(
        question=str(config.get("question") or "Investigation"),
        model=str(config.get("model") or ""),
        tally=_tally([item for item, _ in items]),
        spent=_spent_sentence(spent),
        stop_reason=stop_reason,
        span=f"{moment(min(stamps))} to {moment(max(stamps))}" if stamps else "",
        answer=answer,
        findings=findings,
        leads=leads,
        by_hand=tuple(item for item in kept if item.group == "by hand" and item.badge.tone == "hand"),
        tried=tuple(item for item, _ in items),
        wrong=tuple(item for item, _ in items if item.group in ("invalid", "interrupted", "retracted")),
        limits=_limits(config, spent),
        measured_with=_measured_with(entries, config),
        without_jail=_without_jail(entries),
        first_kept=first,
        effects=effects_figure(entries, numbers),
        needs=needs_a_person(entries),
        caution=str(config.get("caution") or ""),
        surprises=failed_predictions(entries),
        calibration=calibration(entries),
        next_experiments=next_experiments(entries),
        selftest=selftest,
        closed=closed,
    )


def _tally(items: Sequence[Item]) -> str:
    counts = Counter(item.group for item in items)
    if not items:
        return "No experiments"
    shown = [g for g in _PLURALS if counts[g] or (g in ("finding", "lead") and set(counts) != {"by hand"})]
    return ", ".join(f"{counts[g]} {g if counts[g] == 1 and g != 'by hand' else _PLURALS[g]}" for g in shown)


def _without_jail(entries: Sequence[ExperimentEntry]) -> str:
    """How many runs had no jail, as a sentence; "" if none is known to have had none."""
    runs: dict[Any, Any] = {}
    for entry in entries:
        execution = (entry.record or {}).get("execution")
        if isinstance(execution, Mapping) and execution.get("isolation") is not None:
            runs[(entry.record or {}).get("run")] = execution["isolation"]
    bare = sum(isolation == "none" for isolation in runs.values())
    if not bare:
        return ""
    return (
        f"{bare} of {len(runs)} experiments ran without a jail, with all rights of the person who started "
        "them: their results are as trustworthy as the code that reported them."
    )


def _spent_sentence(spent: Mapping[str, Any]) -> str:
    parts = [f"{spent['experiments']} experiments"] if isinstance(spent.get("experiments"), int) else []
    if _known(spent.get("seconds")):
        parts.append(duration(float(spent["seconds"])))
    parts.append(f"${spent['usd']:.2f}" if _known(spent.get("usd")) else "dollars not known")
    return ", ".join(parts)


def _limits(config: Mapping[str, Any], spent: Mapping[str, Any]) -> tuple[Limit, ...]:
    hours: Any = config.get("hours")
    rows: list[tuple[str, Any, Any, str]] = [
        ("experiments", spent.get("experiments"), config.get("max_experiments"), "count"),
        ("time", spent.get("seconds"), hours * 3600 if _known(hours) else None, "seconds"),
        ("dollars", spent.get("usd"), config.get("max_usd"), "usd"),
        ("tokens", spent.get("tokens"), config.get("max_tokens"), "count"),
    ]
    return tuple(
        Limit(
            name=name,
            spent=_amount(used, unit) if _known(used) else "not known",
            limit=f"of {_amount(limit, unit)}" if _known(limit) else "no limit",
            share=_share(used, limit),
        )
        for name, used, limit, unit in rows
        if _known(used) or _known(limit) or name == "dollars"
    )


def _share(used: Any, limit: Any) -> float | None:
    return min(1.0, used / limit) if _known(used) and _known(limit) and limit > 0 else None


def _amount(value: float, unit: str) -> str:
    if unit == "seconds":
        return duration(value)
    return f"${value:.2f}" if unit == "usd" else f"{value:,.0f}"


def _measured_with(
    entries: Sequence[ExperimentEntry], config: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """What produced the numbers: each name with every distinct value the log holds for it."""
    found: dict[str, dict[str, None]] = {"model": {}, "computed by": {}, "machine": {}, "researcher": {}}
    found |= {"rule": {}, "setup.py": {}, "program.md": {}}
    if config.get("model"):
        found["model"][str(config["model"])] = None
    for entry in entries:
        record = entry.record or {}
        driver = record.get("driver")
        driver = driver if isinstance(driver, Mapping) else {"name": driver}
        digests = record.get("digests")
        digests = digests if isinstance(digests, Mapping) else {}
        parts: list[tuple[str, Any]] = [
            ("computed by", record.get("blas")),
            ("machine", record.get("machine")),
            ("researcher", " ".join(str(driver[k]) for k in ("name", "model") if driver.get(k))),
            ("rule", record.get("rule")),
            ("setup.py", str(digests["setup"])[:16] if digests.get("setup") else None),
            ("program.md", str(digests["program"])[:16] if digests.get("program") else None),
        ]
        for _, data in analyses(entry.result):
            on = data.get("measured_on")
            if isinstance(on, Mapping):
                parts += [("model", on.get("model")), ("computed by", on.get("blas"))]
        for name, value in parts:
            if value:
                found[name][clip(_sentence(value), 200)] = None
    return tuple((name, "; ".join(list(values)[:6])) for name, values in found.items() if values)


def _sentence(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    return str(value)


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
