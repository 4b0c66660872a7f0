"""Induction: random words that begin to repeat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.making import filter_by_behavior, is_one_word
from mlxterp.errors import PromptPairError
from mlxterp.models.toy_circuit import WORDS


def repeated_random_pairs(
    model: InterpretableModel, n: int = 16, *, period: int = 12, seed: int = 0
) -> list[PromptPair]:
    """Random words that begin to repeat: `… dog salt … lake tree … dog` is continued with `salt`.

    In the corrupted prompt the words before the answer and before the foil have changed places (`… lake salt
    … dog tree … dog`), so the same repetition is continued with the foil: `tree`. Both prompts hold the same
    words, and a head that attends a fixed distance back sees the same word in both. In every pair the same
    positions change.

    Args:
        n: how many pairs.
        period: how many words, all different, before they repeat; at least 6.
        seed: of the words.

    Raises:
        PromptPairError: the tokenizer has too few of the words as one token, or the model does not continue
            repetitions.
    """
    words = [word for word in WORDS if is_one_word(model, word)]
    if not 6 <= period <= len(words):
        raise PromptPairError(
            f"period={period}: sequences are made of 6 to {len(words)} different words, those that are one "
            f"token each for {model.name}. Choose a period in that range."
        )
    query, other = period // 4, 2 * period // 3
    rng = np.random.default_rng(seed)
    found: list[PromptPair] = []
    for _ in range(4):  # a real model fails on some: draw again, a few times
        drawn = [rng.choice(words, size=period, replace=False).tolist() for _ in range(n)]
        found += filter_by_behavior(model, [_repetition(each, query, other) for each in drawn])
        if len(found) >= n:
            return found[:n]
    raise PromptPairError(
        f"{model.name} continues {len(found)} of {4 * n} repeated sequences of {period} words, and {n} "
        "pairs were asked for. Ask for fewer pairs or another period; or the model has no such behaviour."
    )


def _repetition(words: Sequence[str], query: int, other: int) -> PromptPair:
    changed = list(words)
    changed[query], changed[other] = words[other], words[query]
    repeat = list(words[: query + 1])
    return PromptPair(
        clean=" " + " ".join([*words, *repeat]),
        corrupted=" " + " ".join([*changed, *repeat]),
        answer=f" {words[query + 1]}",
        foil=f" {words[other + 1]}",
        name=f"after {words[query]}",
    )
