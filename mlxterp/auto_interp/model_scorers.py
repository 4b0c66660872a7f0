"""Scorers that use the model under study itself, and need no key: surprisal and intervention.

A small model reads a label badly, so these are weak evidence for a label and hardly any against it; they are
reported beside the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.auto_interp.evidence.evidence import FeatureEvidence, Window
from mlxterp.auto_interp.label import Proposal, Score
from mlxterp.auto_interp.scores import auroc, score_from_counts, too_few_decided
from mlxterp.core.interventions import Intervention
from mlxterp.core.linux_blas import blas
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import TextTokens
from mlxterp.errors import LabelingError, TokenError
from mlxterp.sae.analysis.interventions import feature_add
from mlxterp.sae.sae import SAE

Floats = NDArray[np.float64]

BATCH_TOKENS = 1024
"""Tokens of one forward: their logits must fit in memory."""

WITH_LABEL = "The following text is an example of: {label}. {description}\n\n"
WITHOUT_LABEL = "The following text is an example, and one like any other. It is given here as it is.\n\n"


@dataclass(frozen=True, eq=False)
class SurprisalScorer:
    """Whether the label before a text makes the text less surprising where the feature fires.

    For each window, the mean loss of its tokens after a neutral sentence minus that after the label, in nats
    a token. A label that is true of the positives lowers their loss more than that of the negatives. The gain
    that counts as a yes is fitted on the training half.

    Costs two forwards a window of the length of window and label; no calls.

    Args:
        model: the model under study, or another.
        with_label, without_label: what stands before a text. `{label}` and `{description}` are filled in.

    Source: Paulo et al. 2024, arXiv:2410.13928 (surprisal scoring). Deviations: a neutral sentence instead of
    none, as any sentence changes the loss; balanced accuracy with the training half's threshold beside the
    AUROC.
    """

    model: InterpretableModel
    with_label: str = WITH_LABEL
    without_label: str = WITHOUT_LABEL

    async def score(self, evidence: FeatureEvidence, proposal: Proposal) -> Mapping[str, Score]:
        """{"surprisal": …} on the test half; empty without positives and negatives in both halves.

        Raises:
            LabelingError: with_label or without_label has no tokens.
        """
        return _scored("surprisal", evidence, lambda windows: self.gains(windows, proposal))

    @blas.pinned_threads()
    def gains(self, windows: Sequence[Window], proposal: Proposal) -> Floats:
        """[n] by how many nats a token the label lowers the loss of each window."""
        # Not str.format: a label may hold braces.
        prefix = self.with_label.replace("{description}", proposal.description)
        prefix = prefix.replace("{label}", proposal.label)
        texts = [window.text for window in windows]
        return _losses(self.model, self.without_label, texts) - _losses(self.model, prefix, texts)


@dataclass(frozen=True, eq=False)
class InterventionScorer:
    """Whether steering along the feature makes the tokens that its label names likelier.

    In each window the feature is added at every position, as strongly as its greatest activation, and the
    rise of the log probability that the next token is one of those named is measured, in nats, as the mean
    over positions. The same is done with random other features at the same norm. The label holds where the
    feature's rise exceeds theirs; the rise that counts as a yes is fitted on the training half.

    Only a label of kind "output" claims anything of this kind. Its tokens are those that label and
    description name in quotation marks, or else the words of the label that are one token. Other labels get
    no score, nor do those of which no named token is in the vocabulary.

    Costs three forwards of a half's windows in one batch: unchanged, steered, and steered along others.

    Args:
        model, sae: what the feature is of.
        strength: in units of the feature's greatest activation.
        windows: at most this many of each half are steered, positives and negatives alike.
        seed: of the control features, together with the feature's number.

    Source: the idea of Paulo et al. 2024, arXiv:2410.13928 (intervention scoring), where a language model
    reads what the steered model writes; here the named tokens' own probability is measured.
    """

    model: InterpretableModel
    sae: SAE
    strength: float = 1.0
    windows: int = 24
    seed: int = 0

    async def score(self, evidence: FeatureEvidence, proposal: Proposal) -> Mapping[str, Score]:
        """{"intervention": …}; empty where the label claims nothing about what comes next.

        Raises:
            SAEError: a transcoder, which writes elsewhere than it reads.
        """
        named = self.named(proposal)
        if not named or evidence.max_activation <= 0 or self.sae.d_sae < 2:
            return {}
        random = np.random.default_rng([self.seed, evidence.feature_id, 3])
        rises = {}
        for half, windows in (
            ("train", (*evidence.train_positives, *evidence.train_negatives)),
            ("test", (*evidence.test_positives, *evidence.test_negatives)),
        ):
            chosen = [windows[i] for i in random.permutation(len(windows))[: self.windows]]
            if not chosen:
                return {}
            rises[half] = self.rises(chosen, evidence, named, random)
        details = {"named": [self.model.to_string([token]) for token in named]}
        return {"intervention": _score(*rises["train"], *rises["test"], details=details)}

    def named(self, proposal: Proposal) -> list[int]:
        """The ids of the tokens that a label predicts; none unless its kind is "output"."""
        if proposal.kind != "output":
            return []
        text = f"{proposal.label} {proposal.description}"
        words = re.findall(r'"([^"]+)"', text) or re.findall(r"\w+", proposal.label)
        tokens = (self._token(form) for word in words for form in (word, f" {word.strip()}"))
        return sorted({token for token in tokens if token is not None})

    def _token(self, text: str) -> int | None:
        try:
            return self.model.to_single_token(text)
        except TokenError:
            return None

    @blas.pinned_threads()
    def rises(
        self,
        windows: Sequence[Window],
        evidence: FeatureEvidence,
        named: Sequence[int],
        random: np.random.Generator,
    ) -> tuple[Floats, Floats]:
        """([n], [n]) the named tokens' rise by the feature, and by a random other one of equal norm."""
        f = evidence.feature_id
        norms = np.linalg.norm(np.array(self.sae.W_dec, dtype=np.float64), axis=1)
        usable = np.flatnonzero((norms > 0) & (np.arange(self.sae.d_sae) != f))
        amount = self.strength * evidence.max_activation
        others = [int(other) for other in random.choice(usable, size=len(windows))]
        controls = [
            feature_add(self.sae, other, float(amount * norms[f] / norms[other]), rows=row)
            for row, other in enumerate(others)
        ]
        texts = [window.text for window in windows]
        before = self._levels(texts, named, [])
        own = self._levels(texts, named, [feature_add(self.sae, f, amount)])
        return own - before, self._levels(texts, named, controls) - before

    def _levels(self, texts: Sequence[str], named: Sequence[int], steering: Sequence[Intervention]) -> Floats:
        """[n] the mean over positions of the log probability that the next token is a named one."""
        trace = self.model.trace(texts, interventions=steering)
        chosen = mx.logsumexp(_log_probs(trace.logits)[..., mx.array(list(named))], axis=-1)
        levels = np.array(chosen, dtype=np.float64)
        return np.array([row[:length].mean() for row, length in zip(levels, trace.lengths, strict=True)])


