"""The report of an investigation: what the person finds in the morning, made from log entries alone.

Lives here: which entries stand where, the tally, the budget. Numbers come from the log; nothing is computed
anew. Does not live here: one entry (`items.py`), files and figures (`page.py`), the layout
(`templates/`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxterp.autointerpret.entry import is_closing, retractions
from mlxterp.reports.circuit_sketch import CircuitSketch, circuit_sketch
from mlxterp.reports.evidence import (
    calibration,
    effects_figure,
    failed_predictions,
    held_out_numbers,
    needs_a_person,
    next_experiments,
    scale_of,
    sites_searched,
)
from mlxterp.reports.feature_links import FeatureLinks
from mlxterp.reports.items import Context, Item, item_of
from mlxterp.reports.page import Page, moment, write
from mlxterp.reports.sourced import NOTHING, Sentence, Sourced, counted, given, joined, sentence
from mlxterp.results.entry_results import analyses
from mlxterp.results.views import Bars
from mlxterp.text import clip, duration

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

DASHBOARD = "features.html"
"""A dashboard of this name in the project: the report's features lead to it."""
_PLURALS = {
    "finding": "findings",
    "ruled out": "ruled out",
    "retracted": "retracted",
    "inconclusive": "inconclusive",
    "lead": "leads",
    "invalid": "invalid",
    "interrupted": "interrupted",
    "note": "notes",
    "by hand": "logged by hand",
}
"""What the first line counts, in its order."""


@dataclass(frozen=True)
class Limit:
    """What was spent of something, and how much there was."""

    name: str
    spent: Sourced | str
    limit: Sentence
    share: float | None


