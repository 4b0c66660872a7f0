"""Which experiment comes next: the scripted researcher's decisions, from the log alone.

`next_step(read(entries), …)` is a pure function, so a supervisor that was killed goes on where it was.
Here live what a study is, what a budget allows, and what becomes of a step that failed. What is asked, and in
which order, belongs to a study (`heads/`, `features/`); writing experiment.py is in `researcher.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry

MOST_FAILURES = 2
MOST_INTERRUPTIONS = 3
PLENTY = 10**6

FAILED = "it failed"
NO_BUDGET = "the budget did not reach that far"


@dataclass(frozen=True)
class Measured:
    """What a step found: its entry and the `numbers` it reported."""

    entry_id: str
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """What the log says.

    Attributes:
        measured: by step, the newest valid entry.
        failures: by step, why each run of it ended without a valid entry.
        interruptions: by step, how many runs were cut off from outside, which says nothing about the step.
        skipped: by step, why it is left out. Filled in by `next_step`.
    """

    measured: Mapping[str, Measured] = field(default_factory=dict)
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interruptions: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, step: str) -> Mapping[str, Any] | None:
        """The numbers of a measured step; None if it was not measured."""
        found = self.measured.get(step)
        return None if found is None else found.numbers


@dataclass(frozen=True)
class Question:
    """What is a step's own: template, prediction, values for the template."""

    template: str
    hypothesis: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """An experiment to write.

    Attributes:
        template: its name in `templates/experiments/`.
        attempt: 1, or 2 for the cheaper variant after a failure.
        values: what the template needs.
    """

    name: str
    template: str
    attempt: int = 1
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Skip:
    """A step that has nothing to ask here, and why, now or for good (`lasting`)."""

    reason: str
    lasting: bool = False


@dataclass(frozen=True)
class Answered:
    """The conclusion is in the log, or could not be written; nothing is left to do."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Without its first step a study has nothing to investigate."""

    reason: str


Next = Step | Answered | GiveUp
Build = Callable[[str, Known, int], Step | Skip]

CONCLUSION = "conclusion"


@dataclass(frozen=True)
class Study:
    """What one kind of investigation asks.

    Attributes:
        order: its steps. Without the first there is nothing to investigate; the last is the conclusion.
        essential: the steps that a short budget is spent on.
        optional: the others, those first that are given up last.
        build: a step as it would be run now, or why it has nothing to ask.
        nothing: what it means that the first step failed.
    """

    order: tuple[str, ...]
    essential: tuple[str, ...]
    optional: tuple[str, ...]
    build: Build
    nothing: str


def step_of(name: str, asked: Question | Skip, attempt: int) -> Step | Skip:
    """What a study asks as an experiment to write; a step that has nothing to ask stays as it is."""
    if isinstance(asked, Skip):
        return asked
    metadata = {"researcher": "scripted", "step": name, "attempt": attempt}
    if name == CONCLUSION:
        metadata["role"] = "conclusion"
    values = {"step": name, "hypothesis": asked.hypothesis, "metadata": metadata, **asked.values}
    return Step(name, asked.template, attempt, values)


def read(entries: Iterable[ExperimentEntry], study: Study) -> Known:
    """What these entries say, oldest first.

    An experiment that crashed reported nothing; its line carries the first line of its docstring, which
    begins with the name of the step. Entries of anybody else are left alone.
    """
    known = Known()
    for entry in entries:
        step, problem = _step_of(entry, study.order), _problem_of(entry)
        if step is None:
            continue
        numbers = entry.result.get("numbers")
        if problem is None and isinstance(numbers, Mapping):
            known = replace(known, measured={**known.measured, step: Measured(entry.experiment_id, numbers)})
        elif _was_interrupted(entry):
            count = known.interruptions.get(step, 0) + 1
            known = replace(known, interruptions={**known.interruptions, step: count})
        else:
            why = (*known.failures.get(step, ()), problem or "its entry holds no numbers")
            known = replace(known, failures={**known.failures, step: why})
    return known


def next_step(known: Known, left: int | None, study: Study) -> Next:
    """The next experiment when `left` more may run (None: no limit); one is kept for the conclusion."""
    build, first = study.build, study.order[0]
    if concluded := known.numbers(CONCLUSION):
        done = "the question is answered" if concluded.get("answered") else "the question stays open"
        return Answered(f"{done}: {known.measured[CONCLUSION].entry_id} is the conclusion")
    left = PLENTY if left is None else left
    while True:
        open_steps = [
            name for name in study.order if name not in known.measured and name not in known.skipped
        ]
        given_up = [name for name in open_steps if _is_given_up(known, name)]
        if first in given_up:
            return GiveUp(f"{study.nothing}: {_why(known, first)}")
        if CONCLUSION in given_up:
            return Answered("everything is measured, but the conclusion could not be logged")
        if given_up:
            known = _skipping(known, given_up[0], f"{FAILED}: {_why(known, given_up[0])}")
            continue
        steps = {name: build(name, known, len(known.failures.get(name, ())) + 1) for name in open_steps}
        hopeless = {
            name: step.reason for name, step in steps.items() if isinstance(step, Skip) and step.lasting
        }
        if hopeless:
            known = replace(known, skipped={**known.skipped, **hopeless})
            continue
        allowed = _allowed(study, open_steps, left)
        for name in open_steps:
            if name not in allowed:
                known = _skipping(known, name, NO_BUDGET)
        name = next(name for name in open_steps if name in allowed)
        # Built again: what is skipped is now known, and the conclusion says so.
        step = build(name, known, len(known.failures.get(name, ())) + 1)
        if isinstance(step, Step):
            return step
        known = _skipping(known, name, step.reason)


def _allowed(study: Study, open_steps: Sequence[str], left: int) -> set[str]:
    """The open steps that `left` experiments pay for: the conclusion, what is essential, then the rest."""
    worth = [CONCLUSION, *(name for name in study.essential if name != CONCLUSION), *study.optional]
    return set([name for name in worth if name in open_steps][: max(1, left)])


def _is_given_up(known: Known, name: str) -> bool:
    failed = len(known.failures.get(name, ())) + known.interruptions.get(name, 0) // MOST_INTERRUPTIONS
    return failed >= MOST_FAILURES


def _why(known: Known, name: str) -> str:
    return (*known.failures.get(name, ()), "its runs were interrupted")[0]


def _skipping(known: Known, name: str, reason: str) -> Known:
    return replace(known, skipped={**known.skipped, name: reason})


def _step_of(entry: ExperimentEntry, order: Sequence[str]) -> str | None:
    """The step an entry belongs to; None if it is not one of ours."""
    step = entry.result.get("step")
    if step is None and _problem_of(entry) is not None:
        step = entry.hypothesis.partition(":")[0]
    return step if isinstance(step, str) and step in order else None


def _problem_of(entry: ExperimentEntry) -> str | None:
    """Why this entry says nothing; None if it does. Without a verdict (logged by hand) it counts as valid."""
    record = entry.record or {}
    verdict = str(record.get("verdict", ""))
    if not verdict.startswith("invalid") and verdict != "interrupted":
        return None
    if "step" not in entry.result and entry.conclusion:
        return entry.conclusion.rstrip(".")
    return "; ".join(str(reason) for reason in record.get("reasons") or [verdict])


def _was_interrupted(entry: ExperimentEntry) -> bool:
    return (entry.record or {}).get("verdict") == "interrupted"
