"""What training, evaluation and feature stores agree on about texts: their digest, and which tokens count.

Three kinds of tokens never count: the first of each row (where attention sinks are), special tokens, and
tokens whose activation is longer than `OUTLIER` times the median (a few of those would make up most of the
variance).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt, TextTokens
from mlxterp.sae.sae import SAE
from mlxterp.sae.training_texts import seen_in_training

OUTLIER = 10.0
"""Tokens are left out whose activation is longer than this many times the median."""


def special_ids(model: InterpretableModel) -> tuple[int, ...]:
    """The ids of tokens that begin or end a text, ascending."""
    begin = {getattr(model.tokenizer, "bos_token_id", None), model.bos_token_id} - {None}
    return tuple(
        sorted(TextTokens(model.tokenizer).eos_ids | {int(token) for token in begin if token is not None})
    )


def seen_share(model: InterpretableModel, sae: SAE, texts: Sequence[Prompt]) -> float | None:
    """The share of these texts that the SAE was trained on (`training_texts.seen_in_training`), or None where
    that is not recorded; token ids of a model without a tokenizer cannot be looked up either."""
    if model.tokenizer is None and not all(isinstance(text, str) for text in texts):
        return None
    strings = [
        text if isinstance(text, str) else model.to_string(np.asarray(text).reshape(-1).tolist())
        for text in texts
    ]
    return seen_in_training(sae.metadata, strings)


def texts_digest(texts: Sequence[Prompt]) -> str:
    """SHA-256 of these texts in their order; hex."""
    seen = hashlib.sha256()
    for text in texts:
        data = text.encode() if isinstance(text, str) else np.asarray(text, dtype=np.int64).tobytes()
        seen.update(f"{type(text) is str} {len(data)} ".encode() + data)
    return seen.hexdigest()
