"""The question that a workflow is asked: prepared pairs, what the model says to them, which steps to run.

Lives here: everything that is settled before the first step. Does not live here: the steps
(`localization.py`, `discovery.py`, `features.py`), sentences (`narratives.py`).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Logits
from mlxterp.causal.prompts.alignment import Align
from mlxterp.causal.prompts.encoding import Prompt, str_tokens
from mlxterp.causal.prompts.pair import Prepared, PromptPair, as_pairs, prepare
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MetricError, PositionsAligned, SweepError
from mlxterp.metrics import Metric, MetricFunction

MetricLike: TypeAlias = str | MetricFunction | Metric | None
Token: TypeAlias = str | int | None


class MetricChoice(NamedTuple):
    """A metric as `prepare` takes it, with the answer and the foil that were given for all pairs."""

    metric: MetricLike
    answer: Token = None
    foil: Token = None


class TopPrediction(NamedTuple):
    """What the model says first on both prompts of a pair: token ids and probabilities."""

    clean: int
    clean_prob: float
    corrupted: int
    corrupted_prob: float


@dataclass(frozen=True, eq=False)
class Question:
    """Pairs that are prepared once for all steps.

    Attributes:
        prepared: tokens, metric, baselines and both runs of every pair; `align` is how it was asked for.
        logits: `[n, d_vocab]` at the answer position, of the clean and the corrupted runs.
    """

    model: InterpretableModel
    prepared: Prepared
    logits: tuple[Logits, Logits]
    align: Align = "strict"

    @property
    def pairs(self) -> tuple[PromptPair, ...]:
        return self.prepared.pairs

    @property
    def metric(self) -> Metric:
        return self.prepared.metric

    @property
    def is_distance(self) -> bool:
        """Whether the metric is a distance from the clean run."""
        return "clean_logits" in self.metric.needs

    @functools.cached_property
    def predictions(self) -> tuple[TopPrediction, ...]:
        """Per pair, what the model says first."""
        first = [np.argmax(logits, axis=-1) for logits in self.logits]
        probs = [metrics.prob(*each) for each in zip(self.logits, first, strict=True)]
        rows = zip(first[0].tolist(), probs[0].tolist(), first[1].tolist(), probs[1].tolist(), strict=True)
        return tuple(TopPrediction(*row) for row in rows)

    def text(self, token: int) -> str:
        """A token as a reader sees it."""
        return str_tokens(self.model, [token])[0]

    def measured_on(self, **settings: Any) -> dict[str, Any]:
        """What the workflow's result depends on."""
        return self.prepared.measured_on(self.model) | settings

    def with_choices(self) -> tuple[PromptPair, ...]:
        """The pairs, each without an answer given the model's own first choices as answer and foil.

        No pair has a foil where one of them would not: the model says the same first on both prompts.
        """
        chosen = [
            pair
            if pair.answer is not None
            else replace(pair, answer=said.clean, foil=said.corrupted if pair.foil is None else pair.foil)
            for pair, said in zip(self.pairs, self.predictions, strict=True)
        ]
        ids = [(self._id(pair.answer), self._id(pair.foil)) for pair in chosen]
        if all(foil is not None and foil != answer for answer, foil in ids):
            return tuple(chosen)
        return tuple(replace(pair, foil=None) for pair in chosen)

    def _id(self, token: Token) -> int | None:
        return int(self.model.to_single_token(token)) if isinstance(token, str) else token


def ask(
    model: InterpretableModel,
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None,
    choice: MetricChoice,
    align: Align,
) -> Question:
    """Runs both prompts of every pair once.

    That prompts of different lengths are aligned by a map is no warning here: the narrative and every step's
    result say it.

    Raises:
        PromptPairError, LengthMismatch, NoGap, MetricError: as `prepare`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PositionsAligned)
        pairs = as_pairs(clean, corrupted, answer=choice.answer, foil=choice.foil)
        prepared = prepare(model, pairs, choice.metric, align=align)
    runs = ((prepared.clean_run, prepared.clean), (prepared.corrupted_run, prepared.corrupted))
    first, second = (sweep.answer_logits(model, ids) if run is None else run.logits for run, ids in runs)
    return Question(model, prepared, (first, second), align)


def metric_choice(
    metric: MetricLike, kwargs: Mapping[str, Any] | None, answer: Token, foil: Token
) -> MetricChoice:
    """The metric with `metric_kwargs` bound to it if it is a function; else answer and foil, also from there.

    Raises:
        MetricError: arguments that the metric does not take, or that are given twice.
    """
    given = dict(kwargs or {})
    targets: dict[str, Token] = {"answer": answer, "foil": foil}
    if callable(metric) and not isinstance(metric, Metric):
        bound = functools.update_wrapper(functools.partial(metric, **given), metric) if given else metric
        return MetricChoice(bound, answer, foil)
    unknown = sorted(set(given) - set(targets))
    twice = sorted(name for name in given if targets.get(name) is not None)
    if unknown or twice:
        what = f"{unknown[0]!r} is no argument of" if unknown else f"{twice[0]!r} is given twice to"
        name = repr(metric.name if isinstance(metric, Metric) else metric or "of this workflow")
        raise MetricError(
            f"metric_kwargs={given}: {what} the metric {name}. Named metrics take 'answer' and "
            "'foil' (a text of one token, or a token id); a function takes what it takes."
        )
    return MetricChoice(metric, **(targets | given))


def chosen_steps(
    workflow: str, steps: Sequence[str] | None, known: Sequence[str], default: Sequence[str]
) -> tuple[str, ...]:
    """The steps to run, in the workflow's own order.

    Raises:
        SweepError: an unknown step, or none; lists what there is.
    """
    if steps is None:
        return tuple(default)
    given = (steps,) if isinstance(steps, str) else tuple(steps)
    unknown = [step for step in given if step not in known]
    if unknown or not given:
        what = f"has no step {unknown[0]!r}" if unknown else "was given no steps"
        raise SweepError(
            f"{workflow} {what}. Its steps are: {', '.join(known)}; by default {', '.join(default)}. "
            "Name some of these."
        )
    return tuple(step for step in known if step in given)


def require_top_k(top_k: int) -> None:
    """Refuses a narrative that names no component."""
    if top_k < 1:
        raise SweepError(f"top_k={top_k}: the narrative names at least one component. Give 1 or more.")
