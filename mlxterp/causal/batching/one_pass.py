"""The fast engine of sweeps: rows that join a running batch where they first differ from their prompt.

A row is its prompt's run up to a layer and up to a position. So the prompts run once, keeping the residual
stream after every block and all keys and values. Then a batch of rows grows layer by layer, each row joining
with its prompt's residual stream where its first edit is made; and rows whose first edit is at position p
carry only the tokens from p on, with their prompt's keys and values before them, as in generation with a
cache.

What lives here: a pass, and how rows are spread over passes. What doesn't: the caches (`prefix_caches.py`),
what the rows are for, and the fallback (`sweep.py`). The model's own code runs, through its blocks and its
cache arguments; nothing is known of its family. So a pass checks itself: among its rows is one without edits,
which must come out as its prompt did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlxterp.causal.batching.prefix_caches import Prefix, Recorder
from mlxterp.causal.batching.rows import (
    Ids,
    Logits,
    Row,
    edited_rows,
    last,
    last_position_only,
)
from mlxterp.core import forward as engine
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.core.selection import Window
from mlxterp.core.taps import Around, tapped

AGREEMENT, AGREEMENT_HALF = 1e-3, 4e-2
"""How far an unpatched row may come out from its prompt, relative to the largest logit, in a pass that is
right; in float32, and in types of 16 bits."""

PASS_COST = 64
"""What one more pass costs, in tokens through all layers: its early layers are too small for the matmuls to
be fast."""


class CannotJoin(Exception):
    """Rows that joined a running batch did not come out as they should."""


@dataclass(frozen=True, eq=False)
class Base:
    """The prompts' own run.

    Attributes:
        tokens: `[n, length]`.
        after: the residual stream after each block, `[n, length, d_model]`.
        caches: per layer the keys and values of all positions; None if the model keeps none.
        logits: at the last position.
        points: activations at further hook points, `[n, length, …]`.
    """

    tokens: Ids
    after: tuple[mx.array, ...]
    caches: tuple[tuple[mx.array, mx.array], ...] | None
    logits: Logits
    points: Mapping[HookPoint, mx.array] = field(default_factory=dict)

    @property
    def agreement(self) -> float:
        """How far a row without edits may come out from its prompt, relative to the largest logit."""
        return AGREEMENT if self.after[0].dtype == mx.float32 else AGREEMENT_HALF

    @property
    def embed(self) -> mx.array:
        """What entered the first block."""
        return self.points[HookPoint("resid_pre", 0)]

    def activation(self, point: HookPoint) -> mx.array | None:
        """The prompts' activations at a hook point, if they were kept."""
        if point.name == "resid_post" and point.layer is not None:
            return self.after[point.layer]
        return self.points.get(point)

    def of(self, first: int, until: int) -> Base:
        """The run of these prompts alone."""
        return Base(
            self.tokens[first:until],
            tuple(x[first:until] for x in self.after),
            None if self.caches is None else tuple((k[first:until], v[first:until]) for k, v in self.caches),
            self.logits[first:until],
            {point: x[first:until] for point, x in self.points.items()},
        )


def run_base(
    model: InterpretableModel,
    tokens: Ids,
    also: Iterable[HookPoint] = (),
    *,
    interventions: Sequence[Intervention] = (),
) -> Base:
    """One forward of the prompts, with everything that rows may join with, and the hook points of `also`.

    Args:
        interventions: edits of the prompts' own run. Rows that join behind a block join this run; the caller
            sees to it that none starts at the embedding.

    Raises:
        CannotJoin: a layer asks more of its cache than keys and values.
    """
    n_layers = model.n_layers
    pre = [HookPoint("resid_pre", layer) for layer in range(n_layers)]
    streams = [*pre[1:], HookPoint("resid_post", n_layers - 1)]
    points = [*pre, streams[-1], *also]
    recorders = [Recorder() for _ in range(n_layers)] if model.architecture.takes_cache else None
    try:
        with last_position_only(model, ()):
            logits, seen, _ = engine.run(
                model.architecture,
                mx.array(tokens),
                interventions=interventions,
                capture=points,
                cache=recorders,
            )
            found = last(logits)
    except (ValueError, TypeError, AttributeError) as problem:
        raise CannotJoin(str(problem)) from problem
    caches = tuple(recorder.seen for recorder in recorders or () if recorder.seen is not None)
    mx.eval(list(seen.values()), caches)
    after = tuple(seen[point] for point in streams)
    return Base(tokens, after, caches if len(caches) == n_layers else None, found, seen)


def passes(rows: Sequence[Row], base: Base) -> Iterator[tuple[int, list[int]]]:
    """(start, indices of rows): a pass carries the tokens from `start` on. Later starts are cheaper per
    row."""
    length, n_layers = base.tokens.shape[1], len(base.after)
    joins = [row.joins_after(n_layers) for row in rows]
    first = [0 if base.caches is None else row.first_position(length) for row in rows]
    work = dict.fromkeys(sorted(set(first)), 0)
    for p, join in zip(first, joins, strict=True):
        work[p] += n_layers - 1 - join
    starts = _starts(work, length, PASS_COST * n_layers)
    for start, until in zip(starts, [*starts[1:], length], strict=True):
        mine = [r for r in range(len(rows)) if start <= first[r] < until]
        # Rows that join at neighbouring layers share a batch, so that late ones don't wait through early
        # layers.
        yield start, sorted(mine, key=lambda r: joins[r])


