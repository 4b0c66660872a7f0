"""Labels of SAE features, step by step: a store of where features fire, evidence from it, a label, its
scores on held-out text, and the confidence that they give.

`auto_label_features` is the entry point. Evidence is in `evidence/`; labelers are in `rules/fitting.py` (an
executable rule, no language model) and `llm/labeler.py`; scorers in `rules/fitting.py`, `llm/scorers.py` and
`model_scorers.py`; the confidence is in `label.with_scores`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlxterp._version import __version__
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
    with_scores,
)
from mlxterp.auto_interp.promoted_tokens import neighbours, promotion
from mlxterp.auto_interp.rules.fitting import OfflineRun, label_offline, unlabelled
from mlxterp.component_names import component_name
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt
from mlxterp.errors import LabelingError, LlmAway, LlmBudgetReached, OfflineLabels
from mlxterp.measurements import recorder
from mlxterp.results.features import FeatureLabelsResult
from mlxterp.sae.feature_store.build import build_store, same_texts
from mlxterp.sae.feature_store.store import FeatureStore
from mlxterp.sae.sae import SAE

if TYPE_CHECKING:
    from mlxterp.llm import Completer

DENSE = 0.1
"""Features that fire at more than this share of tokens are not chosen by `top_k_features`."""

KEY = "ANTHROPIC_API_KEY"

Report = Callable[[str], None]

_FEATURES_PER_CALL = 4  # features in work for each question that may be under way


def auto_label_feature(
    model: InterpretableModel,
    sae: SAE,
    feature_id: int,
    texts: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    llm: Literal["auto"] | Completer | None = "auto",
    llm_model: str | None = None,
    store: FeatureStore | None = None,
    max_usd: float | None = None,
    seed: int = 0,
) -> FeatureLabel:
    """The label of one feature: `auto_label_features` with one number.

    Without `store`, all of `texts` is read for this feature. To label several, make the store once.

    Raises:
        LabelingError, StoreError, SAEError: as `auto_label_features`.
    """
    return auto_label_features(
        model,
        sae,
        texts=texts,
        layer=layer,
        component=component,
        feature_ids=[feature_id],
        llm=llm,
        llm_model=llm_model,
        store=store,
        max_usd=max_usd,
        seed=seed,
    )[0]


def auto_label_features(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt] | None = None,
    *,
    layer: int | None = None,
    component: str | None = None,
    top_k_features: int | None = None,
    feature_ids: Sequence[int] | None = None,
    llm: Literal["auto"] | Completer | None = "auto",
    llm_model: str | None = None,
    store: FeatureStore | None = None,
    sampling: Sampling | None = None,
    scorers: Sequence[Scorer] = (),
    max_usd: float | None = None,
    max_concurrency: int = 8,
    verbose: bool = False,
    progress: Callable[[str], None] | None = None,
    executor: Executor | None = None,
    seed: int = 0,
) -> list[FeatureLabel]:
    """Labels of features, each tested on texts that its labeler has not seen.

    One pass of the model over all texts finds where every feature fires; the number of forwards does not
    grow with the number of features. Documents are split in two by a hash. From where a feature fires in
    one half, and where it does not, a labeler proposes a label or abstains. On the other half the label is
    scored: `confidence` is the probability that its balanced accuracy is 0.75 or more. A feature that fires
    nowhere or too rarely, or whose best label has a confidence below 0.1, gets a `status` and no label.

    With the environment variable ANTHROPIC_API_KEY, or a completer, a language model labels and judges;
    otherwise the offline labeler fits an executable rule (`method` says which). Offline, a feature takes
    about 5 ms.

    Args:
        model: the model the SAE reads.
        sae: whose features.
        texts: texts, or token ids; all of them are read. Some hundred are needed: a feature must fire at 8
            places in each half.
        layer, component: where the caller believes the SAE reads ("mlp" or "mlp_out", "attn", "resid_post");
            another place is an error.
        top_k_features: the most active ones: by the sum of all activations, among those that fire at 10 % of
            tokens or less and often enough to be labelled.
        feature_ids: these. Without either, all of them; a language model is then asked with `max_usd` only.
        llm: "auto"; None for the offline labeler; or a completer (`mlxterp.llm`).
        llm_model: the name of the Claude model to ask.
        store: where features fire, from `build_store` on the same SAE (and texts, if both are given).
        sampling: how much evidence.
        scorers: further scores. "rule", "detection" and "fuzzing" make up the confidence, others do not.
        max_usd: limit of the language model's cost.
        max_concurrency: questions to it at once.
        verbose: progress on stderr.
        progress: called with lines of progress.
        executor: spreads the pass over documents, and offline labels over features (`build_store` says how).
            A store that lies on disk is sent by its path. Labels are the same bit for bit.
        seed: of the split and of all draws.

    Returns:
        one label per feature, in the order asked for, or the most active first.

    Raises:
        LabelingError: nothing to label from, a layer that is not the SAE's, both choices of features.
        StoreError: no texts, no such feature, a store of another SAE or other texts.
        SAEError, UnknownHookPoint, CapabilityUnavailable: the SAE does not fit the model.
        LlmRejected: the service rejects every question, as with a wrong key; no label is made offline then.
    """
    check_place(sae, layer, component)
    report = progress or (_to_stderr if verbose else _ignore)
    completer, labeler = _completer(llm, llm_model, max_usd, max_concurrency)
    if completer is not None and top_k_features is None and feature_ids is None and max_usd is None:
        raise LabelingError(
            f"Labels of all {sae.d_sae} features by {completer.model} without a limit: some cents each. "
            "Give top_k_features=, feature_ids= or max_usd=; or llm=None for offline labels."
        )
    if store is not None:
        same_texts(store, sae, texts)
    elif texts is not None:
        store = build_store(model, sae, texts, executor=executor, progress=report)
    else:
        raise LabelingError("Neither texts nor a store was given. Give texts=, some hundred of them.")
    corpus = Corpus(store, seed)
    recorder.add_method("auto_label_features")
    sampling = sampling or Sampling()
    chosen = _chosen(corpus, sampling, top_k_features, feature_ids)
    provenance = {**store.facts, "seed": seed, "mlxterp": __version__, "labeler": labeler}
    logits = promotion(model, sae, chosen)
    if completer is None:
        found = label_offline(OfflineRun(corpus, sampling), chosen, logits, provenance, executor)
        labels = list(_reported(found, len(chosen), report))
        return labels if not scorers else _scored_further(corpus, sampling, labels, scorers, max_concurrency)
    evidence = gather(
        corpus,
        chosen,
        sampling=sampling,
        neighbours=neighbours(sae, chosen),
        promoted=logits.promoted,
        suppressed=logits.suppressed,
    )
    pipeline = LlmPipeline.of(completer, scorers, seed, provenance)
    return pipeline.label_all(
        evidence, len(chosen), at_once=_FEATURES_PER_CALL * max_concurrency, report=report
    )


def labels_result(labels: Sequence[FeatureLabel], **measured_on: Any) -> FeatureLabelsResult:
    """Labels as a result, for tables, JSON and reports."""
    first = labels[0].provenance if labels else {}
    return FeatureLabelsResult(
        labels=tuple(label.to_dict() for label in labels), measured_on={**first, **measured_on}
    )


def check_place(sae: SAE, layer: int | None, component: str | None) -> None:
    """Raises LabelingError where the SAE reads at another place than the caller believes."""
    asked = {
        "layer": layer,
        "component": None if component is None else component_name(component),
    }
    has = {"layer": sae.point.layer, "component": sae.point.name}
    wrong = {name: value for name, value in asked.items() if value is not None and value != has[name]}
    if wrong:
        named = " and ".join(f"{name}={value!r}" for name, value in wrong.items())
        raise LabelingError(
            f"{named} was asked for; this SAE reads {sae.hook_point}. Leave it out, or give another SAE."
        )


@dataclass(frozen=True)
class LlmPipeline:
    """Labels by a language model: one that proposes, and judges that score what it proposed."""

    completer: Completer
    labeler: Labeler
    judges: Sequence[Scorer]
    provenance: Mapping[str, Any]

    @classmethod
    def of(
        cls, completer: Completer, scorers: Sequence[Scorer], seed: int, provenance: Mapping[str, Any]
    ) -> LlmPipeline:
        # Only here: the offline labeler needs neither pydantic nor the service's package.
        from mlxterp.auto_interp.llm.labeler import LlmLabeler
        from mlxterp.auto_interp.llm.scorers import LlmScorer

        labeler = LlmLabeler(completer, seed=seed)
        facts = {**provenance, "labeler": labeler.name}
        return cls(completer, labeler, [LlmScorer(completer, seed=seed), *scorers], facts)

    def label_all(
        self, evidence: Iterator[FeatureEvidence], n: int, *, at_once: int, report: Report
    ) -> list[FeatureLabel]:
        """The labels of n features, some of them at once.

        Raises:
            LlmRejected: the service rejects every question.
        """
        from mlxterp.llm import run, together

        async def job() -> list[FeatureLabel]:
            places = asyncio.Semaphore(at_once)
            done = 0

            async def one(_: int) -> FeatureLabel:
                nonlocal done
                async with places:
                    # Drawn here, so that only the features in work hold their windows.
                    label = await self.label(next(evidence))
                done += 1
                report(f"labels of {done} of {n} features")
                return label

            try:
                return await together(*(one(i) for i in range(n)))
            finally:
                await self.completer.close()

        return run(job)

    async def label(self, evidence: FeatureEvidence) -> FeatureLabel:
        """Evidence → label → scores → confidence, for one feature."""
        if evidence.status != "ok":
            return replace(unlabelled(evidence, evidence.status, self.provenance), method="llm")
        blank = replace(unlabelled(evidence, "uninterpretable", self.provenance), method="llm")
        found = await self.labeler.propose(evidence)
        if isinstance(found, Abstention):
            return replace(blank, description=found.reason, usage=found.usage)
        if isinstance(found, LabelingFailure):
            return replace(blank, status=found.status, error=found.error, usage=found.usage)
        scores: dict[str, Score] = {}
        try:
            for judge in self.judges:
                scores |= await judge.score(evidence, found)
        except (LlmAway, LlmBudgetReached) as problem:
            return replace(blank, status="error", error=f"no score: {problem}", usage=found.usage)
        costs = (Usage(**score.details.get("usage", {})) for score in scores.values())
        return replace(with_scores(blank, found, scores), usage=sum(costs, found.usage))


def _scored_further(
    corpus: Corpus,
    sampling: Sampling,
    labels: Sequence[FeatureLabel],
    scorers: Sequence[Scorer],
    max_concurrency: int,
) -> list[FeatureLabel]:
    """Offline labels with the scores of further scorers."""
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
        return with_scores(label, proposal, scores)

    async def job() -> list[FeatureLabel]:
        places = asyncio.Semaphore(max_concurrency)
        return await together(*(one(label, places) for label in labels))

    return run(job)


def _chosen(
    corpus: Corpus, sampling: Sampling, top_k: int | None, feature_ids: Sequence[int] | None
) -> list[int]:
    store = corpus.store
    if feature_ids is not None:
        if top_k is not None:
            raise LabelingError(
                f"top_k_features={top_k} and {len(feature_ids)} feature_ids. Give one of them, or neither."
            )
        for feature_id in feature_ids:
            store.feature(int(feature_id))
        return [int(feature_id) for feature_id in feature_ids]
    if top_k is None:
        return list(range(store.d_sae))
    if top_k < 1:
        raise LabelingError(f"top_k_features={top_k}. Give 1 or more.")
    often = store.counts >= 2 * sampling.min_examples
    mass = np.where(often & (store.density <= DENSE), store.counts * store.mean_activation, -1.0)
    order = np.argsort(-mass, kind="stable")[:top_k]
    return [int(i) for i in order if mass[i] > 0]


def _completer(
    llm: Literal["auto"] | Completer | None,
    llm_model: str | None,
    max_usd: float | None,
    max_concurrency: int,
) -> tuple[Completer | None, str]:
    """The completer, None for offline labels; and a description of the labeler."""
    if llm is None:
        if llm_model is not None:
            raise LabelingError(
                f"llm=None asks for offline labels, llm_model={llm_model!r} for others. Drop one."
            )
        return None, "offline: llm=None"
    if not isinstance(llm, str):
        if llm_model is not None or max_usd is not None:
            raise LabelingError(
                f"A completer with llm_model={llm_model!r} and max_usd={max_usd!r}. It has its model "
                "and its limit already: set them there."
            )
        return llm, f"language model {llm.model}"
    if llm != "auto":
        raise LabelingError(
            f"llm={llm!r}. Give 'auto', None, or a completer; the model's name is llm_model=."
        )
    if not os.environ.get(KEY):
        if llm_model is not None:
            warnings.warn(
                OfflineLabels(
                    f"{llm_model} was asked for and {KEY} is not set: the labels are made offline, by rules. "
                    "Set the key, or give llm=None."
                ),
                stacklevel=3,
            )
        return None, f"offline: {KEY} is not set"
    from mlxterp.llm import DEFAULT_MODEL, AnthropicCompleter, CachedCompleter, ReplyCache

    asked = AnthropicCompleter(llm_model or DEFAULT_MODEL, max_usd=max_usd, max_concurrency=max_concurrency)
    return CachedCompleter(asked, ReplyCache()), f"language model {asked.model}"


def _reported(labels: Iterable[FeatureLabel], n: int, report: Report) -> Iterator[FeatureLabel]:
    for i, label in enumerate(labels):
        yield label
        if (i + 1) % 100 == 0 or i + 1 == n:
            report(f"labels of {i + 1} of {n} features")


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _ignore(_: str) -> None:
    """No progress was asked for."""
