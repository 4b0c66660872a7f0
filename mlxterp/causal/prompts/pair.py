"""Prompt pairs: a clean and a corrupted prompt, what the model should say, and both baselines.

`prepare` is the door of every causal method: tokens, the map between positions, the metric, one clean and one
corrupted run. It refuses pairs that cannot be compared: unequal lengths without a stated map, equal tokens,
no gap. What does not live here: patching (`activation_patching.py`), the forward passes themselves
(`sweep.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.alignment import Align, Alignment, align_positions
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    prompt_text,
    shortened,
    token_ids,
    token_rows,
)
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import NoGap, PromptPairError
from mlxterp.statistics.clusters import clusters_of_pairs


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in what is studied, and nothing else if possible (Zhang & Nanda 2023).

    Attributes:
        clean, corrupted: text, or token ids.
        answer: what the clean prompt should be continued with: one token, as text (`" Paris"`) or id.
        foil: what the corrupted prompt should be continued with.
        name: for people.
    """

    clean: Prompt
    corrupted: Prompt
    answer: str | int | None = None
    foil: str | int | None = None
    name: str = ""


@dataclass(frozen=True)
class Prepared:
    """Pairs as tokens, with the metric and both baselines, per example.

    Attributes:
        clean, corrupted: token ids `[n, length]`.
        targets: answers, foils and, for a distance, the clean run's logits at the answer position (the last).
        clean_metric, corrupted_metric: the metric of each example's two runs.
        clean_run, corrupted_run: both runs with what sweeps need of them, if they are small enough to keep.
    """

    pairs: tuple[PromptPair, ...]
    clean: Ids
    corrupted: Ids
    alignment: Alignment
    metric: metrics.Metric
    targets: metrics.Targets
    clean_metric: metrics.Floats
    corrupted_metric: metrics.Floats
    clean_run: sweep.Base | None = field(default=None, repr=False)
    corrupted_run: sweep.Base | None = field(default=None, repr=False)

    @property
    def gap(self) -> float:
        """Mean clean metric minus mean corrupted metric."""
        return float(self.clean_metric.mean() - self.corrupted_metric.mean())

    @property
    def clusters(self) -> Ids:
        """Which pairs are one independent observation: see `clusters_of_pairs`."""
        return clusters_of_pairs([tuple(row) for row in self.clean], [tuple(row) for row in self.corrupted])

    @property
    def vocabulary(self) -> Ids | None:
        """The token ids that the metric looks at, ascending; None if it looks at all."""
        return vocabulary_of(self.metric, self.targets)

    def read(self, logits: np.ndarray[Any, Any], examples: Ids) -> metrics.Floats:
        """The metric of rows of logits over `vocabulary`, each belonging to one example: see
        `sweep.run_rows`."""
        return read_rows(self.metric, self.targets, logits, examples)

    def measured_on(self, model: InterpretableModel) -> dict[str, Any]:
        """Everything the numbers depend on, for a result."""
        return facts_of(model) | {
            "prompts": [describe(model, pair) for pair in self.pairs],
            "metric": self.metric.name,
            "metric_direction": self.metric.direction,
            "clean_metric": float(self.clean_metric.mean()),
            "corrupted_metric": float(self.corrupted_metric.mean()),
            "alignment": self.alignment.to_dict(),
        }


def vocabulary_of(metric: metrics.Metric, targets: metrics.Targets) -> Ids | None:
    """The token ids that a metric looks at, ascending; None if it looks at all."""
    named = [ids for ids in (targets.answers, targets.foils) if ids is not None]
    return np.unique(np.concatenate(named)) if metric.targets_only and named else None


def read_rows(
    metric: metrics.Metric, targets: metrics.Targets, logits: np.ndarray[Any, Any], examples: Ids
) -> metrics.Floats:
    """The metric of rows of logits over `vocabulary_of` it, each belonging to one example."""
    mine, vocabulary = targets.take(examples), vocabulary_of(metric, targets)
    if vocabulary is not None:
        answers, foils = (
            None if ids is None else np.searchsorted(vocabulary, ids) for ids in (mine.answers, mine.foils)
        )
        mine = metrics.Targets(answers, foils)
    return metric(logits, mine)


