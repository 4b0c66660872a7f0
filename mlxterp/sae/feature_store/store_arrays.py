"""A feature store of activations that were measured elsewhere, or planted.

Lives here: arrays to a store. Does not live here: the store (`store.py`), a pass of a model
(`store.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from mlxterp.errors import StoreError
from mlxterp.sae.feature_store.store import FeatureStore


def store_from_arrays(
    tokens: Sequence[int] | NDArray[Any],
    document: Sequence[int] | NDArray[Any],
    activations: Any,
    strings: Mapping[int, str],
    *,
    context: int = 128,
    counted: NDArray[np.bool_] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> FeatureStore:
    """A store of activations measured elsewhere.

    Args:
        tokens, document: [n], document after document.
        activations: [n, d_sae], an array or a scipy sparse array; only what is > 0 is kept.
        strings: the text of each token id that occurs.
        context: tokens of a row.
        counted: [n] which tokens may be evidence; without it, all but the first of each row.
        facts: what to remember of where they come from.

    Raises:
        StoreError: arrays that do not go together.
    """
    ids, documents = np.asarray(tokens, dtype=np.uint32), np.asarray(document, dtype=np.int32)
    if len(ids) != len(documents) or activations.shape[0] != len(ids) or (np.diff(documents) < 0).any():
        raise StoreError(
            f"{len(ids)} tokens, {len(documents)} documents and activations of shape {activations.shape}. "
            "Give one document number per token, ascending, and one row of activations."
        )
    begins = np.flatnonzero(np.diff(documents, prepend=-1))
    position = np.arange(len(ids)) - np.repeat(begins, np.diff(np.append(begins, len(ids))))
    mark = position % context != 0 if counted is None else np.asarray(counted, dtype=bool)
    kept = csc_array(activations, dtype=np.float32)
    kept = csc_array(kept.multiply(mark[:, None].astype(np.float32)))
    kept.data = np.where(kept.data > 0, kept.data, 0)
    kept.eliminate_zeros()
    kept.sort_indices()
    occurring = np.unique(ids)
    return FeatureStore(
        tokens=ids,
        document=documents,
        position=position.astype(np.int32),
        counted=mark,
        indptr=kept.indptr.astype(np.int64),
        token_index=kept.indices.astype(np.uint32),
        activation=kept.data,
        token_ids=occurring,
        strings=tuple(strings[int(i)] for i in occurring),
        context=context,
        facts=dict(facts or {}),
    )