@dataclass(frozen=True)
class Investigation:
    """Everything the templates print."""

    question: Sourced
    model: str
    tally: Sentence
    spent: Sentence
    stop_reason: Sourced
    span: tuple[str, ...]
    answer: Item | None
    findings: tuple[Item, ...]
    leads: tuple[Item, ...]
    by_hand: tuple[Item, ...]
    tried: tuple[Item, ...]
    wrong: tuple[Item, ...]
    limits: tuple[Limit, ...]
    measured_with: tuple[tuple[str, str], ...]
    without_jail: Sentence = NOTHING
    first_kept: str = field(default="")
    caution: Sourced | None = None
    effects: Bars | None = None
    circuit: CircuitSketch | None = None
    needs: tuple[Sentence, ...] = ()
    surprises: tuple[Sentence, ...] = ()
    calibration: Sentence = NOTHING
    next_experiments: tuple[Sentence, ...] = ()
    selftest: Sourced | None = None
    dashboard: str = ""

    @property
    def shown_lead(self) -> Item | None:
        """Where no claim was decided: the newest lead with a figure, whose figure opens the page."""
        if self.findings or (self.answer is not None and self.answer.figures):
            return None
        return next((item for item in reversed(self.leads) if item.figures), None)

    @property
    def placed(self) -> tuple[str, ...]:
        """The ids of the entries that have an article of their own."""
        return tuple(item.id for item in (*self.findings, *self.leads, *self.by_hand, *self.wrong))


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

    Features lead to `features.html` in the project, if `save_dashboard` has written that.
    """
    view = investigation(
        project, entries, config=config, spent=spent, stop_reason=stop_reason, selftest=selftest
    )
    paths = (project / "report.md", project / "report.html")
    for path, format in zip(paths, ("markdown", "html"), strict=True):
        page = Page(
            format,
            figures_in="report_files/" if format == "markdown" else None,
            features=FeatureLinks(view.dashboard) if view.dashboard else None,
        )
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
    entries = [each for each in entries if not is_closing(each)]
    scale, searched = scale_of(entries, numbers), sites_searched(entries)
    items = [
        (
            item_of(
                project,
                entry,
                Context(
                    numbers.get(entry.experiment_id),
                    scale,
                    searched.get(entry.experiment_id, Sentence()),
                    overturned.get(entry.experiment_id),
                ),
            ),
            entry,
        )
        for entry in entries
    ]
    answers = [item for item, entry in items if entry.metadata.get("role") == "conclusion"]
    answer = answers[-1] if answers else None
    kept = [item for item, _ in items if item is not answer]
    leads = tuple(item for item in kept if item.group == "lead")
    findings = tuple(item for group in ("finding", "ruled out") for item in kept if item.group == group)
    first = next((item.id for item in (*findings, *leads)), "")
    stamps = [entry.timestamp for entry in entries if entry.timestamp is not None]
    asked = clip(str(config.get("question") or "Investigation"), 600)
    return Investigation(
        question=given("config", "question", value=None, text=asked),
        model=clip(str(config.get("model") or ""), 80),
        tally=_tally([item for item, _ in items]),
        spent=_spent_sentence(spent),
        stop_reason=given("run", "stop_reason", value=None, text=stop_reason),
        span=tuple(dict.fromkeys((moment(min(stamps)), moment(max(stamps))))) if stamps else (),
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
        circuit=circuit_sketch(entries, numbers, overturned),
        needs=needs_a_person(entries),
        caution=given("config", "caution", value=None, text=str(config["caution"]))
        if config.get("caution")
        else None,
        surprises=failed_predictions(entries),
        calibration=calibration(entries),
        next_experiments=next_experiments(entries),
        dashboard=DASHBOARD if (project / DASHBOARD).is_file() else "",
        selftest=given("run", "selftest", value=None, text=selftest) if selftest else None,
    )


def _tally(items: Sequence[Item]) -> Sentence:
    ids: dict[str, list[str]] = {}
    for item in items:
        ids.setdefault(item.group, []).append(item.id)
    if not items:
        return sentence("No experiments")
    shown = [g for g in _PLURALS if g in ids or (g in ("finding", "lead") and set(ids) != {"by hand"})]
    return joined(
        sentence(
            counted(ids.get(group, [])),
            f" {group if len(ids.get(group, [])) == 1 and group != 'by hand' else _PLURALS[group]}",
        )
        for group in shown
    )


def _without_jail(entries: Sequence[ExperimentEntry]) -> Sentence:
    """How many runs had no jail, as a sentence; empty if none is known to have had none."""
    runs: dict[Any, tuple[str, Any]] = {}
    for entry in entries:
        execution = (entry.record or {}).get("execution")
        if isinstance(execution, Mapping) and execution.get("isolation") is not None:
            runs[(entry.record or {}).get("run")] = entry.experiment_id, execution["isolation"]
    bare = [name for name, isolation in runs.values() if isolation == "none"]
    if not bare:
        return Sentence()
    return sentence(
        counted(bare),
        " of ",
        counted([name for name, _ in runs.values()]),
        " experiments ran without a jail, with all rights of the person who started "
        "them: their results are as trustworthy as the code that reported them.",
    )


def _spent_sentence(spent: Mapping[str, Any]) -> Sentence:
    parts: list[Sourced | str] = []
    if _known(spent.get("seconds")):
        seconds = spent["seconds"]
        parts.append(given("spent", "seconds", value=seconds, text=duration(float(seconds))))
    usd = spent.get("usd")
    parts.append(
        given("spent", "usd", value=usd, text=_amount(float(usd), "usd"))
        if usd is not None and _known(usd)
        else "dollars not known"
    )
    return joined(parts)


def _limits(config: Mapping[str, Any], spent: Mapping[str, Any]) -> tuple[Limit, ...]:
    rows: list[tuple[str, str, str, str]] = [
        ("experiments", "experiments", "max_experiments", "count"),
        ("time", "seconds", "hours", "seconds"),
        ("dollars", "usd", "max_usd", "usd"),
        ("tokens", "tokens", "max_tokens", "count"),
    ]
    found = []
    for name, used_by, limited_by, unit in rows:
        used, limit = spent.get(used_by), config.get(limited_by)
        if not (_known(used) or _known(limit) or name == "dollars"):
            continue
        most = None if not _known(limit) or limit is None else limit * (3600 if unit == "seconds" else 1)
        found.append(
            Limit(
                name=name,
                spent=given("spent", used_by, value=used, text=_amount(used, unit))
                if used is not None and _known(used)
                else "not known",
                limit=sentence("no limit")
                if most is None
                else sentence("of ", given("config", limited_by, value=limit, text=_amount(most, unit))),
                share=_share(used, most),
            )
        )
    return tuple(found)


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
