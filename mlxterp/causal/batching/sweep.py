"""Many patched runs of few prompts, read at the answer position: what every sweep runs on.

Two engines give the same numbers. Packed (`packed.py`): rows carry only the tokens that may differ from their
prompt's, all in one list. Reference (`reference_engine.py`): every row is a row of an ordinary forward; it
takes every architecture and edit, and the packed engine is tested against it. Both rely on causal attention,
which looks back only, as in every architecture the core accepts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching import packed, reference_engine
from mlxterp.causal.batching.base_run import BaseRun, CannotJoin, Edits, run_base
from mlxterp.causal.batching.rows import Ids, Logits, Row, last, last_position_only, measuring
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SlowSweep

Read: TypeAlias = Callable[[Logits, Ids], NDArray[np.float64]]
Engine: TypeAlias = Literal["auto", "reference"]
Progress: TypeAlias = Callable[[int, int], None]

TOKEN_BUDGET = 8192
"""Tokens in the live batch: about 40 kB each on a model of d_model 576, so 0.3 GiB."""
LOGIT_BUDGET = 1 << 26
"""Logits of one batch, at the answer position: 64 Mi numbers, 0.25 GiB in float32."""
KEPT_TOKENS = 1024
"""Tokens of prompts whose whole run is kept for the sweeps that follow: about 0.5 MB each on SmolLM2-135M."""

__all__ = ["BaseRun", "Row", "answer_logits", "capture", "n_heads_of", "run_prompts", "run_rows"]


def run_rows(
    model: InterpretableModel,
    base_tokens: Ids,
    rows: Sequence[Row],
    read: Read,
    *,
    vocabulary: Ids | None = None,
    base: BaseRun | None = None,
    base_edits: Sequence[Edits] = (),
    engine: Engine = "auto",
    token_budget: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """One number per row: `read` of the logits at the last position.

    Args:
        base_tokens: prompts of one length, `[n, length]`.
        rows: their interventions leave out `rows=`; each is meant for its own row.
        read: gets float32 logits `[r, d_vocab]` and the base index of each of the r rows; gives r numbers.
        vocabulary: the token ids that `read` uses; it then gets their logits only, one column per id.
        base: the prompts' own run, if `run_prompts` has kept it.
        base_edits: interventions of each prompt's own run, which its rows then have too.
        engine: "auto" is packed for the rows that it can run and the reference for the others, which skips
            the blocks in which no row differs from its prompt; where a model fails the check of either, whole
            forwards (with a warning). "reference" is whole forwards.
        token_budget: most tokens in one batch; bounds the memory.
        progress: called with (rows done, rows in all).
    """
    values = np.full(len(rows), np.nan)
    done = 0
    with measuring(model):
        engines = _Engines(model, engine, vocabulary, token_budget)
        length = base_tokens.shape[1]
        at_once = max(1, token_budget // (4 * length))  # the prompts' own run keeps every layer
        for first in range(0, len(base_tokens), at_once):
            until = first + at_once
            indices = [i for i, row in enumerate(rows) if first <= row.base < until]
            if not indices:
                continue
            mine = [Row(rows[i].base - first, rows[i].edits) for i in indices]
            kept = None if base is None else base.of(first, until)
            own = engines.base_run(base_tokens[first:until], mine, kept, base_edits[first:until])
            for chunk, logits in engines.batches(own, mine):
                examples = np.array([mine[i].base + first for i in chunk], dtype=np.int64)
                values[[indices[i] for i in chunk]] = read(logits, examples)
                done += len(chunk)
                if progress is not None:
                    progress(done, len(rows))
    return values


def run_prompts(model: InterpretableModel, tokens: Ids) -> BaseRun | None:
    """One run of these prompts with everything that sweeps may read of it; None if it is too large to keep.

    Also None for a model whose layers keep more than keys and values.
    """
    if tokens.size > KEPT_TOKENS:
        return None
    names = [name for name in packed.POINTS if model.capabilities[name].available]
    points = [HookPoint(name, layer) for name in names for layer in range(model.n_layers)]
    with measuring(model):
        try:
            return run_base(model, tokens, points)
        except CannotJoin:
            return None


def answer_logits(model: InterpretableModel, tokens: Ids, *, token_budget: int = TOKEN_BUDGET) -> Logits:
    """Float32 logits `[n, d_vocab]` at the last position of each prompt, unpatched."""
    parts = []
    for some in _in_batches(model, tokens, token_budget):
        with measuring(model), last_position_only(model, ()):
            logits, _ = model.run(mx.array(some))
            parts.append(last(logits))
    return np.concatenate(parts)


def capture(
    model: InterpretableModel,
    tokens: Ids,
    points: Iterable[HookPoint],
    *,
    base: BaseRun | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> dict[HookPoint, mx.array]:
    """Activations `[n, …]` of each prompt at these hook points; one forward per prompt, in batches.

    What `base`, a run that `run_prompts` kept, already holds costs nothing.
    """
    wanted = list(points)
    kept = {} if base is None else {point: base.activation(point) for point in wanted}
    found = {point: x for point, x in kept.items() if x is not None}
    if len(found) == len(set(wanted)):
        return found
    parts: list[dict[HookPoint, mx.array]] = []
    for some in _in_batches(model, tokens, token_budget):
        with measuring(model), last_position_only(model, ()):
            _, captured = model.run(mx.array(some), capture=wanted)
            mx.eval(list(captured.values()))
        parts.append(captured)
    return {point: mx.concatenate([part[point] for part in parts]) for point in wanted}


def n_heads_of(model: InterpretableModel, name: str) -> int:
    """How many heads a component has: keys and values have one per key/value head."""
    return int(model.n_kv_heads if name in ("k", "v") else model.n_heads)


def _in_batches(model: InterpretableModel, tokens: Ids, token_budget: int) -> Iterator[Ids]:
    size = max(1, min(token_budget // tokens.shape[1], LOGIT_BUDGET // model.d_vocab))
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


class _Engines:
    """The ways to run rows, fastest first; one whose check fails is given up for the rest of the sweep."""

    def __init__(
        self, model: InterpretableModel, engine: Engine, vocabulary: Ids | None, token_budget: int
    ) -> None:
        self._model, self._vocabulary, self._budget = model, vocabulary, token_budget
        self._packs = engine == "auto" and packed.supports(model.architecture)
        self._skips = engine == "auto"

    def base_run(
        self, tokens: Ids, rows: Sequence[Row], kept: BaseRun | None, edits: Sequence[Edits]
    ) -> BaseRun:
        """The prompts' own run, with what these rows need of it."""
        points = (
            packed.needed([row for row in rows if packed.fits(self._model.architecture, row)])
            if self._packs
            else []
        )
        if kept is not None and all(kept.activation(point) is not None for point in points):
            return kept
        if self._skips:
            try:
                return run_base(self._model, tokens, points, edits=edits)
            except CannotJoin as problem:
                self._packs = False
                self._stop_skipping(problem)
        return BaseRun(tokens, edits=tuple(edits))

    def batches(self, base: BaseRun, rows: Sequence[Row]) -> Iterator[tuple[list[int], Logits]]:
        """Indices of rows and their logits, batch by batch."""
        left = set(range(len(rows)))
        if self._packs and base.caches is not None:
            chosen = [i for i in sorted(left) if packed.fits(self._model.architecture, rows[i])]
            for chunk in packed.chunks(rows, chosen, base.tokens.shape[1], self._budget):
                try:
                    logits = packed.run(self._model, base, [rows[i] for i in chunk], self._vocabulary)
                except CannotJoin:
                    self._packs = False
                    break
                left -= set(chunk)
                yield chunk, logits
        # Rows that join at neighbouring layers share a batch, so that late ones skip more blocks.
        rest = sorted(left, key=lambda i: rows[i].joins_after(self._model.n_layers))
        size = max(1, min(reference_engine.ROWS_AT_ONCE, self._budget // base.tokens.shape[1]))
        for start in range(0, len(rest), size):
            chunk = rest[start : start + size]
            logits = self._reference_logits(base, [rows[i] for i in chunk])
            yield chunk, logits if self._vocabulary is None else logits[:, self._vocabulary]

    def _reference_logits(self, base: BaseRun, rows: Sequence[Row]) -> Logits:
        if self._skips:
            try:
                return reference_engine.run_from_join(self._model, base, rows)
            except CannotJoin as problem:
                self._stop_skipping(problem)
        return reference_engine.run_whole(self._model, base, rows)

    def _stop_skipping(self, problem: CannotJoin) -> None:
        self._skips = False
        warnings.warn(
            f"{self._model.name}: every patch takes a whole forward, because rows cannot branch off the run "
            f"of their prompt in this architecture ({problem}). The numbers are the same.",
            SlowSweep,
            stacklevel=6,
        )
