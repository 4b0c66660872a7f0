"""The seam behind every sweep: many patched runs of few prompts, read at the answer position.

Three engines give the same numbers. Packed (`packed.py`): rows edited at one hook point carry only the tokens
that may differ from their prompt's, all in one list. One pass (`one_pass.py`): rows join a running batch
where they first differ from their prompt. Plain: every row is a whole forward from the embedding; it needs
nothing of a model but its hook points, so it is the fallback, and the oracle of the tests.

What lives here: batching, the fallback, reading logits. What doesn't: which rows a method needs, and what is
made of the logits. Everything is causal: attention looks back only, as in every architecture the core
accepts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.batching import one_pass, packed, packed_rows
from mlxterp.causal.batching.rows import (
    Ids,
    Logits,
    Row,
    last,
    last_position_only,
)
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, SlowSweep

Base: TypeAlias = one_pass.Base
Read: TypeAlias = Callable[[Logits, Ids], NDArray[np.float64]]
Engine: TypeAlias = Literal["auto", "one_pass", "plain"]
Progress: TypeAlias = Callable[[int, int], None]

TOKEN_BUDGET = 8192
"""Tokens in the live batch: about 40 kB each on a model of d_model 576, so 0.3 GiB."""
LOGIT_BUDGET = 1 << 26
"""Logits of one batch, at the answer position: 64 Mi numbers, 0.25 GiB in float32."""
PLAIN_ROWS = 32
"""Rows of one plain batch: each edit copies its batch, so a large one gains nothing."""

KEPT_TOKENS = 1024
"""Tokens of prompts whose whole run is kept for the sweeps that follow: about 0.5 MB each on SmolLM2-135M."""

__all__ = ["Base", "Row", "answer_logits", "capture", "n_heads_of", "run_prompts", "run_rows"]


def run_rows(
    model: InterpretableModel,
    base_tokens: Ids,
    rows: Sequence[Row],
    read: Read,
    *,
    vocabulary: Ids | None = None,
    base: Base | None = None,
    engine: Engine = "auto",
    token_budget: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """One number per row: `read` of the logits at the last position.

    Args:
        base_tokens: prompts of one length, `[n, length]`.
        rows: their interventions leave out `rows=`; each is meant for its own row.
        read: gets float32 logits `[r, d_vocab]` and the base index of each of the r rows; gives r numbers.
        vocabulary: the token ids that `read` looks at; it then gets their logits only, one column per id.
        base: the prompts' own run, if `run_prompts` has kept it.
        engine: "auto" is packed where that is possible, else one pass, and plain for a model on which they
            fail their checks (with a warning). "one_pass" is the first two, and raises instead of the third.
        token_budget: most tokens in one batch; bounds the memory.
        progress: called with (rows done, rows in all).
    """
    values = np.full(len(rows), np.nan)
    done = 0
    with fast_math.used(model.architecture):
        ways = _EngineChain(model, engine, token_budget, vocabulary)
        for chunk, logits in _batches(model, base_tokens, rows, ways, token_budget, base):
            values[chunk] = read(logits, np.array([rows[i].base for i in chunk], dtype=np.int64))
            done += len(chunk)
            if progress is not None:
                progress(done, len(rows))
    return values


def run_prompts(model: InterpretableModel, tokens: Ids) -> Base | None:
    """One run of these prompts with everything that sweeps may ask of it; None if it is too large to keep.

    Also None for a model whose layers keep more than keys and values.
    """
    if tokens.size > KEPT_TOKENS:
        return None
    names = [name for name in packed_rows.POINTS if model.capabilities[name].available]
    points = [HookPoint(name, layer) for name in names for layer in range(model.n_layers)]
    with fast_math.used(model.architecture):
        try:
            return one_pass.run_base(model, tokens, points)
        except one_pass.CannotJoin:
            return None


def answer_logits(model: InterpretableModel, tokens: Ids, *, token_budget: int = TOKEN_BUDGET) -> Logits:
    """Float32 logits `[n, d_vocab]` at the last position of each prompt, unpatched."""
    parts = []
    for some in _in_batches(tokens, _rows_per_batch(model, tokens.shape[1], token_budget)):
        with fast_math.used(model.architecture), last_position_only(model, ()):
            logits, _ = model.run(mx.array(some))
            parts.append(last(logits))
    return np.concatenate(parts)


def capture(
    model: InterpretableModel,
    tokens: Ids,
    points: Iterable[HookPoint],
    *,
    base: Base | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> dict[HookPoint, mx.array]:
    """Activations `[n, …]` of each prompt at these hook points; one forward per prompt, in batches.

    What `base`, a run that `run_prompts` kept, holds already costs nothing.
    """
    wanted = list(points)
    kept = {} if base is None else {point: base.activation(point) for point in wanted}
    found = {point: x for point, x in kept.items() if x is not None}
    if len(found) == len(set(wanted)):
        return found
    parts: list[dict[HookPoint, mx.array]] = []
    for some in _in_batches(tokens, _rows_per_batch(model, tokens.shape[1], token_budget)):
        with fast_math.used(model.architecture), last_position_only(model, ()):
            _, seen = model.run(mx.array(some), capture=wanted)
            mx.eval(list(seen.values()))
        parts.append(seen)
    return {point: mx.concatenate([part[point] for part in parts]) for point in wanted}


def n_heads_of(model: InterpretableModel, name: str) -> int:
    """How many heads a component has: keys and values have one per key/value head."""
    return int(model.n_kv_heads if name in ("k", "v") else model.n_heads)


def _in_batches(tokens: Ids, size: int) -> Iterator[Ids]:
    for start in range(0, len(tokens), size):
        yield tokens[start : start + size]


def _rows_per_batch(model: InterpretableModel, length: int, token_budget: int) -> int:
    return max(1, min(token_budget // length, LOGIT_BUDGET // model.d_vocab))


def _batches(
    model: InterpretableModel,
    base_tokens: Ids,
    rows: Sequence[Row],
    ways: _EngineChain,
    token_budget: int,
    kept: Base | None,
) -> Iterator[tuple[list[int], Logits]]:
    """Row indices and their logits, batch by batch."""
    length = base_tokens.shape[1]
    at_once = max(1, token_budget // (4 * length))  # the prompts' own run keeps every layer, so few at a time
    for first in range(0, len(base_tokens), at_once):
        indices = [i for i, row in enumerate(rows) if first <= row.base < first + at_once]
        mine = [Row(rows[i].base - first, rows[i].edits) for i in indices]
        if not mine:
            continue
        base = ways.base(base_tokens[first : first + at_once], mine, kept and kept.of(first, first + at_once))
        left = dict.fromkeys(range(len(mine)))
        for some in packed_rows.chunks(mine, ways.packs(base, mine), length, token_budget):
            packed_logits = ways.packed(base, [mine[i] for i in some])
            if packed_logits is None:
                break
            left = {i: None for i in left if i not in set(some)}
            yield [indices[i] for i in some], packed_logits
        rest = list(left)
        for start, order in one_pass.passes([mine[i] for i in rest], base) if rest else ():
            size = _rows_per_batch(model, length - start, token_budget)
            for at in range(0, len(order), size):
                chunk = [rest[i] for i in order[at : at + size]]
                yield [indices[i] for i in chunk], ways.logits(base, [mine[i] for i in chunk], start)


class _EngineChain:
    """The ways to run rows, best first; one whose check fails is given up for the rest of the sweep."""

    def __init__(
        self, model: InterpretableModel, engine: Engine, token_budget: int, vocabulary: Ids | None
    ) -> None:
        self._model, self._budget, self._vocabulary = model, token_budget, vocabulary
        self._packs = engine != "plain" and packed.supports(model.architecture)
        self._left: list[Callable[[Base, Sequence[Row], int], Logits]] = []
        if engine != "plain":
            self._left += [self._suffixes, self._whole_prompts]
        if engine != "one_pass":
            self._left.append(self._plain)

    def base(self, tokens: Ids, rows: Sequence[Row], kept: Base | None) -> Base:
        """The prompts' own run, with what these rows need of it."""
        points = packed_rows.needed(rows) if self._packs else []
        if kept is not None and all(kept.activation(point) is not None for point in points):
            return kept
        while self._left[0] != self._plain:
            try:
                return one_pass.run_base(self._model, tokens, points)
            except one_pass.CannotJoin as problem:
                self._packs = False
                self._give_up(problem)
        return Base(tokens, (), None, np.empty((0, 0), dtype=np.float32))

    def packs(self, base: Base, rows: Sequence[Row]) -> list[int]:
        """The rows that a packed pass can run."""
        able = self._packs and base.caches is not None
        return [i for i, row in enumerate(rows) if packed_rows.fits(row)] if able else []

    def packed(self, base: Base, rows: Sequence[Row]) -> Logits | None:
        """The logits of a packed pass, or None if this model fails its check."""
        if not self._packs:
            return None
        try:
            return packed.run(self._model, base, rows, self._vocabulary)
        except one_pass.CannotJoin:
            self._packs = False
            return None

    def logits(self, base: Base, rows: Sequence[Row], start: int) -> Logits:
        while True:
            try:
                found = self._left[0](base, rows, start)
            except one_pass.CannotJoin as problem:
                self._give_up(problem)
            else:
                return found if self._vocabulary is None else found[:, self._vocabulary]

    def _give_up(self, problem: one_pass.CannotJoin) -> None:
        del self._left[0]
        if not self._left:
            raise CapabilityUnavailable(
                f"{self._model.name}: rows cannot join a running batch of this architecture: {problem}. Use "
                "engine='plain'."
            ) from problem
        if self._left[0] == self._plain:
            warnings.warn(
                f"{self._model.name}: every patch takes a whole forward, because rows cannot join a running "
                f"batch of this architecture ({problem}). The numbers are the same.",
                SlowSweep,
                stacklevel=6,
            )

    def _suffixes(self, base: Base, rows: Sequence[Row], start: int) -> Logits:
        return one_pass.run_pass(self._model, base, rows, start)

    def _whole_prompts(self, base: Base, rows: Sequence[Row], _: int) -> Logits:
        size = _rows_per_batch(self._model, base.tokens.shape[1], self._budget)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return np.concatenate([one_pass.run_pass(self._model, base, part, 0) for part in parts])

    def _plain(self, base: Base, rows: Sequence[Row], _: int) -> Logits:
        parts = [rows[i : i + PLAIN_ROWS] for i in range(0, len(rows), PLAIN_ROWS)]
        return np.concatenate([_whole_forwards(self._model, base.tokens, part) for part in parts])


def _whole_forwards(model: InterpretableModel, base_tokens: Ids, rows: Sequence[Row]) -> Logits:
    edits = [
        replace(edit, where=replace(edit.where, rows=(i,)))
        for i, row in enumerate(rows)
        for edit in row.edits
    ]
    with last_position_only(model, rows):
        logits, _ = model.run(mx.array(base_tokens[[row.base for row in rows]]), interventions=edits)
        return last(logits)
