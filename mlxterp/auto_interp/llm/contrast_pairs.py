"""Test texts that a language model writes from a label alone: each with a twin that lacks what is described.

pairs = minimal_pairs(AnthropicCompleter(), label)
label = sensitivity_test(model, sae, label, positives=pairs.positives, negatives=pairs.negatives)
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from mlxterp.auto_interp.label import FeatureLabel, Usage
from mlxterp.auto_interp.llm.asking import Invalid, ask
from mlxterp.auto_interp.llm.prompts import VERSION, block, instructions
from mlxterp.errors import LabelingError
from mlxterp.llm import Completer, Request, run

_TOKENS_EACH = 200
_MOST_TOKENS = 16_000


class _Pair(BaseModel):
    """A text that has what the label says, and nearly the same text that lacks it."""

    positive: str
    negative: str


class _Pairs(BaseModel):
    """As many pairs as were asked for."""

    pairs: list[_Pair]


@dataclass(frozen=True)
class MinimalPairs:
    """Texts that have what a label says, and their twins that lack it, in the same order."""

    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    usage: Usage


def minimal_pairs(completer: Completer, label: FeatureLabel, *, n: int = 20) -> MinimalPairs:
    """New texts to test a label on, written from the label alone, blind to the feature.

    One question, a second one if the answer cannot be used. Pairs whose halves are equal or empty, and texts
    that were given before, are left out, so there may be fewer than `n`.

    Args:
        completer: the model that writes; its replies may be cached.
        label: one whose status is "ok".
        n: pairs; about 70 fit into one answer.

    Raises:
        LabelingError: no label; the model refused, or gave nothing usable twice.
        LlmError: the service rejected the question, did not answer, or its budget is spent.

    Source: arXiv:2509.23717 generates texts from a feature's examples and measures how many make it fire.
    Here they come from the label, and each has a negative.
    """
    if label.label is None:
        raise LabelingError(
            f"Feature {label.feature_id} has no label to write texts from: its status is {label.status!r}. "
            "Take labels whose status is 'ok'."
        )
    if n < 1:
        raise LabelingError(f"n={n} pairs. Ask for 1 or more.")

    async def job() -> MinimalPairs:
        try:
            return await _ask(completer, label, n)
        finally:
            await completer.close()

    return run(job)


async def _ask(completer: Completer, label: FeatureLabel, n: int) -> MinimalPairs:
    request = Request(
        system=instructions("pairs"),
        user=block({"label": label.label, "description": label.description, "wanted": n}),
        schema=_Pairs,
        max_tokens=min(_MOST_TOKENS, 1_000 + _TOKENS_EACH * n),
        version=VERSION,
    )

    def accept(value: _Pairs) -> list[_Pair] | Invalid:
        distinct = _distinct(value.pairs)[:n]
        return distinct or Invalid(f"none of {len(value.pairs)} pairs has two different texts")

    answer = await ask(completer, request, _Pairs, accept)
    if answer.value is None:
        raise LabelingError(
            f"{completer.model} was asked for {n} pairs of texts on {label.label!r}; it gave none: "
            f"{answer.reason}. Give positives and negatives yourself, or another label."
        )
    return MinimalPairs(
        tuple(pair.positive for pair in answer.value),
        tuple(pair.negative for pair in answer.value),
        answer.usage,
    )


def _distinct(pairs: list[_Pair]) -> list[_Pair]:
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        texts = {pair.positive.strip(), pair.negative.strip()}
        if len(texts) == 2 and all(texts) and not texts & seen:
            seen |= texts
            kept.append(pair)
    return kept
