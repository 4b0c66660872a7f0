"""`build_store`: one masked pass of a model over a corpus, stored as a `FeatureStore` that every tool reads.

On one machine or over an executor; a store on disk that was made of the same is read instead.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from mlxterp.core.model import InterpretableModel
from mlxterp.core.tokens import Prompt
from mlxterp.errors import StoreError
from mlxterp.models.fetch import cache_dir
from mlxterp.sae.executors import results_in_order, shares_memory
from mlxterp.sae.feature_store.jobs import Block, Job, Pass, Portable, blocks, run_block, run_job
from mlxterp.sae.feature_store.shards import Unfinished, discard, joined
from mlxterp.sae.feature_store.store import FeatureStore, load_store
from mlxterp.sae.model_match import warn_of_mismatch
from mlxterp.sae.sae import SAE
from mlxterp.sae.texts import OUTLIER, seen_share, special_ids, texts_digest


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
        activations: [n, d_sae], an array or a scipy sparse array; only what is > 0 is stored.
        strings: the text of each token id that occurs.
        context: tokens of a row.
        counted: [n] which tokens may be evidence; without it, all but the first of each row.
        facts: where they come from, plain values.

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
    positive = csc_array(activations, dtype=np.float32)
    positive = csc_array(positive.multiply(mark[:, None].astype(np.float32)))
    positive.data = np.where(positive.data > 0, positive.data, 0)
    positive.eliminate_zeros()
    positive.sort_indices()
    occurring = np.unique(ids)
    return FeatureStore(
        tokens=ids,
        document=documents,
        position=position.astype(np.int32),
        counted=mark,
        indptr=positive.indptr.astype(np.int64),
        token_index=positive.indices.astype(np.uint32),
        activation=positive.data,
        token_ids=occurring,
        strings=tuple(strings[int(i)] for i in occurring),
        context=context,
        facts=dict(facts or {}),
    )


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
    right. The first token of a row and special tokens are no evidence, and no activation is stored there. Nor
    where the activation is longer than `outlier` times the median of this corpus: the few attention sinks
    within a text would head the examples of every feature, and SAEs are trained without them. `facts` gives
    the limit ("norm_limit") and how many tokens are beyond it ("norm_outliers"), and which share of the texts
    the SAE was trained on ("seen_in_training", as `sae.training_texts` says).
    Only activations > 0 are stored. Layers behind the SAE's hook point are not computed.

    Costs at most ceil(tokens / batch_tokens) forwards to the SAE's hook point, however many features there
    are, and 12 bytes per activation. With `path`, later calls cost none.

    Args:
        model: the model the SAE reads.
        sae: at any hook point of this model, "embed" too.
        texts: texts, or token ids.
        context: tokens of a row.
        batch_tokens: tokens of a forward.
        outlier: as in `StreamedActivations`; `math.inf` keeps every token.
        path: a directory for the store. One that is there and was made of the same is read instead. After a
            build that was killed the finished blocks (some thousand tokens each) lie beside it, in a folder
            `.<name>.unfinished-…`; the same call goes on from them, to the same store bit for bit.
        executor: spreads blocks of documents over its workers: threads (which take turns: a model runs one
            forward at a time), processes, or other machines by dask's `Client.get_executor()`. Processes must
            be spawned, not forked: `ProcessPoolExecutor(mp_context=get_context("spawn"))`. The store is the
            same bit for bit on equal machines, whatever the executor and whatever else runs there: products
            are computed with one BLAS thread, or with OPENBLAS_NUM_THREADS of them where that is set.
        progress: called with a line for each finished block.

    Raises:
        StoreError: no texts; a text without tokens; or at `path` lies a store of something else.
        SAEError: the SAE reads activations of another width.
        UnknownHookPoint, CapabilityUnavailable: the model lacks the SAE's hook point.

    Warns:
        SAEMismatch: the SAE was trained on another model, or with another treatment of it.
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
    warn_of_mismatch(model, sae)
    how = Pass(context, batch_tokens, special_ids(model), outlier)
    facts = _facts(model, sae, texts, how)
    found = None if path is None else _load_same(Path(path), facts)
    if found is not None and path is not None:
        discard(Path(path))
        return found
    unfinished = None if path is None else Unfinished.at(Path(path), facts)
    build = _Build(model, sae, texts, how, unfinished)
    done = []
    try:
        for block in build.run(executor):
            done.append(block)
            if progress is not None:
                progress(f"features of {build.ranges[len(done) - 1].stop} of {len(texts)} texts")
    finally:
        if unfinished is not None:
            unfinished.remove_if_empty()
    # Not among the facts that a store is recognised by: stores of earlier versions lack it.
    seen = seen_share(model, sae, texts)
    store = joined(done, sae.d_sae, how, {**facts, "seen_in_training": seen}, model)
    if path is None or unfinished is None:
        return store
    return replace(store, path=_put_in_place(store, Path(path), unfinished))


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
    """`build_store` with a path in the user cache, named after the content: a second call costs no
    forward."""
    facts = _facts(model, sae, texts, Pass(context, batch_tokens, (), outlier)) if len(texts) else {}
    name = hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:24]
    return build_store(
        model,
        sae,
        texts,
        context=context,
        batch_tokens=batch_tokens,
        outlier=outlier,
        path=cache_dir() / "stores" / name,
        progress=progress,
    )


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
    if texts is not None and store.facts.get("texts_digest") not in (None, texts_digest(texts)):
        raise StoreError(
            "The store was made of other texts than those given. Leave texts out, or build anew."
        )


def _facts(model: InterpretableModel, sae: SAE, texts: Sequence[Prompt], how: Pass) -> dict[str, Any]:
    # A beginning of its own makes other tokens of the same texts.
    begin = {} if model.prepend_bos_option is None else {"begins_with": _begin(model)}
    return begin | {
        "model": model.name,
        "model_digest": model.digest,
        "sae_digest": sae.digest,
        "texts_digest": texts_digest(texts),
        "hook_point": sae.hook_point,
        "context": how.context,
        "batch_tokens": how.batch_tokens,
        "left_out": "first token of a row, special tokens, activations longer than "
        f"{how.outlier:g} times the median",
    }


def _begin(model: InterpretableModel) -> int | None:
    """The token that the model puts in front of every text."""
    return model.bos_token_id if model.prepend_bos else None


def _load_same(path: Path, facts: Mapping[str, Any]) -> FeatureStore | None:
    """The store at `path` if it was made of the same; StoreError if it was not."""
    if not path.exists():
        return None
    store = load_store(path)
    differs = [name for name, value in facts.items() if store.facts.get(name) != value]
    if differs:
        raise StoreError(
            f"The store at {path} was made of something else: {', '.join(differs)} "
            f"{'differs' if len(differs) == 1 else 'differ'}. Give another path, or delete it."
        )
    return store


def _put_in_place(store: FeatureStore, path: Path, unfinished: Unfinished) -> Path:
    """Moves the store to its path in one step; one that another process put there meanwhile is left."""
    try:
        ready = unfinished.new_folder()
        store.write(ready)
        os.replace(ready, path)
    except OSError:
        # Another process may have finished the same store and removed the folder.
        if not path.exists():
            raise
    discard(path)
    _load_same(path, store.facts)  # raises if the one there is of something else
    return path


@dataclass(frozen=True, eq=False)
class _Build:
    """A pass over some texts in blocks, as many of which as are stored already are read."""

    model: InterpretableModel
    sae: SAE
    texts: Sequence[Prompt]
    how: Pass
    unfinished: Unfinished | None

    @property
    def ranges(self) -> list[range]:
        return blocks(self.texts, self.how.batch_tokens)

    def run(self, executor: Executor | None) -> Iterator[Block]:
        """Every block, in order: read, or computed and then stored."""
        texts = {each: [self.texts[i] for i in each] for each in self.ranges}
        if executor is None:
            for each, own in texts.items():
                yield self._read(each) or self._stored(each, run_block(self.model, self.sae, own, self.how))
            return
        found = {each: block for each in texts if (block := self._read(each)) is not None}
        source = (self.model, self.sae) if shares_memory(executor) else Portable.of(self.model, self.sae)
        jobs = [Job(source, own, self.how) for each, own in texts.items() if each not in found]
        computed = results_in_order(executor, run_job, jobs)
        try:
            for each in texts:
                yield found[each] if each in found else self._stored(each, next(computed))
        finally:
            computed.close()

    def _read(self, documents: range) -> Block | None:
        return None if self.unfinished is None else self.unfinished.read(documents)

    def _stored(self, documents: range, block: Block) -> Block:
        if self.unfinished is not None:
            self.unfinished.write(documents, block)
        return block
