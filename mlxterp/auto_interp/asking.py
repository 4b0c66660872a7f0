"""Labels that wait for somebody: a language model that proposes and judges, and further scorers.

Lives here: asking about many features at once, and what becomes of each answer. Does not live here: the
questions (`labeler.py`, `scorers.py`), who wants labels (`api.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlxterp.auto_interp.evidence.corpus import Corpus
from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Sampling, gather
from mlxterp.auto_interp.label import (
    Abstention,
    FeatureLabel,
    Labeler,
    LabelingFailure,
    Proposal,
    Score,
    Scorer,
    Usage,
)
from mlxterp.auto_interp.rules.offline_run import unlabelled
from mlxterp.errors import LlmAway, LlmBudgetReached

if TYPE_CHECKING:
    from mlxterp.llm import Completer

_CONFIDENCE_FROM = ("rule", "detection", "fuzzing")
_FEATURES_PER_CALL = 4  # features under way for each call that may be under way


def label_by_asking(
    completer: Completer,
    evidence: Iterator[FeatureEvidence],
    n: int,
    provenance: Mapping[str, Any],
    scorers: Sequence[Scorer],
    max_concurrency: int,
    seed: int,
    tell: Callable[[str], None],
) -> list[FeatureLabel]:
    """The label of each feature by a language model, scored by its judgement and by `scorers`.

    Raises:
        LlmRejected: the service answers no question of ours.
    """
    # Only here: the offline labeler needs neither pydantic nor the service's package.
    from mlxterp.auto_interp.llm.labeler import LlmLabeler
    from mlxterp.auto_interp.llm.scorers import LlmScorer
    from mlxterp.llm import run, together

    labeler = LlmLabeler(completer, seed=seed)
    judges: list[Scorer] = [LlmScorer(completer, seed=seed), *scorers]

    async def job() -> list[FeatureLabel]:
        places = asyncio.Semaphore(_FEATURES_PER_CALL * max_concurrency)
        done = 0

        async def one(_: int) -> FeatureLabel:
            nonlocal done
            async with places:
                # Drawn here, so that only features under way hold their windows.
                label = await _labelled(next(evidence), labeler, judges, provenance)
            done += 1
            tell(f"labels of {done} of {n} features")
            return label

        try:
            return await together(*(one(i) for i in range(n)))
        finally:
            await completer.close()

    return run(job)


async def _labelled(
    evidence: FeatureEvidence, labeler: Labeler, judges: Sequence[Scorer], provenance: Mapping[str, Any]
) -> FeatureLabel:
    facts = {**provenance, "labeler": labeler.name}
    if evidence.status != "ok":
        return replace(unlabelled(evidence, evidence.status, facts), method="llm")
    blank = replace(unlabelled(evidence, "uninterpretable", facts), method="llm")
    found = await labeler.propose(evidence)
    if isinstance(found, Abstention):
        return replace(blank, description=found.reason, usage=found.usage)
    if isinstance(found, LabelingFailure):
        return replace(blank, status=found.status, error=found.error, usage=found.usage)
    scores: dict[str, Score] = {}
    try:
        for judge in judges:
            scores |= await judge.score(evidence, found)
    except (LlmAway, LlmBudgetReached) as problem:
        return replace(blank, status="error", error=f"no score: {problem}", usage=found.usage)
    return replace(
        blank,
        status="ok",
        label=found.label,
        description=found.description,
        kind=found.kind,
        rule=found.rule,
        llm_confidence=found.llm_confidence,
        usage=sum((_usage(score) for score in scores.values()), found.usage),
        scores=scores,
        confidence=_confidence(scores),
    )


def _usage(score: Score) -> Usage:
    return Usage(**score.details.get("usage", {}))


def _confidence(scores: Mapping[str, Score]) -> float:
    return min((scores[name].confidence for name in _CONFIDENCE_FROM if name in scores), default=0.0)


def also_scored(
    corpus: Corpus,
    sampling: Sampling,
    labels: Sequence[FeatureLabel],
    scorers: Sequence[Scorer],
    max_concurrency: int,
) -> list[FeatureLabel]:
    """Labels with further scores."""
    from mlxterp.llm import run, together

    async def one(label: FeatureLabel, places: asyncio.Semaphore) -> FeatureLabel:
        if label.label is None:
            return label
        async with places:
            evidence = next(gather(corpus, [label.feature_id], sampling=sampling))
            proposal = Proposal(label.label, label.description, label.kind, label.rule)
            scores = dict(label.scores)
            for scorer in scorers:
                scores |= await scorer.score(evidence, proposal)
        return replace(label, scores=scores, confidence=_confidence(scores))

    async def job() -> list[FeatureLabel]:
        places = asyncio.Semaphore(max_concurrency)
        return await together(*(one(label, places) for label in labels))

    return run(job)
