"""`build_store`: one masked pass of a model over a corpus, kept as a `FeatureStore` that every tool reads.

Lives here: making a store, on one machine or over an executor, and knowing when there is one already. Does
not live here: the store itself (`feature_store.py`), one block's work (`store_jobs.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt, TextTokens
from mlxterp.errors import StoreError
from mlxterp.fetch import cache_dir
from mlxterp.sae.feature_store import FeatureStore, Firing, load_store
from mlxterp.sae.sae import SAE
from mlxterp.sae.store_arrays import store_from_arrays
from mlxterp.sae.store_jobs import Block, Pass, Portable, blocks, run_block, run_elsewhere

__all__ = [
    "FeatureStore",
    "Firing",
    "build_store",
    "cached_store",
    "load_store",
    "same_texts",
    "store_from_arrays",
]

_RULE = "first token of a row and special tokens are no evidence"


def build_store(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt],
    *,
    context: int = 128,
    batch_tokens: int = 4096,
    path: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Where each feature fires in these texts, by one pass of the model that serves every later question.

    A text is read in rows of at most `context` tokens, each begun anew; rows share batches, padded on the
    right. The first token of a row (where attention sinks are) and special tokens count as no evidence, and
    nothing is kept there. Only activations > 0 are kept. Layers behind the SAE's hook point are not computed.

    Costs ceil(tokens / batch_tokens) forwards to the SAE's hook point or fewer, however many features there
    are, and 12 bytes per activation. With `path`, later calls cost none.

    Args:
        model: the model the SAE reads.
        sae: at any hook point of this model, "embed" too.
        texts: texts, or token ids.
        context: tokens of a row.
        batch_tokens: tokens of a forward.
        path: a directory to keep the store in. One that is there and was made of the same is read instead.
        executor: spreads blocks of documents over its workers: threads (which take turns: a model runs one
            forward at a time), processes, or other machines by dask's `Client.get_executor()`. Processes must
            be spawned, not forked: `ProcessPoolExecutor(mp_context=get_context("spawn"))`. The store is the
            same bit for bit on equal machines, whatever the executor.
        progress: told how far it is.

    Raises:
        StoreError: no texts; a text without tokens; or at `path` lies a store of something else.
        SAEError: the SAE reads activations of another width.
        UnknownHookPoint, CapabilityUnavailable: the model lacks the SAE's hook point.
    """
    if isinstance(texts, str) or not len(texts):
        given = "one string" if isinstance(texts, str) else "no texts"
        raise StoreError(f"A store of {given}. Give a list of texts, as in build_store(model, sae, [text]).")
    if context < 2 or batch_tokens < 1:
        raise StoreError(
            f"context={context} and batch_tokens={batch_tokens}. The first token of a row is no evidence, so "
            "a row needs two; a batch needs one."
        )
    for i, text in enumerate(texts):
        if not len(text):
            raise StoreError(f"texts[{i}] is empty. Leave it out.")
    model.architecture.require_point(sae.point)
    facts = _facts(model, sae, texts, context, batch_tokens)
    there = _there(path, facts)
    if there is not None:
        return there
    how = Pass(context, batch_tokens, _special(model))
    done = []
    ranges = blocks(texts, batch_tokens)
    for block in _run(model, sae, texts, ranges, how, executor):
        done.append(block)
        if progress is not None:
            progress(f"features of {ranges[len(done) - 1].stop} of {len(texts)} texts")
    store = _joined(done, sae.d_sae, context, facts, model)
    return store if path is None else replace(store, path=store.save(path))


def same_texts(store: FeatureStore, sae: SAE, texts: Sequence[Prompt] | None = None) -> None:
    """Checks that a store is of this SAE, and of these texts if they are given.

    Raises:
        StoreError: it is of another.
    """
    known = store.facts.get("sae_digest")
    if store.d_sae != sae.d_sae or known not in (None, sae.digest):
        raise StoreError(
            f"The store holds {store.d_sae} features of the SAE {str(known)[:12]}; the SAE given has "
            f"{sae.d_sae} and the digest {sae.digest[:12]}. Build a store of it."
        )
    if texts is not None and store.facts.get("texts_digest") not in (None, _digest(texts)):
        raise StoreError(
            "The store was made of other texts than those given. Leave texts out, or build anew."
        )


