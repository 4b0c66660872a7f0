"""Texts or prompt pairs for an analysis of features: tokens in batches of one length, so that nothing is
padded, and the positions that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.prompts.encoding import (
    Ids,
    Prompt,
    facts_of,
    frozen,
    position_index,
    prompt_text,
    require_model,
    shortened,
    side_by_side,
    str_tokens,
)
from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Positions
from mlxterp.errors import LengthMismatch, PromptPairError, TokenError
from mlxterp.sae.sae import SAE

Given: TypeAlias = Prompt | PromptPair | Sequence[Prompt] | Sequence[PromptPair]
Mask: TypeAlias = NDArray[np.bool_]

BATCH_TOKENS = 512
"""Tokens of one batch, so that a backward pass through it fits in memory."""


class Example(NamedTuple):
    """One text, or one pair; `corrupted` is None for a text."""

    clean: Prompt
    corrupted: Prompt | None
    answer: str | int | None
    foil: str | int | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples of one length.

    Attributes:
        examples: their indices among all examples, `[n]`.
        clean, corrupted: token ids `[n, length]`; corrupted is None for texts.
        counted: `[n, length]`, the positions at which features are measured and edited.
    """

    examples: Ids
    clean: Ids
    corrupted: Ids | None
    counted: Mask


@dataclass(frozen=True, eq=False)
class Texts:
    """Every example, in batches; `counting` describes the positions that count."""

    examples: tuple[Example, ...]
    batches: tuple[Batch, ...]
    counting: str

    @property
    def paired(self) -> bool:
        """Whether the examples have corrupted prompts."""
        return self.examples[0].corrupted is not None

    def measured_on(self, model: InterpretableModel, *saes: SAE) -> dict[str, Any]:
        """The facts that numbers measured on these texts depend on, for a result."""
        return facts_of(model) | {
            "prompts": [_described(model, each) for each in self.examples],
            "positions": self.counting,
            "sae": [describe_sae(sae) for sae in saes],
        }


def read_texts(
    model: InterpretableModel,
    given: Given,
    *,
    answer: str | int | None = None,
    foil: str | int | None = None,
    positions: Positions = None,
) -> Texts:
    """Tokens and counted positions. Nothing is run.

    Args:
        given: a text or token ids, several, a PromptPair, or several; texts may differ in length, the two
            prompts of a pair may not.
        answer, foil: replace each pair's own.
        positions: None is every position but the first.
    """
    require_model(model)
    examples = _examples(given, answer, foil)
    return Texts(examples, _batches(model, examples, positions), _counting(positions))


def _examples(given: Given, answer: str | int | None, foil: str | int | None) -> tuple[Example, ...]:
    if not isinstance(given, PromptPair) and (isinstance(given, dict) or not hasattr(given, "__len__")):
        raise TokenError(
            f"{shortened(given)} is no text. Pass a text, token ids, a PromptPair, or a list of these."
        )
    if not isinstance(given, PromptPair) and not len(given):
        raise TokenError("there is no text: an empty string or an empty list. Give at least one text.")
    alone = isinstance(given, str | PromptPair) or isinstance(given[0], int | np.integer)
    listed: Any = [given] if alone else given
    pairs = [each for each in listed if isinstance(each, PromptPair)]
    if pairs and len(pairs) < len(listed):
        raise PromptPairError("texts and PromptPair values together. Give texts only, or pairs only.")
    return tuple(
        Example(
            frozen(each.clean),
            frozen(each.corrupted),
            each.answer if answer is None else answer,
            each.foil if foil is None else foil,
        )
        if isinstance(each, PromptPair)
        else Example(frozen(each), None, answer, foil)
        for each in listed
    )


def _batches(
    model: InterpretableModel, examples: Sequence[Example], positions: Positions
) -> tuple[Batch, ...]:
    rows = [_tokens(model, each.clean) for each in examples]
    others = [None if each.corrupted is None else _tokens(model, each.corrupted) for each in examples]
    for row, other, example in zip(rows, others, examples, strict=True):
        if other is not None and len(row) != len(other):
            raise LengthMismatch(
                f"clean has {len(row)} tokens, corrupted has {len(other)}, so a feature's activation in one "
                f"has no counterpart in the other.\n{side_by_side(model, {'clean': row, 'corrupted': other})}"
                "\nGive prompts of one length."
            )
        if other is not None and np.array_equal(row, other):
            raise PromptPairError(
                f"clean and corrupted are the same tokens: {shortened(example.clean)}. Every feature is the "
                "same in both. Give a corrupted prompt that differs in what you study."
            )
    by_length: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(i)
    found = []
    for length, indices in by_length.items():
        size = max(1, BATCH_TOKENS // length)
        mask = counted(positions, length)
        for start in range(0, len(indices), size):
            some = indices[start : start + size]
            corrupted = [other for i in some if (other := others[i]) is not None]
            found.append(
                Batch(
                    np.array(some),
                    np.stack([rows[i] for i in some]),
                    np.stack(corrupted) if corrupted else None,
                    np.broadcast_to(mask, (len(some), length)),
                )
            )
    return tuple(found)


def _tokens(model: InterpretableModel, prompt: Prompt) -> Ids:
    return np.asarray(model.to_tokens(prompt), dtype=np.int64).reshape(-1)


def counted(positions: Positions, length: int) -> Mask:
    """`[length]`: the positions that count. None: all but the first, which is the beginning-of-sequence token
    or an attention sink (Xiao et al. 2023, arXiv:2309.17453)."""
    mask = np.zeros(length, dtype=np.bool_)
    if positions is None:
        if length < 2:
            raise TokenError(
                "this text is one token, and the first position is not counted. Give a longer text, or "
                "positions=0."
            )
        mask[1:] = True
    elif isinstance(positions, slice):
        mask[positions] = True
    else:
        listed = [positions] if isinstance(positions, int | np.integer) else list(positions)
        mask[[position_index(int(p), length) for p in listed]] = True
    if not mask.any():
        raise TokenError(f"positions={positions!r} names none of the {length} positions. Name one of them.")
    return mask


def _counting(positions: Positions) -> str:
    return "all but the first" if positions is None else f"positions {positions}"


def _described(model: InterpretableModel, example: Example) -> str | dict[str, Any]:
    if example.corrupted is None and example.answer is None:
        return prompt_text(model, example.clean)
    shown = {"clean": prompt_text(model, example.clean)}
    if example.corrupted is not None:
        shown["corrupted"] = prompt_text(model, example.corrupted)
    optional = {"answer": example.answer, "foil": example.foil}
    return shown | {name: value for name, value in optional.items() if value is not None}


def describe_sae(sae: SAE) -> dict[str, Any]:
    """The facts that identify an SAE, as plain values."""
    return {
        "hook_point": sae.hook_point,
        "hook_point_out": sae.hook_point_out,
        "trained_on": sae.model,
        "d_sae": sae.d_sae,
        "digest": sae.digest,
    }


def shown_tokens(model: InterpretableModel, batch: Batch, row: int) -> list[str]:
    """The text of each token of one example."""
    return str_tokens(model, batch.clean[row])
