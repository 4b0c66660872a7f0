"""Prompt pairs: a clean and a corrupted prompt, the answers expected of the model, and both baselines.

`prepare` is the entry point of every causal method: tokens, the map between positions, the metric, one clean
and one corrupted run. It refuses pairs that cannot be compared: unequal lengths without a stated map, equal
tokens, no gap. What it returns can be passed to other methods in place of the pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import sweep
from mlxterp.causal.batching.rows import Logits
from mlxterp.causal.finite import require_finite, require_finite_runs
from mlxterp.causal.prompts import cautions
from mlxterp.causal.prompts.alignment import Align, Alignment, align_positions
from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    prompt_text,
    require_model,
    shortened,
    token_ids,
    token_rows,
)
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import MlxterpError, NoGap, PromptPairError
from mlxterp.measurements import recorder
from mlxterp.statistics.clusters import cluster_ids, clusters

MetricLike: TypeAlias = str | metrics.MetricFunction | metrics.Metric | None
"""A metric as callers name it: see `mlxterp.metrics.resolve`."""


@dataclass(frozen=True)
class PromptPair:
    """Two prompts that differ in what is studied, and in nothing else if possible (Zhang & Nanda 2023).

    Attributes:
        clean, corrupted: text, or token ids.
        answer: what the clean prompt should be continued with: one token, as text (`" Paris"`) or id.
        foil: what the corrupted prompt should be continued with.
        name: a label for reports.
        cluster: pairs with the same one are one piece of evidence; None stands for pairs that share a prompt
            (`mlxterp.statistics.clusters`).
        slice: the part of the dataset it belongs to, such as its template; an effect is also looked at in
            each part by itself. None where there are no parts.
    """

    clean: Prompt
    corrupted: Prompt
    answer: str | int | None = None
    foil: str | int | None = None
    name: str = ""
    cluster: str | None = None
    slice: str | None = None


def list_pairs(model: Any, dataset: Any) -> list[dict[str, Any]] | None:
    """What a judge must know of a dataset to divide it: for each pair its cluster, how many tokens its
    prompts have (None where they cannot be encoded), whether the clean one holds its answer, and a digest in
    place of each prompt.

    None for a dataset that is no list of pairs, or without a model.
    """
    if not isinstance(model, InterpretableModel) or not isinstance(dataset, Sequence):
        return None
    if not all(isinstance(pair, PromptPair) for pair in dataset):
        return None
    return [
        {
            "clean": _prompt_digest(pair.clean),
            "corrupted": _prompt_digest(pair.corrupted),
            "cluster": cluster,
            "n_tokens": [_length(model, prompt) for prompt in (pair.clean, pair.corrupted)],
            "holds_answer": _holds_answer(model, pair),
        }
        for pair, cluster in zip(dataset, cluster_ids(dataset), strict=True)
    ]


def withhold(
    model: Any, dataset: Sequence[PromptPair], explored: Sequence[int], tell: Callable[[Sequence[int]], None]
) -> None:
    """Watches for runs of prompts that only the pairs which are not explored have.

    Args:
        explored: indices of the other pairs.
        tell: gets the indices of pairs of which a prompt ran through the library, each prompt once.
    """
    open_prompts = {_prompt_digest(p) for i in explored for p in (dataset[i].clean, dataset[i].corrupted)}
    watched: dict[bytes, int] = {}
    for i, pair in enumerate(dataset):
        for prompt in (pair.clean, pair.corrupted):
            if _prompt_digest(prompt) not in open_prompts:
                with contextlib.suppress(MlxterpError):  # what cannot be encoded cannot run
                    watched[token_rows(model, [prompt], "prompt")[0].astype(np.int32).tobytes()] = i
    recorder.watch(watched, tell)


def without_prompts_of(
    pairs: Sequence[PromptPair], dataset: Sequence[PromptPair], explored: Sequence[int]
) -> list[PromptPair]:
    """Those of these pairs that share no prompt with a pair of the dataset that is not explored."""
    own = {i: {_prompt_digest(p) for p in (pair.clean, pair.corrupted)} for i, pair in enumerate(dataset)}
    withheld = set().union(*(prompts for i, prompts in own.items() if i not in set(explored)))
    return [p for p in pairs if not {_prompt_digest(p.clean), _prompt_digest(p.corrupted)} & withheld]


def _holds_answer(model: InterpretableModel, pair: PromptPair) -> bool:
    try:
        answer = token_ids(model, [pair.answer], "answer")
        return answer is not None and bool((token_rows(model, [pair.clean], "clean") == answer[0]).any())
    except MlxterpError:
        return False


def _length(model: InterpretableModel, prompt: Prompt) -> int | None:
    try:
        return int(token_rows(model, [prompt], "prompt").shape[1])
    except MlxterpError:
        return None


def _prompt_digest(prompt: Prompt) -> str:
    text = prompt if isinstance(prompt, str) else repr([int(token) for token in prompt])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Prepared:
    """Pairs as tokens, with the metric and both baselines, per example.

    Attributes:
        clean, corrupted: token ids `[n, length]`.
        targets: answers, foils and, for a distance, the clean run's logits at the answer position (the last).
        clean_metric, corrupted_metric: the metric of each example's two runs.
        clean_logits, corrupted_logits: of both runs at the answer position, `[n, d_vocab]`.
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
    clean_logits: Logits = field(repr=False)
    corrupted_logits: Logits = field(repr=False)
    clean_run: sweep.BaseRun | None = field(default=None, repr=False)
    corrupted_run: sweep.BaseRun | None = field(default=None, repr=False)

    def with_metric(self, metric: MetricLike) -> Prepared:
        """The same runs measured by another metric.

        Raises:
            MetricError: a metric that needs an answer or a foil that the pairs do not have.
            NoGap: as `prepare`.
        """
        given = {"answer": self.targets.answers is not None, "foil": self.targets.foils is not None}
        resolved = metrics.resolve(metric, **given)
        clean_logits = self.clean_logits if "clean_logits" in resolved.needs else None
        targets = replace(self.targets, clean_logits=clean_logits)
        prepared = replace(
            self,
            metric=resolved,
            targets=targets,
            clean_metric=resolved(self.clean_logits, targets),
            corrupted_metric=resolved(self.corrupted_logits, targets),
        )
        _refuse_no_gap(prepared)
        return prepared

    @property
    def gap(self) -> float:
        """Mean clean metric minus mean corrupted metric."""
        return float(self.clean_metric.mean() - self.corrupted_metric.mean())

    @property
    def clusters(self) -> tuple[str, ...]:
        """Which pairs are one independent observation."""
        return clusters(self.pairs).of_pair

    @property
    def vocabulary(self) -> Ids | None:
        """The token ids that the metric reads, ascending; None if it reads all."""
        return vocabulary_of(self.metric, self.targets)

    def read(self, logits: np.ndarray[Any, Any], examples: Ids) -> metrics.Floats:
        """The metric of rows of logits over `vocabulary`, each belonging to one example: see
        `sweep.run_rows`."""
        return read_rows(self.metric, self.targets, logits, examples)

    def cautions(self, model: InterpretableModel) -> tuple[str, ...]:
        """What limits every number that is measured on these pairs."""
        found = [*cautions.of_first_position(model, self.clean, self.corrupted)]
        for pair, clean, corrupted in zip(self.pairs, self.clean_logits, self.corrupted_logits, strict=True):
            found += cautions.of_form(model, clean, pair.answer, "answer")
            found += cautions.of_form(model, corrupted, pair.foil, "foil")
        found += cautions.of_small_gap(
            model, self.metric.name, self.gap, [self.clean_logits, self.corrupted_logits]
        )
        return tuple(dict.fromkeys(found))

    def measured_on(self, model: InterpretableModel) -> dict[str, Any]:
        """Everything the numbers depend on, for a result."""
        limits = self.cautions(model)
        return (
            facts_of(model)
            | ({"cautions": list(limits)} if limits else {})
            | {
                "prompts": [describe(model, pair) for pair in self.pairs],
                "metric": self.metric.name,
                "metric_direction": self.metric.direction,
                "clean_metric": float(self.clean_metric.mean()),
                "corrupted_metric": float(self.corrupted_metric.mean()),
                "alignment": self.alignment.to_dict(),
            }
        )


