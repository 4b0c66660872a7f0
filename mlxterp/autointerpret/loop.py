"""`AutoInterpret`: experiments that are functions, run in this process and without a supervisor.

It logs every experiment, keeps what the keep rule keeps, and stops at its budget. It does not isolate, limit
the time or commit; `autointerp start` does. The model is held only to name it in the entries; mlx is not
imported.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp._files import write_atomically
from mlxterp.autointerpret.contract import FINDINGS, LOG
from mlxterp.autointerpret.encoding import compared, count, numbers, plain
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.keep_rule import RULE, Evidence, decide
from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.errors import BudgetReached, ContractError
from mlxterp.statistics.duplicates import is_copy
from mlxterp.text import slug

SMALL_EFFECT = 0.05
"""Below this an effect counts as nothing by default: 5 % of the recovered metric, or 0.05 logits."""

_TRACEBACK_LINES = 20


class AutoInterpret:
    """Runs experiments that are functions, and logs each to `<output_dir>/results.jsonl`.

    An existing log is continued: its experiments count towards the budget.

    Args:
        model: what the experiments investigate; its `name`, or its class, is noted in each entry.
        clean, corrupted: the prompts, noted in each entry.
        output_dir: made if it does not exist.
        max_experiments: the budget.
        clock, timer: seconds since 1970 for timestamps, and a clock that never jumps for durations.
    """

    def __init__(
        self,
        *,
        model: object = None,
        clean: str | None = None,
        corrupted: str | None = None,
        output_dir: str | Path,
        max_experiments: int = 50,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        if type(max_experiments) is not int or max_experiments < 1:
            raise ContractError(f"max_experiments is {max_experiments!r}. Give a whole number from 1 up.")
        self.model = model
        self.clean = clean
        self.corrupted = corrupted
        self.output_dir = Path(output_dir)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.max_experiments = max_experiments
        self.log = ExperimentLog(self.output_dir / LOG, clock=clock)
        self.log.repair()
        self._timer = timer
        self._entries = self.log.entries()

    @property
    def n_experiments(self) -> int:
        """How many experiments have been run, earlier runs on the same log included."""
        return len(self._entries)

    @property
    def is_done(self) -> bool:
        """Whether the budget is used up."""
        return self.n_experiments >= self.max_experiments

    def run_experiment(
        self,
        name: str,
        fn: Callable[[], Any],
        hypothesis: str = "",
        informative_check: Callable[[Any], object] | None = None,
    ) -> ExperimentEntry:
        """Calls `fn()` and logs what it returns: the result of an analysis, a dict of numbers, a number, a
        list.

        The entry is informative when the keep rule calls it a lead: `fn` did not raise, at most 5 % of its
        numbers are NaN or infinite, they are not those of an earlier experiment, and the check says yes. The
        check sees what `fn` returned; by default it asks for an effect above `SMALL_EFFECT` (results of
        analyses), or for any finite number. An `fn` that raises is logged with its error, and uses up one
        experiment like any other. What is kept is also written to `findings/NNN-name.json`.

        Raises:
            BudgetReached: all experiments have been run.
        """
        if self.is_done:
            raise BudgetReached(
                f"experiment {name!r} was not run: {self.n_experiments} of {self.max_experiments} "
                "experiments have been run. Raise max_experiments, or use another output_dir."
            )
        ran = _run(fn, informative_check, self._timer)
        verdict = decide(self._evidence(name, ran))
        entry = self.log.append(
            ExperimentEntry(
                hypothesis=hypothesis,
                method=name,
                result=ran.result,
                informative=verdict.kept,
                conclusion=ran.conclusion,
                duration_seconds=ran.seconds,
                metadata={
                    **self._facts(),
                    **ran.metadata,
                    "verdict": verdict.verdict,
                    "reasons": list(verdict.reasons),
                    "rule": RULE,
                },
            )
        )
        self._entries.append(entry)
        # Without an id the entry is with a supervisor, which keeps its own findings.
        if entry.informative and entry.experiment_id:
            self._keep(entry)
        return entry

    def summary(self) -> str:
        """The budget used, and what the log says."""
        state = "done" if self.is_done else f"{self.max_experiments - self.n_experiments} left"
        return f"{self.n_experiments}/{self.max_experiments} experiments ({state})\n{self.log.summary()}"

    def _facts(self) -> dict[str, Any]:
        facts = {"clean": self.clean, "corrupted": self.corrupted}
        if self.model is not None:
            facts["model"] = str(getattr(self.model, "name", type(self.model).__name__))
        return {key: value for key, value in facts.items() if value is not None}

    def _evidence(self, name: str, ran: _Outcome) -> Evidence:
        counted = count(ran.result)
        mine = compared(ran.result)
        twins = [e for e in self._entries if is_copy(compared(e.result), mine)]
        others = [e for e in twins if e.method != name]
        same = [e for e in twins if e.method == name]
        return Evidence(
            status=ran.status,
            numbers=counted.total,
            nonfinite=counted.nonfinite,
            identical_to=others[0].experiment_id if others and not same else None,
            repeat_of=same[0].experiment_id if same else None,
            informative=ran.informative,
        )

    def _keep(self, entry: ExperimentEntry) -> None:
        findings = self.output_dir / FINDINGS
        findings.mkdir(exist_ok=True)
        text = json.dumps(entry.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        name = f"{int(entry.experiment_id):03d}-{slug(entry.method, default='finding')}.json"
        write_atomically(findings / name, (text + "\n").encode())


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    status: str
    result: dict[str, Any]
    informative: bool
    conclusion: str
    seconds: float
    metadata: dict[str, Any]


def _run(
    fn: Callable[[], Any], check: Callable[[Any], object] | None, timer: Callable[[], float]
) -> _Outcome:
    started = timer()
    try:
        returned = fn()
        # Converting may compute: an mlx array is evaluated here, and can fail here.
        converted = plain(returned, "result")
    except Exception as error:  # noqa: BLE001 - whatever an experiment raises is its outcome
        return _Outcome(
            status="error",
            result={},
            informative=False,
            conclusion=_failure(error),
            seconds=timer() - started,
            metadata={"traceback": _tail(error)},
        )
    seconds = timer() - started
    result = _named(returned, converted.value)
    metadata: dict[str, Any] = dict(converted.flags())
    try:
        informative = bool(_default_check(returned, converted.value) if check is None else check(returned))
        conclusion = _conclusion(returned, result)
    except Exception as error:  # noqa: BLE001 - a check that raises must not cost the result it was to judge
        informative = False
        conclusion = f"the result is logged, and its check {_failure(error)}"
        metadata["traceback"] = _tail(error)
    return _Outcome(
        status="ok",
        result=result,
        informative=informative,
        conclusion=conclusion,
        seconds=seconds,
        metadata=metadata,
    )


def _failure(error: Exception) -> str:
    return f"failed with {type(error).__name__}: {error}".rstrip(": ")


def _tail(error: Exception) -> str:
    return "\n".join("".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:])


def _is_analysis(value: Any) -> bool:
    # No value is a result of an analysis before the module of results is loaded.
    results = sys.modules.get("mlxterp.results")
    return results is not None and isinstance(value, results.AnalysisResult)


def _named(returned: Any, value: Any) -> dict[str, Any]:
    """The plain value under a name, as `result` needs it."""
    if _is_analysis(returned):
        return {"analysis": value}
    if isinstance(value, dict):
        return value
    if value is None:
        return {}
    return {"values" if isinstance(value, list) else "value": value}


def _default_check(returned: Any, value: Any) -> bool:
    if _is_analysis(returned):
        strongest = returned.top_components(1)
        return bool(strongest) and abs(strongest[0].effect) > SMALL_EFFECT
    counted = count(value)
    return counted.total > counted.nonfinite


def _conclusion(returned: Any, result: Mapping[str, Any]) -> str:
    if _is_analysis(returned):
        first = next((line for line in str(returned.summary()).splitlines() if line.strip()), "")
        return first.strip()
    if not result:
        return "returned nothing"
    values = [f"{name} = {_short(value)}" for name, value in result.items()]
    return ", ".join(values[:6]) + (f" and {len(values) - 6} more" if len(values) > 6 else "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list)):
        finite = [n for n in numbers(value) if not isinstance(n, str)]
        span = f" from {min(finite):.4g} to {max(finite):.4g}" if finite else ""
        return f"{len(finite)} numbers{span}"
    return str(value)[:80]
