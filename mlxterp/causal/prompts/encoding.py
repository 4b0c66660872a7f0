"""Prompts as tokens, and tokens as text: rows of one length, single tokens, facts for results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LengthMismatch, ModelError, PromptPairError, TokenError

Prompt: TypeAlias = str | Sequence[int]
Ids: TypeAlias = NDArray[np.int64]


def frozen(prompt: Any) -> Prompt:
    """A text as it is, token ids of any kind as a tuple.

    Raises:
        TokenError: what is neither a text nor the ids of one prompt, or is empty.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise TokenError("the prompt is an empty text. Give a prompt of at least one token.")
        return prompt
    if prompt is None or isinstance(prompt, int | float | bool | dict) or not hasattr(prompt, "__len__"):
        raise TokenError(f"{shortened(prompt)} is no prompt. Pass a text or a list of token ids.")
    if len(prompt) and isinstance(prompt[0], str):
        raise TokenError(
            f"{shortened(prompt)} is a list of {len(prompt)} texts where one prompt is expected. Call it "
            "once for each."
        )
    try:
        ids = np.asarray(prompt)
    except ValueError as problem:  # rows of unequal length
        raise TokenError(f"{shortened(prompt)} is several prompts. Give one at a time.") from problem
    ids = ids[0] if ids.ndim == 2 and len(ids) == 1 else ids
    if ids.ndim != 1 or not len(ids) or not np.issubdtype(ids.dtype, np.integer):
        raise TokenError(
            f"{shortened(prompt)} is no prompt: as an array it is {ids.dtype} of shape {ids.shape}. Pass a "
            "text, or the whole numbers of one prompt's tokens."
        )
    return tuple(int(token) for token in ids)


def token_rows(model: InterpretableModel, prompts: Sequence[Prompt], what: str) -> Ids:
    """Token ids `[n, length]` of prompts that all have the same number of tokens; LengthMismatch shows
    two."""
    require_model(model)
    rows = [np.asarray(model.to_tokens(frozen(prompt)), dtype=np.int64).reshape(-1) for prompt in prompts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        first = {length: next(i for i, row in enumerate(rows) if len(row) == length) for length in lengths}
        shown = {f"{what} {i}": rows[i] for i in (first[lengths[0]], first[lengths[-1]])}
        raise LengthMismatch(
            f"the {what} prompts of this dataset have {', '.join(map(str, lengths))} tokens, so a position "
            "means different things in them.\n"
            f"{side_by_side(model, shown)}\n"
            "Keep the pairs of one length, or measure each length by itself."
        )
    return np.stack(rows)


def position_index(position: int, length: int) -> int:
    """The index of a position in a prompt of this length, negative ones counted from the end."""
    if not -length <= position < length:
        raise TokenError(
            f"position {position} does not exist: the prompt has {length} tokens, positions 0 to "
            f"{length - 1}, or negative from the end."
        )
    return position % length


def token_id(model: InterpretableModel, token: str | int) -> int:
    """The id of a token given as text or id; several tokens, or an id that does not exist, raise
    TokenError."""
    if isinstance(token, str):
        return int(model.to_single_token(token))
    if not 0 <= int(token) < model.d_vocab:
        raise TokenError(
            f"token id {token} is not in the vocabulary of {model.name}. Ids are 0 to {model.d_vocab - 1}."
        )
    return int(token)


def token_ids(model: InterpretableModel, tokens: Sequence[str | int | None], what: str) -> Ids | None:
    """The ids of each example's answer or foil; None if no example has one."""
    if all(token is None for token in tokens):
        return None
    missing = [i for i, token in enumerate(tokens) if token is None]
    if missing:
        raise PromptPairError(
            f"pair {missing[0]} has no {what}, and others have one. Give every pair a {what}, or none."
        )
    return np.array([token_id(model, token) for token in tokens if token is not None], dtype=np.int64)


def str_tokens(model: InterpretableModel, token_ids: Sequence[int] | Ids) -> list[str]:
    """The text of each token; ids in brackets for a model without a tokenizer."""
    ids = [int(t) for t in token_ids]
    return [f"<{i}>" for i in ids] if model.tokenizer is None else list(model.to_str_tokens(ids))


def prompt_text(model: InterpretableModel, prompt: Prompt) -> str:
    """A prompt as text."""
    return prompt if isinstance(prompt, str) else "".join(str_tokens(model, prompt))


def side_by_side(model: InterpretableModel, rows: Mapping[str, Ids]) -> str:
    """Tokenisations under each other, for an error message."""
    width = max(len(name) for name in rows)
    return "\n".join(f"  {name:<{width}}  {'|'.join(str_tokens(model, row))}" for name, row in rows.items())


def facts_of(model: InterpretableModel) -> dict[str, Any]:
    """Which model computed, from which weights, with which BLAS: what every result records."""
    computes = str(model.blas) + (", arithmetic SwiGLU" if fast_math.used_by(model.architecture) else "")
    return {
        "model": model.name,
        "digest": model.digest,
        "prepend_bos": model.prepend_bos,
        "blas": computes,
    }


def require_model(model: object) -> None:
    """Raises ModelError for what is no InterpretableModel, with the call that makes one of it."""
    if not isinstance(model, InterpretableModel):
        given = shortened(model) if isinstance(model, str) else type(model).__name__
        raise ModelError(f"model={given} is no InterpretableModel. Load it: InterpretableModel({given}).")


def shortened(prompt: Any) -> str:
    """A prompt as an error message repeats it."""
    text = repr(prompt)
    return text if len(text) <= 60 else text[:57] + "…"
