"""The blocks of a corpus joined to a `FeatureStore`, without the tokens whose activations are far too long.

Lives here: joining, the norm from which on a token is left out, the texts of tokens. Does not live here:
making blocks (`jobs.py`), the store (`store.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import TextTokens
from mlxterp.sae.feature_store.jobs import Block
from mlxterp.sae.feature_store.store import FeatureStore

_DIGITS = 4
"""Of the norm from which on a token is left out: fewer than those in which two orders of adding differ."""


def joined(
    done: Sequence[Block],
    d_sae: int,
    context: int,
    outlier: float,
    facts: dict[str, Any],
    model: InterpretableModel,
) -> FeatureStore:
    """The store of all blocks, in order; `facts` with the norm limit that was found, and its outliers."""
    tokens = np.concatenate([block.tokens for block in done])
    lengths = np.concatenate([block.lengths for block in done])
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    begins = np.cumsum(lengths) - lengths
    before = np.cumsum([0, *(len(block.tokens) for block in done)])
    place = np.concatenate([b.token_index + offset for b, offset in zip(done, before[:-1], strict=True)])
    counted, norm = (np.concatenate([getattr(block, name) for block in done]) for name in ("counted", "norm"))
    limit = _norm_limit(norm[counted], outlier)
    usual = norm <= limit
    kept = usual[place]
    place = place[kept]
    per_token = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(tokens)))])
    feature = np.concatenate([block.feature for block in done])[kept]
    value = np.concatenate([block.activation for block in done])[kept]
    by_feature: csc_array = csr_array((value, feature, per_token), shape=(len(tokens), d_sae)).tocsc()
    token_ids = np.unique(tokens)
    return FeatureStore(
        tokens=tokens.astype(np.uint32),
        document=document,
        position=(np.arange(len(tokens)) - np.repeat(begins, lengths)).astype(np.int32),
        counted=counted & usual,
        indptr=by_feature.indptr.astype(np.int64),
        token_index=by_feature.indices.astype(np.uint32),
        activation=by_feature.data.astype(np.float32),
        token_ids=token_ids.astype(np.uint32),
        strings=_strings(model, tokens, token_ids, begins),
        context=context,
        facts=facts
        | {
            "norm_limit": limit if np.isfinite(limit) else None,
            "norm_outliers": int((counted & ~usual).sum()),
        },
        forwards=sum(block.forwards for block in done),
    )


def _norm_limit(norms: NDArray[np.float32], outlier: float) -> float:
    """The norm above which a token is left out; of all tokens of the corpus, so that no batching and no
    order of blocks matters. Infinite where half of the activations are zero: nothing says what is long."""
    median = float(np.median(norms)) if len(norms) else 0.0
    return float(f"{outlier * median:.{_DIGITS}g}") if median > 0 else np.inf


def _strings(
    model: InterpretableModel,
    tokens: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    begins: NDArray[np.int64],
) -> tuple[str, ...]:
    """The text of each id, read behind a token it once follows where it does follow one: some decoders drop
    the space that begins a text."""
    if model.tokenizer is None:
        return tuple(f"<{token}>" for token in token_ids)
    split = TextTokens(model.tokenizer).split
    inner = np.ones(len(tokens), dtype=bool)
    inner[begins] = False
    places = np.flatnonzero(inner)
    _, first = np.unique(tokens[places], return_index=True)
    behind = {int(tokens[places[i]]): int(tokens[places[i] - 1]) for i in first}
    return tuple(
        split([behind[token], token])[1] if token in behind else split([token])[0]
        for token in token_ids.tolist()
    )
