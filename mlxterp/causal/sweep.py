"""The seam behind every sweep: many patched runs of few prompts, read at the answer position.

Two engines give the same numbers. One pass (`one_pass.py`): rows join a running batch where they first differ
from their prompt. Plain: every row is a whole forward from the embedding; it needs nothing of a model but its
hook points, so it is the fallback, and the oracle of the tests.

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

from mlxterp.causal import one_pass
from mlxterp.causal.rows import Ids, Logits, Row, last, last_position_only
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, SlowSweep

Read: TypeAlias = Callable[[Logits, Ids], NDArray[np.float64]]
Engine: TypeAlias = Literal["auto", "one_pass", "plain"]
Progress: TypeAlias = Callable[[int, int], None]

TOKEN_BUDGET = 8192
"""Tokens in the live batch: about 40 kB each on a model of d_model 576, so 0.3 GiB."""
LOGIT_BUDGET = 1 << 26
"""Logits of one batch, at the answer position: 64 Mi numbers, 0.25 GiB in float32."""
PLAIN_ROWS = 32
"""Rows of one plain batch: each edit copies its batch, so a large one gains nothing."""

__all__ = ["Row", "answer_logits", "capture", "n_heads_of", "run_rows"]


def run_rows(
    model: InterpretableModel,
    base_tokens: Ids,
    rows: Sequence[Row],
    read: Read,
    *,
    engine: Engine = "auto",
    token_budget: int = TOKEN_BUDGET,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """One number per row: `read` of the logits at the last position.

    Args:
        base_tokens: prompts of one length, `[n, length]`.
        rows: their interventions leave out `rows=`; each is meant for its own row.
        read: gets float32 logits `[r, d_vocab]` and the base index of each of the r rows; gives r numbers.
        engine: "auto" is one pass, and plain for a model on which one pass fails its check (with a warning).
        token_budget: most tokens in one batch; bounds the memory.
        progress: called with (rows done, rows in all).
    """
    values = np.full(len(rows), np.nan)
    done = 0
    for chunk, logits in _batches(model, base_tokens, rows, engine, token_budget):
        values[chunk] = read(logits, np.array([rows[i].base for i in chunk], dtype=np.int64))
        done += len(chunk)
        if progress is not None:
            progress(done, len(rows))
    return values


def answer_logits(model: InterpretableModel, tokens: Ids, *, token_budget: int = TOKEN_BUDGET) -> Logits:
    """Float32 logits `[n, d_vocab]` at the last position of each prompt, unpatched."""
    parts = []
    for some in _in_batches(tokens, _rows_per_batch(model, tokens.shape[1], token_budget)):
        with last_position_only(model, ()):
            logits, _ = model.run(mx.array(some))
            parts.append(last(logits))
    return np.concatenate(parts)


def capture(
    model: InterpretableModel, tokens: Ids, points: Iterable[HookPoint], *, token_budget: int = TOKEN_BUDGET
) -> dict[HookPoint, mx.array]:
    """Activations `[n, …]` of each prompt at these hook points; one forward per prompt, in batches."""
    wanted = list(points)
    if not wanted:
        return {}
    parts: list[dict[HookPoint, mx.array]] = []
    for some in _in_batches(tokens, _rows_per_batch(model, tokens.shape[1], token_budget)):
        with last_position_only(model, ()):
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
    model: InterpretableModel, base_tokens: Ids, rows: Sequence[Row], engine: Engine, token_budget: int
) -> Iterator[tuple[list[int], Logits]]:
    """Row indices and their logits, batch by batch."""
    length = base_tokens.shape[1]
    at_once = max(1, token_budget // (4 * length))  # the prompts' own run keeps every layer, so few at a time
    ways = _Ways(model, engine, token_budget)
    for first in range(0, len(base_tokens), at_once):
        indices = [i for i, row in enumerate(rows) if first <= row.base < first + at_once]
        mine = [Row(rows[i].base - first, rows[i].edits) for i in indices]
        if not mine:
            continue
        base = ways.base(base_tokens[first : first + at_once])
        for start, order in one_pass.passes(mine, base):
            size = _rows_per_batch(model, length - start, token_budget)
            for some in range(0, len(order), size):
                chunk = order[some : some + size]
                yield [indices[i] for i in chunk], ways.logits(base, [mine[i] for i in chunk], start)


class _Ways:
    """The ways to run rows, best first; one whose check fails is given up for the rest of the sweep."""

    def __init__(self, model: InterpretableModel, engine: Engine, token_budget: int) -> None:
        self._model, self._budget = model, token_budget
        self._left: list[Callable[[one_pass.Base, Sequence[Row], int], Logits]] = []
        if engine != "plain":
            self._left += [self._suffixes, self._whole_prompts]
        if engine != "one_pass":
            self._left.append(self._plain)

    def base(self, tokens: Ids) -> one_pass.Base:
        if self._left[0] == self._plain:
            return one_pass.Base(tokens, (), None, np.empty((0, 0), dtype=np.float32))
        return one_pass.run_base(self._model, tokens)

    def logits(self, base: one_pass.Base, rows: Sequence[Row], start: int) -> Logits:
        while True:
            try:
                return self._left[0](base, rows, start)
            except one_pass.CannotJoin as problem:
                self._give_up(problem)

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

    def _suffixes(self, base: one_pass.Base, rows: Sequence[Row], start: int) -> Logits:
        return one_pass.run_pass(self._model, base, rows, start)

    def _whole_prompts(self, base: one_pass.Base, rows: Sequence[Row], _: int) -> Logits:
        size = _rows_per_batch(self._model, base.tokens.shape[1], self._budget)
        parts = [rows[i : i + size] for i in range(0, len(rows), size)]
        return np.concatenate([one_pass.run_pass(self._model, base, part, 0) for part in parts])

    def _plain(self, base: one_pass.Base, rows: Sequence[Row], _: int) -> Logits:
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
