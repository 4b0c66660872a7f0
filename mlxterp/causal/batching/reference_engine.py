"""The reference engine of sweeps: forwards of the whole model, one row of a batch for each patched run.

It needs nothing of a model but its hook points, so it runs every architecture and every edit, and the tests
compare the packed engine with it. Where no row of a batch differs from its prompt up to some block, that
block returns the prompts' own stream and the ones before it are skipped; a row without edits checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching.base_run import BaseRun, CannotJoin, for_row
from mlxterp.causal.batching.rows import Logits, Row, last, last_position_only
from mlxterp.core.model import InterpretableModel
from mlxterp.core.taps import Around, tapped

ROWS_AT_ONCE = 32
"""Rows of one batch: each edit copies its batch, so a larger one gains nothing."""


def run_whole(model: InterpretableModel, base: BaseRun, rows: Sequence[Row]) -> Logits:
    """Logits `[n, d_vocab]` of each row at the last position, computed from the embedding on."""
    return _forward(model, base, rows, [])


def run_from_join(model: InterpretableModel, base: BaseRun, rows: Sequence[Row]) -> Logits:
    """The same, with the blocks skipped in which no row differs from its prompt.

    Raises:
        CannotJoin: this architecture passes more from block to block than the residual stream.
    """
    join = min(row.joins_after(model.n_layers) for row in rows)
    if join < 0:
        return run_whole(model, base, rows)
    unpatched = Row(rows[0].base, ())
    stream = base.stream(join)[mx.array([row.base for row in (unpatched, *rows)])]
    blocks = [layer.block for layer in model.architecture.layers[: join + 1]]
    taps: list[tuple[nn.Module, Around]] = [(block, _skip) for block in blocks[:-1]]
    taps.append((blocks[-1], lambda *_, **__: stream))
    try:
        logits = _forward(model, base, [unpatched, *rows], taps)
    except (ValueError, TypeError, AttributeError) as problem:
        raise CannotJoin(str(problem)) from problem
    base.check(logits[0], unpatched.base)
    return logits[1:]


def _forward(
    model: InterpretableModel, base: BaseRun, rows: Sequence[Row], taps: Sequence[tuple[nn.Module, Around]]
) -> Logits:
    # Where blocks are skipped, the edits of the prompts' own run are in the stream that is handed on.
    own = [() if taps or not base.edits else base.edits[row.base] for row in rows]
    edits = [for_row(edit, i) for i, row in enumerate(rows) for edit in (*own[i], *row.edits)]
    tokens = mx.array(np.asarray(base.tokens)[[row.base for row in rows]])
    with last_position_only(model, rows), tapped(taps):
        logits, _ = model.run(tokens, interventions=edits)
        return last(logits)


def _skip(_: Callable[..., Any], h: mx.array, *__: Any, **___: Any) -> mx.array:
    return h