@overload
def as_pairs(
    clean: Prompt | PromptPair | Sequence[PromptPair],
    corrupted: Prompt | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
) -> tuple[PromptPair, ...]: ...


@overload
def as_pairs(
    clean: Prompt | PromptPair | Sequence[PromptPair] | Prepared,
    corrupted: Prompt | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
) -> tuple[PromptPair, ...] | Prepared: ...


def as_pairs(
    clean: Prompt | PromptPair | Sequence[PromptPair] | Prepared,
    corrupted: Prompt | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
) -> tuple[PromptPair, ...] | Prepared:
    """The pairs meant by a call: two prompts, one pair, or several; `answer` and `foil` replace each one's
    own. What is prepared already stays as it is, and takes none of the others beside it."""
    if isinstance(clean, Prepared):
        if corrupted is not None or answer is not None or foil is not None:
            raise PromptPairError(
                "corrupted, answer or foil comes beside prepared pairs, which hold their own. Leave it out, "
                "or prepare the pairs with it."
            )
        return clean
    if isinstance(clean, PromptPair):
        pairs: tuple[PromptPair, ...] = (clean,)
    elif not isinstance(clean, str) and len(clean) and isinstance(clean[0], PromptPair):
        pairs = tuple(each for each in clean if isinstance(each, PromptPair))
        if len(pairs) != len(clean):
            raise PromptPairError("a dataset holds PromptPair values only; this one holds other values too.")
    elif not len(clean):
        raise PromptPairError("no prompt pairs were given. Pass at least one PromptPair.")
    elif corrupted is None:
        raise PromptPairError(
            f"clean={shortened(clean)} comes without a corrupted prompt. Pass corrupted=, a PromptPair, or "
            "a list of PromptPair."
        )
    else:
        return (PromptPair(frozen(clean), frozen(corrupted), answer, foil),)
    if corrupted is not None:
        raise PromptPairError(
            f"corrupted={shortened(corrupted)} comes beside {len(pairs)} PromptPair, which hold their own. "
            "Leave it out."
        )
    return tuple(
        replace(
            pair,
            answer=pair.answer if answer is None else answer,
            foil=pair.foil if foil is None else foil,
        )
        for pair in pairs
    )


def prepare(
    model: InterpretableModel,
    pairs: PromptPair | Sequence[PromptPair] | Prepared,
    metric: str | metrics.MetricFunction | metrics.Metric | None = None,
    *,
    align: Align = "strict",
) -> Prepared:
    """Tokens, position map, metric and both baselines of one pair or a dataset. Costs two forwards per pair.

    Args:
        pairs: in a dataset all clean prompts have the same number of tokens, and all corrupted ones too.
            Prepared pairs are returned as they are, with the metric and the alignment that they have.
        metric: see `mlxterp.metrics.resolve`.
        align: "strict" demands the same length; "auto" maps the common prefix and the common suffix; or a
            list of (clean position, corrupted position). Recorded in the results.

    Raises:
        LengthMismatch: unequal lengths, with both tokenisations side by side.
        PromptPairError: clean and corrupted are the same tokens.
        NoGap: both runs give the same metric, so that there is nothing to recover.
    """
    if isinstance(pairs, Prepared):
        return pairs
    listed = (pairs,) if isinstance(pairs, PromptPair) else tuple(pairs)
    if not listed:
        raise PromptPairError("no prompt pairs were given. Pass at least one PromptPair.")
    clean = token_rows(model, [pair.clean for pair in listed], "clean")
    corrupted = token_rows(model, [pair.corrupted for pair in listed], "corrupted")
    for pair, c, x in zip(listed, clean, corrupted, strict=True):
        if np.array_equal(c, x):
            raise PromptPairError(
                f"clean and corrupted are the same {len(c)} tokens: {shortened(pair.clean)}. Patching a run "
                "into itself changes nothing. Give a corrupted prompt that differs in what you study."
            )
    alignment = align_positions(model, clean, corrupted, align)
    answers = token_ids(model, [pair.answer for pair in listed], "answer")
    foils = token_ids(model, [pair.foil for pair in listed], "foil")
    resolved = metrics.resolve(metric, answer=answers is not None, foil=foils is not None)
    clean_run, corrupted_run = _run_both(model, clean, corrupted)
    clean_logits = sweep.answer_logits(model, clean) if clean_run is None else clean_run.logits
    corrupted_logits = (
        sweep.answer_logits(model, corrupted) if corrupted_run is None else corrupted_run.logits
    )
    targets = metrics.Targets(answers, foils, clean_logits if "clean_logits" in resolved.needs else None)
    prepared = Prepared(
        pairs=listed,
        clean=clean,
        corrupted=corrupted,
        alignment=alignment,
        metric=resolved,
        targets=targets,
        clean_metric=resolved(clean_logits, targets),
        corrupted_metric=resolved(corrupted_logits, targets),
        clean_run=clean_run,
        corrupted_run=corrupted_run,
    )
    _refuse_no_gap(prepared)
    return prepared