def _several_prompts(clean: Any, corrupted: Any) -> list[tuple[Prompt, Prompt]] | None:
    """Clean and corrupted prompts of two lists, side by side; None where `clean` is no list of prompts.

    Raises:
        PromptPairError: a prompt is of no kind that has tokens, or the lists do not match.
    """
    for name, given in (("clean", clean), ("corrupted", corrupted)):
        if (given is not None or name == "clean") and (
            isinstance(given, int | float | bool | dict) or not hasattr(given, "__len__")
        ):
            raise PromptPairError(
                f"{name}={given!r} is no prompt. Pass a text, token ids, a PromptPair, or a list of these."
            )
        if isinstance(given, str) and not given:
            raise PromptPairError(f"{name} is an empty text. Give a prompt of at least one token.")
    if not _is_list_of_prompts(clean) and not _is_list_of_prompts(corrupted):
        return None
    if not _is_list_of_prompts(clean) or not _is_list_of_prompts(corrupted) or len(clean) != len(corrupted):
        counts = [len(each) if _is_list_of_prompts(each) else "one" for each in (clean, corrupted)]
        raise PromptPairError(
            f"{counts[0]} clean and {counts[1]} corrupted prompts were given. Give each clean one "
            "its corrupted one, in the same order."
        )
    return list(zip(clean, corrupted, strict=True))


