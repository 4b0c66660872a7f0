"""Selection of a behaviour's prompt pairs: independent, of one token length, and shown by the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.encoding import side_by_side, token_id
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Tokens
from mlxterp.errors import LengthMismatch, PromptPairError, TokenError

DRAWS_PER_PAIR = 8
"""Candidates drawn for each requested pair."""


@dataclass(frozen=True)
class Selection:
    """Which of the drawn candidates are kept, and how many.

    Attributes:
        n: how many; no two share a prompt, so each is an independent cluster.
        shown: only those on which the model shows the behaviour.
        one_length: only those of the commonest token length.
        apart_from: pairs with which they share no prompt.
    """

    n: int
    shown: bool
    one_length: bool
    apart_from: Sequence[PromptPair]


def select_pairs(
    model: InterpretableModel, candidates: Iterable[PromptPair], selection: Selection, *, what: str
) -> list[PromptPair]:
    """The first candidates that the selection allows, in their order.

    Costs two forwards per candidate that is tried, in batches; none if not `shown`.

    Args:
        candidates: as many as may be tried.
        what: the behaviour's name, for the error message.

    Raises:
        LengthMismatch: a clean and its corrupted prompt differ in length.
        PromptPairError: fewer than n are left.
    """
    drawn = [pair for pair in dict.fromkeys(candidates) if _answer(model, pair) != _foil(model, pair)]
    groups = by_length(model, drawn)
    if selection.one_length:
        drawn = max(groups.values(), key=len, default=[])
    seen = {prompt for pair in selection.apart_from for prompt in (pair.clean, pair.corrupted)}
    found: list[PromptPair] = []
    n_shown, tried, n = 0, 0, selection.n
    while len(found) < n and tried < len(drawn):
        batch = drawn[tried : tried + max(8, n - len(found))]
        tried += len(batch)
        kept = filter_by_behavior(model, batch) if selection.shown else batch
        n_shown += len(kept)
        for pair in kept:
            if pair.clean not in seen and pair.corrupted not in seen:
                seen |= {pair.clean, pair.corrupted}
                found.append(pair)
    if len(found) < n:
        of_length = " of one token length" if selection.one_length else ""
        of_these = f", {model.name} shows it on {n_shown} of them" if selection.shown else ""
        raise PromptPairError(
            f"{n} pairs of {what} were asked for; {tried} different ones{of_length} were drawn{of_these}, "
            f"and {len(found)} share no prompt with others. Ask for fewer, or give more words to choose from."
        )
    return found[:n]


def by_length(model: InterpretableModel, pairs: Iterable[PromptPair]) -> dict[int, list[PromptPair]]:
    """The pairs of each token length, which are measured in one call; effects are joined by cluster.

    Raises:
        LengthMismatch: a clean and its corrupted prompt differ in length.
    """
    groups: dict[int, list[PromptPair]] = defaultdict(list)
    for pair in pairs:
        clean, corrupted = rows_of(model, pair.clean)[0], rows_of(model, pair.corrupted)[0]
        if len(clean) != len(corrupted):
            shown = side_by_side(model, {"clean": clean, "corrupted": corrupted})
            raise LengthMismatch(
                f"with the tokenizer of {model.name} clean has {len(clean)} tokens, corrupted has "
                f"{len(corrupted)}, so positions don't correspond.\n{shown}\n"
                "Choose words whose length in tokens does not depend on their place."
            )
        groups[len(clean)].append(pair)
    return dict(groups)


def filter_by_behavior(model: InterpretableModel, pairs: Sequence[PromptPair]) -> list[PromptPair]:
    """Those pairs on which the clean run prefers the answer, and the corrupted run the foil."""
    kept = set()
    for group in by_length(model, pairs).values():
        clean, corrupted = (
            sweep.answer_logits(model, np.concatenate([rows_of(model, prompt) for prompt in prompts]))
            for prompts in ([pair.clean for pair in group], [pair.corrupted for pair in group])
        )
        for pair, c, x in zip(group, clean, corrupted, strict=True):
            answer, foil = _answer(model, pair), _foil(model, pair)
            if c[answer] > c[foil] and x[answer] < x[foil]:
                kept.add(pair)
    return [pair for pair in pairs if pair in kept]


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
    """The tokens of a text, or None if the tokenizer cannot encode it."""
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
