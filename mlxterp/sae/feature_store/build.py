"""`build_store`: one masked pass of a model over a corpus, kept as a `FeatureStore` that every tool reads.

Lives here: making a store, on one machine or over an executor, and knowing when there is one already. Does
not live here: the store itself (`store.py`), one block's work (`jobs.py`), blocks joined
(`shards.py`) and kept while it is unfinished (`shards.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt, TextTokens
from mlxterp.errors import StoreError
from mlxterp.models.fetch import cache_dir
from mlxterp.sae.feature_store.jobs import (
    Block,
    Pass,
    Portable,
    blocks,
    run_block,
    run_elsewhere,
)
from mlxterp.sae.feature_store.shards import Unfinished, discard, joined
from mlxterp.sae.feature_store.store import FeatureStore, Firing, load_store
from mlxterp.sae.sae import SAE
from mlxterp.sae.training.activations import OUTLIER


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


__all__ = [
    "FeatureStore",
    "Firing",
    "build_store",
    "cached_store",
    "load_store",
    "same_texts",
    "store_from_arrays",
]


def build_store(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt],
    *,
    context: int = 128,
    batch_tokens: int = 4096,
    outlier: float = OUTLIER,
    path: str | os.PathLike[str] | None = None,
    executor: Executor | None = None,
    progress: Callable[[str], None] | None = None,
) -> FeatureStore:
    """Where each feature fires in these texts, by one pass of the model that serves every later question.

    A text is read in rows of at most `context` tokens, each begun anew; rows share batches, padded on the
    right. The first token of a row and special tokens count as no evidence, and nothing is kept there. Nor
    where the activation is longer than `outlier` times the median of this corpus: the few attention sinks
    within a text would head the examples of every feature, and SAEs are trained without them. `facts` says
    from which norm on ("norm_limit"), and how many tokens that leaves out ("norm_outliers").
    Only activations > 0 are kept. Layers behind the SAE's hook point are not computed.

    Costs ceil(tokens / batch_tokens) forwards to the SAE's hook point or fewer, however many features there
    are, and 12 bytes per activation. With `path`, later calls cost none.

    Args:
        model: the model the SAE reads.
        sae: at any hook point of this model, "embed" too.
        texts: texts, or token ids.
        context: tokens of a row.
        batch_tokens: tokens of a forward.
        outlier: as in `StreamedActivations`; `math.inf` keeps every token.
        path: a directory to keep the store in. One that is there and was made of the same is read instead. Of
            a build that was killed the finished blocks (some thousand tokens each) lie beside it, in a folder
            `.<name>.unfinished-…`; the same call goes on from them, to the same store bit for bit.
        executor: spreads blocks of documents over its workers: threads (which take turns: a model runs one
            forward at a time), processes, or other machines by dask's `Client.get_executor()`. Processes must
            be spawned, not forked: `ProcessPoolExecutor(mp_context=get_context("spawn"))`. The store is the
            same bit for bit on equal machines, whatever the executor and whatever else runs there: products
            are computed with one BLAS thread, or with OPENBLAS_NUM_THREADS of them where that is set.
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
    if not outlier >= 1:
        raise StoreError(
            f"outlier={outlier}: it would leave out tokens of usual length. Give a multiple of the median of "
            "1 or more; SAEs are trained with 10."
        )
    for i, text in enumerate(texts):
        if not len(text):
            raise StoreError(f"texts[{i}] is empty. Leave it out.")
    model.architecture.require_point(sae.point)
    facts = _facts(model, sae, texts, context, batch_tokens, outlier)
    there = _there(path, facts)
    if there is not None and path is not None:
        discard(Path(path))
        return there
    kept = None if path is None else Unfinished.at(Path(path), facts)
    how = Pass(context, batch_tokens, _special(model))
    done = []
    ranges = blocks(texts, batch_tokens)
    try:
        for block in _run(model, sae, texts, ranges, how, executor, kept):
            done.append(block)
            if progress is not None:
                progress(f"features of {ranges[len(done) - 1].stop} of {len(texts)} texts")
    finally:
        if kept is not None:
            kept.forget_if_empty()
    store = joined(done, sae.d_sae, context, outlier, facts, model)
    return store if path is None or kept is None else replace(store, path=_finished(store, Path(path), kept))


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
    outlier: float = OUTLIER,
    progress: Callable[[str], None] | None = None,
) -> FeatureStore:
    """`build_store`, kept in the user cache under what it was made of: a second call costs no forward."""
    facts = _facts(model, sae, texts, context, batch_tokens, outlier) if len(texts) else {}
    name = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:24]
    path = cache_dir() / "stores" / name
    return build_store(
        model,
        sae,
        texts,
        context=context,
        batch_tokens=batch_tokens,
        outlier=outlier,
        path=path,
        progress=progress,
    )


def _facts(
    model: InterpretableModel,
    sae: SAE,
    texts: Sequence[Prompt],
    context: int,
    batch_tokens: int,
    outlier: float,
) -> dict[str, Any]:
    return {
        "model": model.name,
        "model_digest": model.digest,
        "sae_digest": sae.digest,
        "texts_digest": _digest(texts),
        "hook_point": sae.hook_point,
        "context": context,
        "batch_tokens": batch_tokens,
        "left_out": "first token of a row, special tokens, activations longer than "
        f"{outlier:g} times the median",
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


def _finished(store: FeatureStore, path: Path, kept: Unfinished) -> Path:
    """Puts the store in its place, in one step; one that another process put there meanwhile is left."""
    try:
        ready = kept.ready()
        store.write(ready)
        os.replace(ready, path)
    except OSError:
        # With one there already nothing can be put in its place, and its process has removed the folder.
        if not path.exists():
            raise
    discard(path)
    _there(path, dict(store.facts))  # raises if the one there is of something else
    return path


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
    kept: Unfinished | None,
) -> Iterator[Block]:
    """Every block, in order: as it was kept, or made and then kept."""
    parts = {each: [texts[i] for i in each] for each in ranges}
    if executor is None:
        for each, part in parts.items():
            yield _read(kept, each) or _keep(kept, each, run_block(model, sae, part, how))
        return
    found = {each: block for each in ranges if (block := _read(kept, each)) is not None}
    missing = [each for each in ranges if each not in found]
    waiting: dict[range, Future[Block]]
    if isinstance(executor, ThreadPoolExecutor):
        waiting = {each: executor.submit(run_block, model, sae, parts[each], how) for each in missing}
    else:
        sent = Portable.of(model, sae)
        waiting = {each: executor.submit(run_elsewhere, sent, parts[each], how) for each in missing}
    try:
        for each in ranges:
            yield found[each] if each in found else _keep(kept, each, waiting[each].result())
    finally:
        for future in waiting.values():
            future.cancel()


def _read(kept: Unfinished | None, documents: range) -> Block | None:
    return None if kept is None else kept.read(documents)


def _keep(kept: Unfinished | None, documents: range, block: Block) -> Block:
    if kept is not None:
        kept.keep(documents, block)
    return block
