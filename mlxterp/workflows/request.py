"""What a workflow is asked: pairs, metric, steps; the two runs that all its steps share; how far it is.

Lives here: everything that is settled before the first step. Does not live here: the steps
(`localization.py`, `discovery.py`), sentences (`messages.py`).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Logits
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt, str_tokens
from mlxterp.causal.prompts.pair import Prepared, PromptPair, as_pairs, prepare, runs_kept
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, PositionsAligned, SweepError
from mlxterp.metrics import Metric, MetricFunction

MetricLike: TypeAlias = str | MetricFunction | Metric | None


@dataclass(frozen=True)
class StepProgress:
    """How far a workflow is.

    Attributes:
        workflow, step: their names.
        done, total: of what the step counts: rows, edges. Both 0 when it begins, equal when it is finished.
        words: what a person is told.
    """

    workflow: str
    step: str
    done: int
    total: int
    words: str

    def __str__(self) -> str:
        return f"{self.step}: {self.words}"


Progress: TypeAlias = Callable[[StepProgress], None]


class ProgressReporter:
    """Tells how far a workflow is, and counts what it ran."""

    def __init__(self, workflow: str, progress: Progress | None) -> None:
        self._workflow, self._progress = workflow, progress
        self.ran: dict[str, int] = {}

    def says(self, step: str, words: str, done: int = 0, total: int = 0) -> None:
        if self._progress is not None:
            self._progress(StepProgress(self._workflow, step, done, total, words))

    def counting(self, step: str, unit: str) -> Callable[[int, int], None]:
        """For an analysis that says (done, in all)."""

        def tell(done: int, total: int) -> None:
            self.ran[f"{step} {unit}"] = total
            self.says(step, f"{done:,} of {total:,} {unit}", done, total)

        return tell


class TopPrediction(NamedTuple):
    """What the model says first on both prompts of a pair: token ids and probabilities."""

    clean: int
    clean_prob: float
    corrupted: int
    corrupted_prob: float


@dataclass(frozen=True, eq=False)
class Question:
    """A question, settled.

    Attributes:
        prepared: both runs of every pair, with the metric and its baselines.
        metric: what to hand to the analyses: a name, or the caller's function with its arguments.
        said: per pair, what the model says first.
    """

    model: InterpretableModel
    prepared: Prepared
    metric: MetricLike
    align: Align
    said: tuple[TopPrediction, ...]

    @property
    def pairs(self) -> tuple[PromptPair, ...]:
        return self.prepared.pairs

    @property
    def distance(self) -> bool:
        """Whether the metric is a distance from the clean run."""
        return "clean_logits" in self.prepared.metric.needs

    def text(self, token: int) -> str:
        return str_tokens(self.model, [token])[0]

    def with_choices(self) -> tuple[PromptPair, ...]:
        """The pairs, each without an answer given the model's own first choices as answer and foil.

        No pair has a foil where one of them would not: the model says the same first on both prompts.
        """
        chosen = [
            pair
            if pair.answer is not None
            else replace(pair, answer=said.clean, foil=said.corrupted if pair.foil is None else pair.foil)
            for pair, said in zip(self.pairs, self.said, strict=True)
        ]
        ids = [(self._id(pair.answer), None if pair.foil is None else self._id(pair.foil)) for pair in chosen]
        if all(foil is not None and foil != answer for answer, foil in ids):
            return tuple(chosen)
        return tuple(replace(pair, foil=None) for pair in chosen)

    def _id(self, token: str | int | None) -> int | None:
        return int(self.model.to_single_token(token)) if isinstance(token, str) else token


@contextmanager
def shared_runs() -> Iterator[None]:
    """Inside, all steps share one clean and one corrupted run, and prompts of different lengths are no
    warning: the narrative and every step's result say how they are aligned."""
    with runs_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", PositionsAligned)
        yield


def ask(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None,
    *,
    answer: str | int | None,
    foil: str | int | None,
    metric: MetricLike,
    metric_kwargs: Mapping[str, Any] | None,
    align: Align,
) -> Question:
    """Runs both prompts of every pair once. Raises what `prepare` raises, and MetricError for arguments that
    the metric does not take."""
    chosen, targets = with_arguments(metric, metric_kwargs, {"answer": answer, "foil": foil})
    pairs = as_pairs(clean, corrupted, **targets)
    prepared = prepare(model, pairs, chosen, align=align)
    return Question(model, prepared, chosen, align, tuple(_said(model, prepared)))


def with_arguments(
    metric: MetricLike, kwargs: Mapping[str, Any] | None, targets: dict[str, str | int | None]
) -> tuple[MetricLike, dict[str, str | int | None]]:
    given = dict(kwargs or {})
    if callable(metric) and not isinstance(metric, Metric):
        if not given:
            return metric, targets
        return functools.update_wrapper(functools.partial(metric, **given), metric), targets
    unknown = sorted(set(given) - set(targets))
    twice = sorted(name for name in given if targets.get(name) is not None)
    if unknown or twice:
        what = f"{unknown[0]!r} is no argument of" if unknown else f"{twice[0]!r} is given twice to"
        raise MetricError(
            f"metric_kwargs={given}: {what} the metric {_name(metric)}. Named metrics take 'answer' and "
            "'foil' (a text of one token, or a token id); a function takes what it takes."
        )
    return metric, targets | given


def _name(metric: MetricLike) -> str:
    return repr(metric.name if isinstance(metric, Metric) else metric or "of this workflow")


def both_logits(model: InterpretableModel, prepared: Prepared) -> tuple[Logits, Logits]:
    """Logits `[n, d_vocab]` at the answer position, of every clean and every corrupted run."""
    clean, corrupted = (
        sweep.answer_logits(model, tokens) if run is None else run.logits
        for run, tokens in (
            (prepared.clean_run, prepared.clean),
            (prepared.corrupted_run, prepared.corrupted),
        )
    )
    return clean, corrupted


def _said(model: InterpretableModel, prepared: Prepared) -> list[TopPrediction]:
    rows = []
    for logits in both_logits(model, prepared):
        first = np.argmax(logits, axis=-1)
        rows.append((first, metrics.prob(logits, first)))
    (c, p), (x, q) = rows
    return [TopPrediction(int(a), float(b), int(d), float(e)) for a, b, d, e in zip(c, p, x, q, strict=True)]


def chosen_steps(
    workflow: str, steps: Sequence[str] | None, known: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    """The steps to run, in the workflow's own order.

    Raises:
        SweepError: an unknown step, or none; lists what there is.
    """
    if steps is None:
        return tuple(default)
    asked = (steps,) if isinstance(steps, str) else tuple(steps)
    unknown = [step for step in asked if step not in known]
    if unknown or not asked:
        what = f"has no step {unknown[0]!r}" if unknown else "was given no steps"
        raise SweepError(
            f"{workflow} {what}. Its steps are: {', '.join(known)}; by default {', '.join(default)}. "
            "Name some of these."
        )
    return tuple(step for step in known if step in asked)


def top(top_k: int) -> int:
    """`top_k`, refused below 1."""
    if top_k < 1:
        raise SweepError(f"top_k={top_k}: the narrative names at least one component. Give 1 or more.")
    return top_k
