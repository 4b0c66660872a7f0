"""Induction: random words that begin to repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.datasets.selection import DRAWS_PER_PAIR, Selection, is_one_word, select_pairs
from mlxterp.errors import PromptPairError
from mlxterp.models.toy_circuit import WORDS


def repeated_random_pairs(
    model: InterpretableModel,
    n: int = 16,
    *,
    period: int = 12,
    repeats: int = 1,
    seed: int = 0,
    shown: bool = True,
    apart_from: Sequence[PromptPair] = (),
) -> list[PromptPair]:
    """Random words that begin to repeat: `… dog salt … lake tree … dog` is continued with `salt`.

    In the corrupted prompt the words before the answer and before the foil have changed places (`… lake salt
    … dog tree … dog`), so the same repetition is continued with the foil: `tree`. Both prompts hold the same
    words, and a head that attends a fixed distance back sees the same word in both. In every pair the same
    positions change. Costs two forwards per pair that is tried, at most eight times n pairs.

    Args:
        n: how many pairs; no two share a prompt.
        period: how many words, all different, before they repeat; at least 6.
        repeats: how often they are there in full before they begin once more. A toy needs one; SmolLM2-135M
            shows the behaviour on 40 % of pairs that were not chosen for it after one, on 67 % after two.
        seed: of the words; another seed draws other pairs.
        shown: only pairs on which the model shows the behaviour; False to measure how often it does.
        apart_from: pairs to share no prompt with, such as those already explored.

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
    if repeats < 1:
        raise PromptPairError(
            f"repeats={repeats}: the words are there once at least, to be repeated. Choose 1 or more."
        )

    def candidates() -> Iterator[PromptPair]:
        rng = np.random.default_rng(seed)
        for _ in range(DRAWS_PER_PAIR * n):
            drawn = rng.choice(words, size=period, replace=False).tolist()
            yield _make_pair(drawn, repeats, query=period // 4, other=2 * period // 3)

    selection = Selection(n, shown, one_length=True, apart_from=apart_from)
    return select_pairs(model, candidates(), selection, what=f"repetitions of {period} words")


def _make_pair(words: Sequence[str], repeats: int, query: int, other: int) -> PromptPair:
    changed = list(words)
    changed[query], changed[other] = words[other], words[query]
    beginning = list(words[: query + 1])
    return PromptPair(
        clean=" " + " ".join([*list(words) * repeats, *beginning]),
        corrupted=" " + " ".join([*changed * repeats, *beginning]),
        answer=f" {words[query + 1]}",
        foil=f" {words[other + 1]}",
        name=f"after {words[query]}",
    )