_kept: ContextVar[dict[Any, Any] | None] = ContextVar("_kept", default=None)


@contextmanager
def runs_kept() -> Iterator[None]:
    """Inside, analyses of the same prompts on the same model share one clean and one corrupted run."""
    before = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(before)


def _run_both(
    model: InterpretableModel, clean: Ids, corrupted: Ids
) -> tuple[sweep.Base | None, sweep.Base | None]:
    """Both runs, or those made before, inside `runs_kept`."""
    kept = _kept.get()
    if kept is None:
        return _runs(model, clean, corrupted)
    key = (id(model), clean.shape, clean.tobytes(), corrupted.shape, corrupted.tobytes())
    if key not in kept:
        kept[key] = (model, _runs(model, clean, corrupted))  # the model too, so that its id stays its own
    found: tuple[sweep.Base | None, sweep.Base | None] = kept[key][1]
    return found


def _runs(
    model: InterpretableModel, clean: Ids, corrupted: Ids
) -> tuple[sweep.Base | None, sweep.Base | None]:
    """Both runs, in one batch if their lengths are equal."""
    if clean.shape != corrupted.shape:
        return sweep.run_prompts(model, clean), sweep.run_prompts(model, corrupted)
    both = sweep.run_prompts(model, np.concatenate([clean, corrupted]))
    n = len(clean)
    return (None, None) if both is None else (both.of(0, n), both.of(n, 2 * n))


def describe(model: InterpretableModel, pair: PromptPair) -> dict[str, Any]:
    """A pair as plain values; token ids are shown as text."""
    shown = {"clean": prompt_text(model, pair.clean), "corrupted": prompt_text(model, pair.corrupted)}
    optional = {"answer": pair.answer, "foil": pair.foil, "name": pair.name or None}
    return shown | {key: value for key, value in optional.items() if value is not None}


def _refuse_no_gap(prepared: Prepared) -> None:
    metric = prepared.metric
    if abs(prepared.gap) > metric.tolerance:
        return
    n = len(prepared.pairs)
    raise NoGap(
        f"{metric.name} is {prepared.clean_metric.mean():.6g} on clean and "
        f"{prepared.corrupted_metric.mean():.6g} on corrupted{f', as means of {n} pairs' if n > 1 else ''}: "
        f"a gap of {prepared.gap:.2g}, within the tolerance of {metric.tolerance:g}. Effects are shares of "
        "this gap, so there is nothing to recover. Choose an answer, a foil or prompts between which the "
        "model's behaviour differs."
    )