def _is_list_of_prompts(given: Any) -> bool:
    return isinstance(given, list | tuple) and bool(given) and isinstance(given[0], str | list | tuple)


def vocabulary_of(metric: metrics.Metric, targets: metrics.Targets) -> Ids | None:
    """The token ids that a metric reads, ascending; None if it reads all."""
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


Pairs: TypeAlias = PromptPair | Sequence[PromptPair] | Prepared
"""What causal methods study: one pair, a dataset, or either as `prepare` returned it."""


def as_pairs(
    clean: Prompt | Pairs | Sequence[Prompt],
    corrupted: Prompt | Sequence[Prompt] | None = None,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
) -> tuple[PromptPair, ...] | Prepared:
    """The pairs of a call: two prompts, two lists of prompts, one pair, several, or what `prepare` made of
    them.

    `answer` and `foil` replace each pair's own.

    Raises:
        PromptPairError: no pair, a prompt that is empty or neither text nor token ids, lists of unequal
        length.
    """
    if isinstance(clean, Prepared):
        if corrupted is not None or answer is not None or foil is not None:
            raise PromptPairError(
                "prepared pairs hold their corrupted prompts, answers and foils. Leave corrupted, answer and "
                "foil out, or pass them to the PromptPair that is prepared."
            )
        return clean
    if isinstance(clean, PromptPair):
        pairs: tuple[PromptPair, ...] = (clean,)
    elif (several := _several_prompts(clean, corrupted)) is not None:
        return tuple(PromptPair(frozen(c), frozen(x), answer, foil) for c, x in several)
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


def listed_pairs(pairs: PromptPair | Sequence[PromptPair]) -> tuple[PromptPair, ...]:
    """One pair or several as a tuple; PromptPairError for no pair, or for something else among them."""
    if isinstance(pairs, PromptPair):
        return (pairs,)
    if isinstance(pairs, str) or not hasattr(pairs, "__len__"):
        raise PromptPairError(f"{shortened(pairs)} is no PromptPair. Pass PromptPair(clean, corrupted, …).")
    if not len(pairs):
        raise PromptPairError("no prompt pairs were given. Pass at least one PromptPair.")
    others = [each for each in pairs if not isinstance(each, PromptPair)]
    if others:
        raise PromptPairError(
            f"{shortened(others[0])} is no PromptPair. Pass PromptPair(clean, corrupted, …)."
        )
    return tuple(pairs)


def prepare(
    model: InterpretableModel, pairs: Pairs, metric: MetricLike = None, *, align: Align = "strict"
) -> Prepared:
    """Tokens, position map, metric and both baselines of one pair or a dataset. Costs two forwards per pair.

    Prepared pairs are returned as they are; with another metric, their runs are measured by it.

    Args:
        pairs: in a dataset all clean prompts have the same number of tokens, and all corrupted ones too.
        metric: see `mlxterp.metrics.resolve`.
        align: "strict" demands the same length; "auto" maps the common prefix and the common suffix; or a
            list of (clean position, corrupted position). Recorded in the results. Prepared pairs keep theirs.

    Raises:
        LengthMismatch: unequal lengths, with both tokenisations side by side.
        PromptPairError: clean and corrupted are the same tokens.
        NoGap: both runs give the same metric, so that there is nothing to recover.
        NotFinite: NaN or infinity in the logits or the metric of a run.
    """
    require_model(model)
    if isinstance(pairs, Prepared):
        same = metric is None or metric in (pairs.metric, pairs.metric.name, pairs.metric.function)
        return pairs if same else pairs.with_metric(metric)
    listed = listed_pairs(pairs)
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
    runs = _run_both(model, clean, corrupted)
    clean_logits, corrupted_logits = (
        sweep.answer_logits(model, tokens) if run is None else run.logits
        for run, tokens in zip(runs, (clean, corrupted), strict=True)
    )
    require_finite_runs(model, clean_logits, clean, "clean")
    require_finite_runs(model, corrupted_logits, corrupted, "corrupted")
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
        clean_logits=clean_logits,
        corrupted_logits=corrupted_logits,
        clean_run=runs[0],
        corrupted_run=runs[1],
    )
    _refuse_no_gap(prepared)
    return prepared


def _run_both(
    model: InterpretableModel, clean: Ids, corrupted: Ids
) -> tuple[sweep.BaseRun | None, sweep.BaseRun | None]:
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
    for which, values in (("clean", prepared.clean_metric), ("corrupted", prepared.corrupted_metric)):
        require_finite(
            values,
            lambda i: f"pair {i}",
            f"{metric.name} of the {which} runs",
            "The logits are finite, so it is the metric: keep what it divides by or takes the logarithm of "
            "away from 0.",
        )
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
