"""Labels without a language model, of many features: one after the other, or in ranges over an executor.

Lives here: fitting, scoring and writing the label of each feature; sending ranges of features to workers.
Does not live here: the fit (`fitting.py`), who asks for labels (`api.py`).

A feature's label depends on the store, the seed and its own number, so the result is the same bit for bit
however features are spread over workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Sampling, shown_evidence
from mlxterp.auto_interp.label import Abstention, FeatureLabel, Status
from mlxterp.auto_interp.promoted_tokens import Promotion
from mlxterp.auto_interp.rules.fitting import (
    WEAK,
    OfflineLabeler,
    fit,
    score_rule,
)
from mlxterp.auto_interp.rules.rules import Rule
from mlxterp.sae.feature_store.store import FeatureStore, load_store

_POOL = 16  # features whose rules serve as other features' labels
_DECOYS = 5
_RANGE = 128  # features of one piece of work
_worker: dict[str, Any] = {}  # of a worker process: the run it was last sent


@dataclass(frozen=True, eq=False)
class OfflineRun:
    """What all features of one run share."""

    corpus: Corpus
    sampling: Sampling

    @cached_property
    def labeler(self) -> OfflineLabeler:
        return OfflineLabeler(self.corpus)

    @cached_property
    def pool(self) -> tuple[tuple[int, Rule], ...]:
        """Some features with their rules, chosen by the seed: labels of other features to compare with."""
        often = np.flatnonzero(self.corpus.store.counts >= 2 * self.sampling.min_examples)
        chosen = np.random.default_rng([self.corpus.seed, 5]).permutation(often)[:_POOL]
        fitted = [(int(feature_id), fit(self.labeler.background, int(feature_id))) for feature_id in chosen]
        return tuple((feature_id, found.rule) for feature_id, found in fitted if found is not None)

    def decoys(self, feature_id: int, rule: Rule) -> list[Rule]:
        others = [each for own, each in self.pool if own != feature_id and each != rule]
        order = self.corpus.random(feature_id, 6).permutation(len(others))[:_DECOYS]
        return [others[i] for i in order]

    def label(self, feature_id: int, promotion: Promotion, provenance: Mapping[str, Any]) -> FeatureLabel:
        """One feature's label, scored; without one where the feature or the rule does not bear it."""
        evidence = shown_evidence(
            self.corpus, feature_id, self.sampling, promotion.promoted, promotion.suppressed
        )
        if evidence.status != "ok":
            return unlabelled(evidence, evidence.status, provenance)
        found = self.labeler.proposal(evidence)
        if isinstance(found, Abstention):
            return unlabelled(evidence, "uninterpretable", provenance, description=found.reason)
        assert found.rule is not None
        scores = score_rule(self.corpus, feature_id, found.rule, decoys=self.decoys(feature_id, found.rule))
        if scores["rule"].interval[0] < WEAK:
            reason = (
                f"the best rule ({found.label}) does not hold on held-out texts: its balanced accuracy there "
                f"is {scores['rule'].balanced_accuracy:.2f}, and may be {scores['rule'].interval[0]:.2f}"
            )
            blank = unlabelled(evidence, "uninterpretable", provenance, description=reason)
            return replace(blank, scores=scores)
        return replace(
            unlabelled(evidence, "uninterpretable", provenance),
            status="ok",
            label=found.label,
            description=found.description,
            kind=found.kind,
            rule=found.rule,
            scores=scores,
            confidence=scores["rule"].confidence,
        )


def unlabelled(
    evidence: FeatureEvidence,
    status: Status,
    provenance: Mapping[str, Any],
    *,
    description: str = "",
) -> FeatureLabel:
    """What is known of a feature that has no label: numbers, evidence, tokens."""
    return FeatureLabel(
        feature_id=evidence.feature_id,
        status=status,
        description=description,
        evidence=evidence.train_positives,
        density=evidence.density,
        max_activation=evidence.max_activation,
        mean_activation=evidence.mean_activation,
        top_tokens=evidence.top_tokens,
        promoted_tokens=evidence.promoted,
        suppressed_tokens=evidence.suppressed,
        provenance=provenance,
    )


@dataclass(frozen=True)
class _Piece:
    """A range of features as it is sent to a worker: the store by its path, or whole where it has none."""

    key: str
    store: Any
    seed: int
    sampling: Sampling
    feature_ids: tuple[int, ...]
    promotion: Promotion
    provenance: Mapping[str, Any]


def label_offline(
    run: OfflineRun,
    feature_ids: Sequence[int],
    promotion: Promotion,
    provenance: Mapping[str, Any],
    executor: Executor | None,
) -> Iterator[FeatureLabel]:
    """Every feature's label, in the order asked for."""
    if executor is None:
        yield from (run.label(feature_id, promotion, provenance) for feature_id in feature_ids)
        return
    store = run.corpus.store
    sent = store.path if store.path is not None else {f.name: getattr(store, f.name) for f in fields(store)}
    key = f"{store.digest} {run.corpus.seed} {run.sampling}"
    waiting: list[Future[list[FeatureLabel]]] = []
    for start in range(0, len(feature_ids), _RANGE):
        part = tuple(feature_ids[start : start + _RANGE])
        own = Promotion(*({f: of[f] for f in part if f in of} for of in promotion))
        if isinstance(executor, ThreadPoolExecutor):
            waiting.append(executor.submit(_label_all, run, part, own, provenance))
        else:
            piece = _Piece(key, sent, run.corpus.seed, run.sampling, part, own, provenance)
            waiting.append(executor.submit(_label_piece, piece))
    try:
        for each in waiting:
            yield from each.result()
    finally:
        for each in waiting:
            each.cancel()


def _label_all(
    run: OfflineRun, feature_ids: Sequence[int], promotion: Promotion, provenance: Mapping[str, Any]
) -> list[FeatureLabel]:
    return [run.label(feature_id, promotion, provenance) for feature_id in feature_ids]


def _label_piece(piece: _Piece) -> list[FeatureLabel]:
    if piece.key not in _worker:
        store = FeatureStore(**piece.store) if isinstance(piece.store, dict) else load_store(piece.store)
        _worker.clear()
        _worker[piece.key] = OfflineRun(Corpus(store, piece.seed), piece.sampling)
    return _label_all(_worker[piece.key], piece.feature_ids, piece.promotion, piece.provenance)
