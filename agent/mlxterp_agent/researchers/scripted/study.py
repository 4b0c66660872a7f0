"""The definition of a study, and the choice of the next experiment from the log alone.

A study is a sequence of steps, given as data. `next_experiment(read(entries, study), left, study)` is a pure
function, so a killed supervisor resumes where it was. Contains: steps, their progress by the log, budget
limits, retries after a failure, and the conclusion. See `heads.py` and `features.py` for the steps
themselves, `researcher.py` for writing experiment.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry

CONCLUSION = "conclusion"
MOST_FAILURES = 2
"""A step that failed this often is left out; its second attempt asks for less."""
MOST_INTERRUPTIONS = 3
"""The number of interrupted runs that count as one failure."""
JUDGED = ("supported", "refuted", "ruled_out", "inconclusive")
FAILED = "it failed"
NO_BUDGET = "the budget did not reach that far"


@dataclass(frozen=True)
class Progress:
    """The progress of each step, by the log.

    Attributes:
        measured: the newest valid entry.
        failures: why each of its runs ended without a valid entry.
        interruptions: how many of its runs were cut off from outside, which is no evidence about the step.
        skipped: why it is left out. Filled in by `next_experiment`.
    """

    measured: Mapping[str, ExperimentEntry] = field(default_factory=dict)
    failures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    interruptions: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    def numbers(self, step: str) -> Mapping[str, Any]:
        """The numbers of a step; empty if it was not measured."""
        entry = self.measured.get(step)
        numbers: Mapping[str, Any] = {} if entry is None else entry.result["numbers"]
        return numbers

    def verdict(self, step: str) -> str | None:
        """What the judge decided on the claim that a step declared: "supported", "refuted", "ruled_out" or
        "inconclusive"; None if it was not judged, as without a supervisor."""
        entry = self.measured.get(step)
        verdict = None if entry is None else (entry.record or {}).get("verdict")
        return verdict if verdict in JUDGED else None

    def reasons(self, step: str) -> str:
        """The reasons of a step's verdict, or of its last failure."""
        entry = self.measured.get(step)
        reasons = [] if entry is None else (entry.record or {}).get("reasons") or []
        return "; ".join(map(str, reasons)) or (*self.failures.get(step, ()), "")[-1]

    def attempt(self, step: str) -> int:
        """Which attempt the next run of a step is: 1, or 2 after a failure."""
        return len(self.failures.get(step, ())) + 1

    def is_given_up(self, step: str, attempts: int = MOST_FAILURES) -> bool:
        """Whether a step failed, or was interrupted, too often to be run again."""
        failed = len(self.failures.get(step, ())) + self.interruptions.get(step, 0) // MOST_INTERRUPTIONS
        return failed >= attempts

    def why_given_up(self, step: str) -> str:
        """The reason of its first failure."""
        return (*self.failures.get(step, ()), "its runs were interrupted")[0]

    def skip(self, step: str, reason: str) -> Progress:
        """The same, with this step left out."""
        return replace(self, skipped={**self.skipped, step: reason})


Values = Mapping[str, Any]
"""The values of a template."""


@dataclass(frozen=True)
class Skip:
    """Why a step has nothing to ask: for now, or whatever other steps find (`lasting`)."""

    reason: str
    lasting: bool = False


Condition = Callable[[Progress], Skip | None]


@dataclass(frozen=True)
class Step:
    """One step of a study.

    Attributes:
        values: the template's values for an attempt, given the progress, or why there is nothing to ask.
        concludes: one sentence on what it measured; None if another step's sentence covers it.
        needs: the steps that must have been measured before, besides the study's first, which all need.
        applies: conditions on the progress.
        template: its hypothesis and the code of its experiment, in the study's templates; by default of the
            step's name.
        attempts: how often it may fail; once for a declared claim, whose second attempt would be the same.
    """

    name: str
    values: Callable[[Progress, int], Values | Skip]
    concludes: Callable[[Progress], str] | None = None
    needs: tuple[str, ...] = ()
    applies: tuple[Condition, ...] = ()
    template: str = ""
    attempts: int = MOST_FAILURES


@dataclass(frozen=True)
class Answer:
    """A study's answer in a few sentences."""

    text: str
    limits: Sequence[str] = ()  # of what was shown, the most serious first
    criterion_met: bool = False