def _starts(work: dict[int, int], length: int, pass_cost: int) -> list[int]:
    """The cheapest starts of passes, ascending, for this much work (row-layers) at each first position."""
    positions = list(work)
    # best[i]: cost and starts for the rows whose first position is positions[i] or later.
    best: list[tuple[int, list[int]]] = [(0, [])]
    for i in range(len(positions) - 1, -1, -1):
        total, options = 0, []
        for j in range(i, len(positions)):
            total += work[positions[j]]
            cost, later = best[len(positions) - 1 - j]
            options.append((pass_cost + total * (length - positions[i]) + cost, [positions[i], *later]))
        best.append(min(options))
    return best[-1][1]


@dataclass(eq=False)
class _Live:
    """The batch of one pass. Rows are in the order in which they join."""

    base: Base
    start: int
    rows: list[Row]
    joins: list[int]
    edits: dict[HookPoint, dict[int, list[Intervention]]] = field(default_factory=dict)  # → place → its edits

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            for edit in row.edits:
                self.edits.setdefault(edit.point, {}).setdefault(place, []).append(edit)

    def before(self, block: int) -> list[int]:
        """The prompts of the rows that are live when this block is called."""
        return [row.base for row, joins in zip(self.rows, self.joins, strict=True) if joins < block]

    def joining(self, block: int) -> list[int]:
        """The prompts of the rows that join after this block."""
        return [row.base for row, joins in zip(self.rows, self.joins, strict=True) if joins == block]

    def tokens(self) -> Ids:
        """What the forward is called with: the rows from the embedding on, or one row that no block will
        see."""
        return self.base.tokens[self.before(0) or [0], self.start :]

    def caches(self, n_layers: int) -> list[Prefix] | None:
        if not self.start or self.base.caches is None:
            return None
        return [Prefix(self.start, self.base.caches[layer], self.before(layer)) for layer in range(n_layers)]

    def tap(self, block: int) -> Around | None:
        """What happens around a block: it is left out while no row is live, and rows join behind it."""
        live, bases = bool(self.before(block)), self.joining(block)
        if not bases:
            return None if live else _left_out
        new = self.base.after[block][:, self.start :][mx.array(bases)]

        def around(call: Callable[..., Any], h: mx.array, *args: Any, **kwargs: Any) -> Any:
            if not live:
                return new
            y = call(h, *args, **kwargs)
            if isinstance(y, tuple):
                return (mx.concatenate([y[0], new]), *y[1:])
            return mx.concatenate([y, new])

        return around

    def interventions(self) -> list[Intervention]:
        """All rows' edits, one intervention per hook point."""
        return [interventions.edit(point, self._edit_at(point)) for point in self.edits]

    def _edit_at(self, point: HookPoint) -> Callable[[mx.array], mx.array]:
        length, pos = self.base.tokens.shape[1], axes(point).pos

        def edit_rows(x: mx.array) -> mx.array:
            # Keys and values come with the prefix before them, everything else from `start` on.
            start = 0 if point.is_module_path or point.name == "logits" else length - x.shape[pos]
            return edited_rows(x, self.edits[point], Window(start, (length,)))

        return edit_rows


def _left_out(_: Callable[..., Any], h: mx.array, *__: Any, **___: Any) -> mx.array:
    return h


def run_pass(model: InterpretableModel, base: Base, rows: Sequence[Row], start: int) -> Logits:
    """Logits of each row at the last position.

    Raises:
        CannotJoin: this architecture keeps something per row, or per position, that a joining row lacks.
    """
    n_layers = model.n_layers
    joins = [row.joins_after(n_layers) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: joins[i])
    unpatched = Row(rows[order[0]].base, ())
    live = _Live(
        base, start, [unpatched, *(rows[i] for i in order)], [joins[order[0]], *(joins[i] for i in order)]
    )
    taps: list[tuple[nn.Module, Around]] = []
    for block, layer in enumerate(model.architecture.layers):
        tap = live.tap(block)
        if tap is not None:
            taps.append((layer.block, tap))
    try:
        with last_position_only(model, rows), tapped(taps):
            logits, _, _ = engine.run(
                model.architecture,
                mx.array(live.tokens()),
                interventions=live.interventions(),
                cache=live.caches(n_layers),
                start=start,
            )
            found = last(logits)
    except (ValueError, TypeError, AttributeError) as problem:  # shapes, arguments or a cache of another kind
        raise CannotJoin(str(problem)) from problem
    if len(found) != len(rows) + 1:
        raise CannotJoin(f"{len(found)} rows came out where {len(rows) + 1} were running")
    expected = base.logits[unpatched.base]
    away = float(np.abs(found[0] - expected).max())
    if not away <= base.agreement * max(1.0, float(np.abs(expected).max())):
        raise CannotJoin(f"an unpatched row came out {away:.2g} from its prompt")
    logits_of = np.empty_like(found[1:])
    logits_of[order] = found[1:]
    return logits_of
