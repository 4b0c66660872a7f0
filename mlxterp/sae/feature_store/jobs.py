"""The work behind a feature store, in blocks that any process can do: one masked pass over some documents.

A block is some consecutive documents. What is in a block, and which rows share a batch, depends on the texts
only, and every worker computes with the same number of BLAS threads, so the result is the same bit for bit
however blocks are spread over workers.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.finite import require_finite_activations
from mlxterp.core.linux_blas import blas
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt, Tokens, pad
from mlxterp.errors import StoreError
from mlxterp.sae.sae import SAE

BLOCK_BATCHES = 4
_CHARACTERS_OF_A_TOKEN = 4  # a guess that only decides how large blocks are
_ELEMENTS_AT_ONCE = 1 << 25  # of feature activations, so that a wide SAE does not fill the memory
_ONE_AT_A_TIME = threading.Lock()  # a model runs one hooked forward at a time
_workers_model: dict[str, InterpretableModel] = {}  # of a worker process: the one it loaded


@dataclass(frozen=True)
class Pass:
    """How a corpus is read: tokens of a row and of a batch, ids that are no evidence, and the multiple of the
    median length beyond which a token is none."""

    context: int
    batch_tokens: int
    special: tuple[int, ...]
    outlier: float


class Block(NamedTuple):
    """Tokens of one block, and where features fire. Token indices count from the block's first token.

    `norm` is the length of the activation that the SAE reads, 0 at tokens that do not count.
    """

    tokens: Tokens
    lengths: NDArray[np.int64]
    counted: NDArray[np.bool_]
    norm: NDArray[np.float32]
    token_index: NDArray[np.int64]
    feature: NDArray[np.int64]
    activation: NDArray[np.float32]
    forwards: int


@dataclass(frozen=True)
class Portable:
    """A model and an SAE in a form that can be sent to another process.

    A model that was loaded by name is loaded again there, and must have the same digest; a module is pickled.
    The process keeps it for its next block.
    """

    digest: str
    name: str | None
    prepend_bos: bool | str | None
    module: bytes
    sae: bytes

    @staticmethod
    def of(model: InterpretableModel, sae: SAE) -> Portable:
        values = {each.name: getattr(sae, each.name) for each in fields(sae)}
        named = model.loaded_by_name
        parts = (model.model, model.tokenizer, model.architecture.family)
        return Portable(
            digest=model.digest,
            name=model.name if named else None,
            prepend_bos=model.prepend_bos_option,
            module=b"" if named else pickle.dumps(parts),
            sae=pickle.dumps({**values, "metadata": dict(sae.metadata)}),
        )

    @cached_property
    def own_sae(self) -> SAE:
        return SAE(**pickle.loads(self.sae))

    def model(self) -> InterpretableModel:
        """The model, in this process.

        Raises:
            StoreError: the model loaded by this name has other weights.
        """
        if self.digest not in _workers_model:
            if self.name is not None:
                loaded = InterpretableModel(self.name, prepend_bos=self.prepend_bos)
            else:
                module, tokenizer, family = pickle.loads(self.module)
                loaded = InterpretableModel(module, tokenizer, family=family, prepend_bos=self.prepend_bos)
            if loaded.digest != self.digest:
                raise StoreError(
                    f"A worker loaded {self.name!r} and got other weights ({loaded.digest[:12]}) than those "
                    f"of the model given ({self.digest[:12]}): cast, quantised or edited. Pass the module "
                    "itself, InterpretableModel(model.model, model.tokenizer), or leave out executor=."
                )
            _workers_model.clear()
            _workers_model[self.digest] = loaded
        return _workers_model[self.digest]


def blocks(texts: Sequence[Prompt], batch_tokens: int) -> list[range]:
    """Consecutive documents of about `BLOCK_BATCHES` batches each."""
    limit = BLOCK_BATCHES * batch_tokens * _CHARACTERS_OF_A_TOKEN
    found: list[range] = []
    start, size = 0, 0
    for i, text in enumerate(texts):
        size += len(text) if isinstance(text, str) else np.size(np.asarray(text)) * _CHARACTERS_OF_A_TOKEN
        if size >= limit:
            found.append(range(start, i + 1))
            start, size = i + 1, 0
    if start < len(texts):
        found.append(range(start, len(texts)))
    return found


class Job(NamedTuple):
    """One block as it is given to a worker."""

    source: tuple[InterpretableModel, SAE] | Portable
    texts: Sequence[Prompt]
    how: Pass


def run_job(job: Job) -> Block:
    """Computes a block, in this process or in another."""
    source = job.source
    model, sae = (source.model(), source.own_sae) if isinstance(source, Portable) else source
    return run_block(model, sae, job.texts, job.how)


def run_block(model: InterpretableModel, sae: SAE, texts: Sequence[Prompt], how: Pass) -> Block:
    """Tokens of these documents, and where each feature fires.

    Rows are sorted by length, so that little is padded, and cut into batches of at least `batch_tokens` own
    tokens. Captured activations are lazy and the logits are never evaluated, so layers behind the SAE's hook
    point are not computed.
    """
    documents = [_ids(model, text) for text in texts]
    tokens = np.concatenate(documents)
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.concatenate([np.arange(a, b, how.context) for a, b in pairwise(bounds.tolist())])
    stops = np.append(starts[1:], len(tokens))
    counted = ~np.isin(tokens, how.special)
    counted[starts] = False
    rows = np.flatnonzero([counted[a:b].any() for a, b in zip(starts, stops, strict=True)])
    rows = rows[np.argsort((stops - starts)[rows], kind="stable")]
    found = [
        _run_batch(model, sae, tokens, counted, starts[batch], stops[batch])
        for batch in _batches(rows, (stops - starts)[rows], how.batch_tokens)
    ]
    norm = np.zeros(len(tokens), dtype=np.float32)
    for each in found:
        norm[each.seen] = each.norm
    empty = np.zeros(0, np.int64)
    places = np.concatenate([empty, *(each.place for each in found)])
    features = np.concatenate([empty, *(each.feature for each in found)])
    values = np.concatenate([empty.astype(np.float32), *(each.activation for each in found)])
    order = np.lexsort((features, places))
    return Block(tokens, lengths, counted, norm, places[order], features[order], values[order], len(found))


class _BatchFirings(NamedTuple):
    """The tokens of a batch that count with the length of their activations, and where features fire."""

    seen: NDArray[np.int64]
    norm: NDArray[np.float32]
    place: NDArray[np.int64]
    feature: NDArray[np.int64]
    activation: NDArray[np.float32]


def _ids(model: InterpretableModel, text: Prompt) -> Tokens:
    rows = model.to_tokens(text)
    ids: Tokens = (rows if isinstance(rows, np.ndarray) else np.concatenate(rows, axis=1)).reshape(-1)
    return ids


def _batches(rows: NDArray[np.int64], lengths: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
    """Rows in as many batches as hold at least `tokens` tokens each, of nearly equal size."""
    if not len(rows):
        return []
    n = max(1, int(lengths.sum()) // tokens)
    ends = np.cumsum(lengths) * n
    batch = np.minimum((ends - 1) // int(lengths.sum()), n - 1)
    return [rows[batch == i] for i in range(n) if (batch == i).any()]


def _run_batch(
    model: InterpretableModel,
    sae: SAE,
    tokens: Tokens,
    counted: NDArray[np.bool_],
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
) -> _BatchFirings:
    batch = pad([tokens[a:b] for a, b in zip(starts, stops, strict=True)])
    row, column = np.nonzero(batch.mask)
    place = starts[row] + column
    evidence = counted[place]
    place, at = place[evidence], (row * batch.tokens.shape[1] + column)[evidence]
    found = []
    with _ONE_AT_A_TIME, blas.pinned_threads(), fast_math.used(model.architecture):
        _, captured = model.run(batch.tokens, capture=sae.point, lengths=batch.lengths)
        x = captured[sae.point]
        x = x.reshape(x.shape[0] * x.shape[1], -1)
        step = max(1, _ELEMENTS_AT_ONCE // sae.d_sae)
        for i in range(0, len(at), step):
            own = x[mx.array(at[i : i + step])]
            acts = np.array(sae.encode(own))
            token, feature = np.nonzero(acts > 0)
            norm = np.array(mx.linalg.norm(own.astype(mx.float32), axis=-1))
            # NaN is above nothing, so a feature that is NaN would count as one that does not fire.
            if not (np.isfinite(norm).all() and np.isfinite(acts.sum())):
                require_finite_activations(
                    model, {str(sae.point): own.astype(mx.float32), "the SAE's features": mx.array(acts)}
                )
            found.append((norm, place[i + token], feature.astype(np.int64), acts[token, feature]))
    return _BatchFirings(place, *(np.concatenate(parts) for parts in zip(*found, strict=True)))