def _digest(texts: Sequence[Prompt]) -> str:
    seen = hashlib.sha256()
    for text in texts:
        data = text.encode() if isinstance(text, str) else np.asarray(text, dtype=np.int64).tobytes()
        seen.update(f"{type(text) is str} {len(data)} ".encode() + data)
    return seen.hexdigest()


def cached_store(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt],
    *,
    context: int = 128,
    batch_tokens: int = 4096,
    progress: Callable[[str], None] | None = None,
) -> FeatureStore:
    """`build_store`, kept in the user cache under what it was made of: a second call costs no forward."""
    facts = _facts(model, sae, texts, context, batch_tokens) if len(texts) else {}
    name = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:24]
    path = cache_dir() / "stores" / name
    return build_store(
        model, sae, texts, context=context, batch_tokens=batch_tokens, path=path, progress=progress
    )


def _facts(
    model: InterpretableModel, sae: SAE, texts: Sequence[Prompt], context: int, batch_tokens: int
) -> dict[str, Any]:
    return {
        "model": model.name,
        "model_digest": model.digest,
        "sae_digest": sae.digest,
        "texts_digest": _digest(texts),
        "hook_point": sae.hook_point,
        "context": context,
        "batch_tokens": batch_tokens,
        "left_out": _RULE,
    }


def _there(path: str | os.PathLike[str] | None, facts: dict[str, Any]) -> FeatureStore | None:
    """The store at `path` if it was made of the same."""
    if path is None or not Path(path).exists():
        return None
    store = load_store(path)
    differs = [name for name, value in facts.items() if store.facts.get(name) != value]
    if differs:
        raise StoreError(
            f"The store at {path} was made of something else: {', '.join(differs)} "
            f"{'differs' if len(differs) == 1 else 'differ'}. Give another path, or delete it."
        )
    return store


def _special(model: InterpretableModel) -> tuple[int, ...]:
    tokens = TextTokens(model.tokenizer)
    begin = getattr(model.tokenizer, "bos_token_id", None)
    return tuple(sorted(tokens.eos_ids | (frozenset() if begin is None else frozenset([int(begin)]))))


def _run(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt],
    ranges: Sequence[range],
    how: Pass,
    executor: Executor | None,
) -> Iterator[Block]:
    """Every block, in order."""
    parts = [[texts[i] for i in each] for each in ranges]
    if executor is None:
        yield from (run_block(model, sae, part, how) for part in parts)
        return
    waiting: list[Future[Block]]
    if isinstance(executor, ThreadPoolExecutor):
        waiting = [executor.submit(run_block, model, sae, part, how) for part in parts]
    else:
        portable = Portable.of(model, sae)
        waiting = [executor.submit(run_elsewhere, portable, part, how) for part in parts]
    try:
        for each in waiting:
            yield each.result()
    finally:
        for each in waiting:
            each.cancel()


def _joined(
    done: Sequence[Block], d_sae: int, context: int, facts: dict[str, Any], model: InterpretableModel
) -> FeatureStore:
    tokens = np.concatenate([block.tokens for block in done])
    lengths = np.concatenate([block.lengths for block in done])
    document = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    begins = np.cumsum(lengths) - lengths
    before = np.cumsum([0, *(len(block.tokens) for block in done)])
    place = np.concatenate([b.token_index + offset for b, offset in zip(done, before[:-1], strict=True)])
    per_token = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(tokens)))])
    feature = np.concatenate([block.feature for block in done])
    value = np.concatenate([block.activation for block in done])
    by_feature: csc_array = csr_array((value, feature, per_token), shape=(len(tokens), d_sae)).tocsc()
    token_ids = np.unique(tokens)
    return FeatureStore(
        tokens=tokens.astype(np.uint32),
        document=document,
        position=(np.arange(len(tokens)) - np.repeat(begins, lengths)).astype(np.int32),
        counted=np.concatenate([block.counted for block in done]),
        indptr=by_feature.indptr.astype(np.int64),
        token_index=by_feature.indices.astype(np.uint32),
        activation=by_feature.data.astype(np.float32),
        token_ids=token_ids.astype(np.uint32),
        strings=_strings(model, tokens, token_ids, begins),
        context=context,
        facts=facts,
        forwards=sum(block.forwards for block in done),
    )


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