def _log_probs(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _losses(model: InterpretableModel, prefix: str, texts: Sequence[str]) -> Floats:
    """[n] the mean loss of each text's tokens behind the prefix, in nats; NaN for a text without tokens."""
    reader = TextTokens(model.tokenizer, prepend_bos=model.prepend_bos_option)
    before = reader.encode(prefix)
    if not before:
        raise LabelingError(
            f"The loss of a text behind {prefix!r}, which has no tokens: its first token is predicted from "
            "nothing. Give words that stand before the text."
        )
    rows = [reader.encode(text, special=False) for text in texts]
    found = np.full(len(rows), np.nan)
    order = sorted((i for i in range(len(rows)) if rows[i]), key=lambda i: len(rows[i]))
    while order:
        longest = len(before) + len(rows[order[-1]])
        batch, order = order[-max(1, BATCH_TOKENS // longest) :], order[: -max(1, BATCH_TOKENS // longest)]
        lengths = [len(before) + len(rows[i]) for i in batch]
        tokens = np.zeros((len(batch), max(lengths)), dtype=np.int64)
        for row, i in enumerate(batch):
            tokens[row, : lengths[row]] = [*before, *rows[i]]
        logits, _ = model.run(tokens, lengths=lengths)
        targets = mx.array(tokens[:, len(before) :])
        log_probs = _log_probs(logits[:, len(before) - 1 : -1])
        loss = -np.array(mx.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0], dtype=np.float64)
        for row, i in enumerate(batch):
            found[i] = loss[row, : len(rows[i])].mean()
    return found


def _scored(
    name: str, evidence: FeatureEvidence, measure: Callable[[Sequence[Window]], Floats]
) -> Mapping[str, Score]:
    halves = (
        evidence.train_positives,
        evidence.train_negatives,
        evidence.test_positives,
        evidence.test_negatives,
    )
    if not all(halves):
        return {}
    return {name: _score(*(measure(half) for half in halves))}


def _score(
    train_positive: Floats,
    train_negative: Floats,
    positive: Floats,
    negative: Floats,
    *,
    details: Mapping[str, Any] | None = None,
) -> Score:
    """A score of test values above a threshold that was found on training values.

    A text whose value is NaN says nothing and counts as neither; the score's coverage says how many do.
    """
    total = len(positive) + len(negative)
    train_positive, train_negative, positive, negative = (
        each[np.isfinite(each)] for each in (train_positive, train_negative, positive, negative)
    )
    fitted = len(train_positive) + len(train_negative) > 0
    without = too_few_decided(len(positive) * fitted, len(negative) * fitted, total, details)
    if without is not None:
        return without
    threshold = best_threshold(train_positive, train_negative)
    hits, alarms = int((positive > threshold).sum()), int((negative > threshold).sum())
    curve = auroc(positive, negative)
    score = score_from_counts(
        hits,
        len(positive) - hits,
        len(negative) - alarms,
        alarms,
        auroc=curve.value,
        auroc_interval=curve.interval,
        details={
            "threshold": threshold,
            "mean_positive": float(positive.mean()),
            "mean_negative": float(negative.mean()),
            **(details or {}),
        },
    )
    return replace(score, coverage=(len(positive) + len(negative)) / total)


def best_threshold(positive: Floats, negative: Floats) -> float:
    """The value that separates positives above from negatives below best; of equals the lowest.

    It is in the middle between two adjacent values.
    """
    values = np.unique(np.concatenate([positive, negative]))
    between = np.concatenate([[values[0] - 1.0], (values[:-1] + values[1:]) / 2])
    hits = (positive[:, None] > between).mean(axis=0)
    rejections = (negative[:, None] <= between).mean(axis=0)
    return float(between[int(np.argmax(hits + rejections))])
