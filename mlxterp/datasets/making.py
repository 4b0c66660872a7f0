"""What every behaviour needs to make its pairs: candidates of one length, and only those the model shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.encoding import side_by_side, token_id
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Tokens
from mlxterp.errors import LengthMismatch, PromptPairError, TokenError


def first_shown(
    model: InterpretableModel, candidates: Iterable[PromptPair], n: int, *, shown: bool, what: str
) -> list[PromptPair]:
    """The first n of these candidates, in their order, that have the same length and that the model shows.

    Costs two forwards per candidate that is tried, in batches; none if not `shown`.

    Args:
        candidates: as many as one is willing to try; of the lengths among them the commonest is used.
        shown: leave out pairs on which the model does not show the behaviour.
        what: the behaviour, for the message.

    Raises:
        LengthMismatch: a clean and its corrupted prompt differ in length.
        PromptPairError: fewer than n are left.
    """
    unlike = [pair for pair in dict.fromkeys(candidates) if _answer(model, pair) != _foil(model, pair)]
    alike = _of_one_length(model, unlike)
    found: list[PromptPair] = []
    tried = 0
    while len(found) < n and tried < len(alike):
        batch = alike[tried : tried + n]
        found += filter_by_behavior(model, batch) if shown else batch
        tried += len(batch)
    if len(found) < n:
        of_these = f", and {model.name} shows it on {len(found)} of them" if shown else ""
        raise PromptPairError(
            f"{n} pairs of {what} were asked for; drawn were {tried} different ones of one token length"
            f"{of_these}. Ask for fewer, or give more words to choose from."
        )
    return found[:n]


def _of_one_length(model: InterpretableModel, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    by_length: dict[int, list[PromptPair]] = defaultdict(list)
    for pair in pairs:
        clean, corrupted = rows_of(model, pair.clean)[0], rows_of(model, pair.corrupted)[0]
        if len(clean) != len(corrupted):
            shown = side_by_side(model, {"clean": clean, "corrupted": corrupted})
            raise LengthMismatch(
                f"with the tokenizer of {model.name} clean has {len(clean)} tokens, corrupted has "
                f"{len(corrupted)}, so positions don't correspond.\n{shown}\n"
                "Choose words whose length in tokens does not depend on their place."
            )
        by_length[len(clean)].append(pair)
    return max(by_length.values(), key=len, default=[])


def filter_by_behavior(model: InterpretableModel, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """Those pairs on which the clean run prefers the answer and the corrupted run the foil."""
    clean, corrupted = (
        sweep.answer_logits(model, np.concatenate([rows_of(model, prompt) for prompt in prompts]))
        for prompts in ([pair.clean for pair in pairs], [pair.corrupted for pair in pairs])
    )
    kept = []
    for pair, c, x in zip(pairs, clean, corrupted, strict=True):
        answer, foil = _answer(model, pair), _foil(model, pair)
        if c[answer] > c[foil] and x[answer] < x[foil]:
            kept.append(pair)
    return kept


def _answer(model: InterpretableModel, pair: PromptPair) -> int:
    assert pair.answer is not None
    return token_id(model, pair.answer)


def _foil(model: InterpretableModel, pair: PromptPair) -> int:
    assert pair.foil is not None
    return token_id(model, pair.foil)


def rows_of(model: InterpretableModel, prompt: str | Sequence[int]) -> Tokens:
    """The tokens of a prompt [1, pos]."""
    tokens = model.to_tokens(prompt)
    assert not isinstance(tokens, list)
    return tokens


def row_of(model: InterpretableModel, text: str) -> Tokens | None:
    """The tokens of a text, or None where a tokenizer has none for it."""
    try:
        return rows_of(model, text)
    except TokenError:
        return None


def is_one_word(model: InterpretableModel, word: str) -> bool:
    """Whether a word with its leading space is one token."""
    try:
        model.to_single_token(f" {word}")
    except TokenError:
        return False
    return True