@dataclass(frozen=True)
class Study:
    """The steps of one kind of investigation.

    Attributes:
        name: of the directory of its templates in `templates/experiments/`.
        steps: in the order in which they run; the conclusion follows them. Without the first there is nothing
            to investigate.
        priority: the names of the steps, those that a short budget is spent on first.
        criterion: the condition under which the question counts as answered.
        answer: the answer, from everything that was measured.
        cited: the numbers it rests on: a name, and the step and key where it is found.
        no_start: the reason to stop if the first step failed.
        applies: conditions of every step but the first.
    """

    name: str
    steps: tuple[Step, ...]
    priority: tuple[str, ...]
    criterion: str
    answer: Callable[[Progress], Answer]
    cited: tuple[tuple[str, str, str], ...]
    no_start: str
    applies: tuple[Condition, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The names of all steps, the conclusion last."""
        return (*(step.name for step in self.steps), CONCLUSION)

    def attempts(self, name: str) -> int:
        """How often a step may fail."""
        return next((step.attempts for step in self.steps if step.name == name), MOST_FAILURES)


@dataclass(frozen=True)
class Experiment:
    """An experiment to write: the template, and the values it needs.

    Attributes:
        name: of the step.
        attempt: 1, or 2 for the smaller one after a failure.
    """

    name: str
    template: str
    attempt: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Concluded:
    """The conclusion is in the log, or could not be written; nothing is left to do."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """The first step failed, so there is nothing to investigate."""

    reason: str


Next = Experiment | Concluded | GiveUp


def read(entries: Iterable[ExperimentEntry], study: Study) -> Progress:
    """The progress of a study's steps by these entries, oldest first.

    An experiment that crashed reported nothing. Its line holds what it declared, whose id is the name of the
    step, or the first line of its docstring, which begins with it. Entries of other researchers are ignored.
    """
    progress = Progress()
    for entry in entries:
        step, problem = _step_of(entry, study.order), _why_invalid(entry)
        if step is None:
            continue
        if problem is None and isinstance(entry.result.get("numbers"), Mapping):
            progress = replace(progress, measured={**progress.measured, step: entry})
        elif (entry.record or {}).get("verdict") == "interrupted":
            count = progress.interruptions.get(step, 0) + 1
            progress = replace(progress, interruptions={**progress.interruptions, step: count})
        else:
            reasons = (*progress.failures.get(step, ()), problem or "its entry holds no numbers")
            progress = replace(progress, failures={**progress.failures, step: reasons})
    return progress


def _step_of(entry: ExperimentEntry, order: Sequence[str]) -> str | None:
    """The step an entry belongs to; None if it belongs to none."""
    step = entry.result.get("step")
    if step is None and _why_invalid(entry) is not None:
        declared = (entry.record or {}).get("declared") or {}
        step = declared.get("id") or entry.hypothesis.partition(":")[0]
    return step if isinstance(step, str) and step in order else None


def _why_invalid(entry: ExperimentEntry) -> str | None:
    """Why this entry is not valid; None if it is. Without a verdict (logged by hand) it counts as valid."""
    record = entry.record or {}
    verdict = str(record.get("verdict", ""))
    if not verdict.startswith("invalid") and verdict != "interrupted":
        return None
    if "step" not in entry.result and entry.conclusion:
        return entry.conclusion.rstrip(".")
    return "; ".join(str(reason) for reason in record.get("reasons") or [verdict])


def next_experiment(progress: Progress, left: int | None, study: Study) -> Next:
    """The next experiment when `left` more may run (None: no limit); one is reserved for the conclusion."""
    if concluded := progress.numbers(CONCLUSION):
        outcome = "the question is answered" if concluded.get("answered") else "the question stays open"
        return Concluded(f"{outcome}: {progress.measured[CONCLUSION].experiment_id} is the conclusion")
    first = study.order[0]
    while True:
        open_steps = [
            name for name in study.order if name not in progress.measured and name not in progress.skipped
        ]
        given_up = [name for name in open_steps if progress.is_given_up(name, study.attempts(name))]
        if first in given_up:
            return GiveUp(f"{study.no_start}: {progress.why_given_up(first)}")
        if CONCLUSION in given_up:
            return Concluded("everything is measured, but the conclusion could not be logged")
        next_steps = {name: _experiment(study, name, progress) for name in open_steps}
        left_out = {name: f"{FAILED}: {progress.why_given_up(name)}" for name in given_up} or {
            name: each.reason for name, each in next_steps.items() if isinstance(each, Skip) and each.lasting
        }
        if left_out:
            progress = replace(progress, skipped={**progress.skipped, **left_out})
            continue
        affordable = _affordable(study, open_steps, left)
        for name in open_steps:
            if name not in affordable:
                progress = progress.skip(name, NO_BUDGET)
        name = next(name for name in open_steps if name in affordable)
        # Made again, because the conclusion names the skipped steps.
        experiment = _experiment(study, name, progress)
        if isinstance(experiment, Experiment):
            return experiment
        progress = progress.skip(name, experiment.reason)


def _affordable(study: Study, open_steps: Sequence[str], left: int | None) -> set[str]:
    """The open steps that `left` experiments pay for: the conclusion, then by priority."""
    by_priority = [name for name in (CONCLUSION, *study.priority) if name in open_steps]
    return set(by_priority if left is None else by_priority[: max(1, left)])


def _experiment(study: Study, name: str, progress: Progress) -> Experiment | Skip:
    """The experiment of a step as it would run now, or why it has nothing to ask."""
    attempt = progress.attempt(name)
    metadata = {"researcher": "scripted", "step": name, "attempt": attempt}
    if name == CONCLUSION:
        metadata["role"] = CONCLUSION
        template, values = CONCLUSION, _conclusion(study, progress)
    else:
        step = study.steps[study.order.index(name)]
        asked = _nothing_to_ask(study, step, progress) or step.values(progress, attempt)
        if isinstance(asked, Skip):
            return asked
        template, values = f"{study.name}/{step.template or name}", asked
    return Experiment(name, template, attempt, {"step": name, "metadata": metadata, **values})


def _nothing_to_ask(study: Study, step: Step, progress: Progress) -> Skip | None:
    """Why a step cannot be asked now; None if it can. A reason that lasts comes first."""
    first = study.steps[0]
    if step is first:
        return None
    if first.name not in progress.measured:
        return Skip(f"the step {first.name} was not measured")
    skips = [skip for condition in (*study.applies, *step.applies) if (skip := condition(progress))]
    skips += [
        Skip(f"the step {need} was not measured") for need in step.needs if need not in progress.measured
    ]
    return min(skips, key=lambda skip: not skip.lasting, default=None)


def _conclusion(study: Study, progress: Progress) -> Values:
    """What the steps showed, what they did not, and the numbers that the answer rests on."""
    measured = [step for step in study.steps if step.name in progress.measured]
    shown = [step.concludes(progress) for step in measured if step.concludes is not None]
    answer = study.answer(progress)
    return {
        "evidence": {step.name: progress.measured[step.name].experiment_id for step in measured},
        "cited": [each for each in study.cited if each[1] in progress.measured],
        "shown": [*shown, _predictions(progress)] if measured else [answer.text],
        "not_shown": [*answer.limits, *_unanswered_steps(study, progress)],
        "answered": answer.criterion_met,
        "criterion": study.criterion,
        "conclusion": answer.text,
    }


def _unanswered_steps(study: Study, progress: Progress) -> list[str]:
    """The steps that failed or that the budget did not pay for; a step with nothing to ask is no limit."""
    return [
        f"what the step {name} would have shown: {progress.skipped[name]}."
        for name in study.order
        if progress.skipped.get(name, "").startswith((FAILED, NO_BUDGET))
    ]


def _predictions(progress: Progress) -> str:
    """How many predictions held, in a sentence."""
    numbers = [progress.numbers(step) for step in progress.measured]
    held = [each["as_predicted"] is True for each in numbers if "as_predicted" in each]
    return f"Of {len(held)} predictions, each written down before its run, {sum(held)} held."


def sentences(*texts: str) -> str:
    """The texts that are not empty, one after the other."""
    return " ".join(text for text in texts if text)


def listed(items: Iterable[object]) -> str:
    """`a, b and c`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
