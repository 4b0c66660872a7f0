"""The prompts' own run, from which patched rows branch off: residual streams, keys and values, logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.causal.batching.rows import Ids, Logits, last, last_position_only
from mlxterp.core import forward
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import Intervention
from mlxterp.core.model import InterpretableModel
from mlxterp.measurements import recorder

AGREEMENT, AGREEMENT_HALF = 1e-3, 4e-2
"""How far a row without edits may come out from its prompt, relative to the largest logit, in a correct pass:
in float32, and in types of 16 bits."""

Edits = tuple[Intervention, ...]


class CannotJoin(Exception):
    """Rows that branched off their prompt's run did not come out as they should."""


@dataclass(frozen=True, eq=False)
class BaseRun:
    """The run of some prompts.

    Attributes:
        tokens: `[n, length]`.
        after: the residual stream after each block, `[n, length, d_model]`; empty if it is not known.
        caches: per layer the keys and values of all positions; None if the model keeps none.
        logits: at the last position.
        points: activations at further hook points, `[n, length, …]`.
        edits: of each prompt's own run; empty where no run is edited.
    """

    tokens: Ids
    after: tuple[mx.array, ...] = ()
    caches: tuple[tuple[mx.array, mx.array], ...] | None = None
    logits: Logits = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    points: Mapping[HookPoint, mx.array] = field(default_factory=dict)
    edits: tuple[Edits, ...] = ()

    @property
    def agreement(self) -> float:
        """How far a row without edits may come out from its prompt, relative to the largest logit."""
        return AGREEMENT if self.after[0].dtype == mx.float32 else AGREEMENT_HALF

    def stream(self, block: int) -> mx.array:
        """The residual stream after a block; after block −1, what enters the first."""
        return self.points[HookPoint("resid_pre", 0)] if block < 0 else self.after[block]

    def activation(self, point: HookPoint) -> mx.array | None:
        """The prompts' activations at a hook point, if they were kept."""
        if self.after and point.layer is not None and point.name in ("resid_pre", "resid_post"):
            return self.stream(point.layer - (point.name == "resid_pre"))
        return self.points.get(point)

    def of(self, first: int, until: int) -> BaseRun:
        """The run of these prompts alone."""
        return BaseRun(
            self.tokens[first:until],
            tuple(x[first:until] for x in self.after),
            None if self.caches is None else tuple((k[first:until], v[first:until]) for k, v in self.caches),
            self.logits[first:until],
            {point: x[first:until] for point, x in self.points.items()},
            self.edits[first:until],
        )

    def check(self, logits: Logits, prompt: int, vocabulary: Ids | None = None) -> None:
        """Raises CannotJoin if a row without edits has other logits `[d_vocab]` than its prompt."""
        expected = self.logits[prompt] if vocabulary is None else self.logits[prompt, vocabulary]
        difference = float(np.abs(logits - expected).max()) / max(1.0, float(np.abs(expected).max()))
        if not difference <= self.agreement:
            raise CannotJoin(f"an unpatched row came out {difference:.2g} from its prompt")


def run_base(
    model: InterpretableModel,
    tokens: Ids,
    also: Iterable[HookPoint] = (),
    *,
    edits: Sequence[Edits] = (),
) -> BaseRun:
    """One forward of the prompts, with everything that rows may branch off from, and the points of `also`.

    Args:
        edits: of each prompt's own run.

    Raises:
        CannotJoin: a layer asks more of its cache than keys and values.
    """
    n_layers = model.n_layers
    pre = [HookPoint("resid_pre", layer) for layer in range(n_layers)]
    streams = [*pre[1:], HookPoint("resid_post", n_layers - 1)]
    recorders = [KeyValueRecorder() for _ in range(n_layers)] if model.architecture.takes_cache else None
    try:
        with last_position_only(model, ()):
            logits, captured, _ = forward.run(
                model.architecture,
                mx.array(tokens),
                interventions=[for_row(edit, i) for i, own in enumerate(edits) for edit in own],
                capture=[*pre, streams[-1], *also],
                cache=recorders,
            )
            found = last(logits)
        recorder.add_forward(model, [row.tobytes() for row in tokens.astype(np.int32)])
    except (ValueError, TypeError, AttributeError) as problem:
        raise CannotJoin(str(problem)) from problem
    caches = tuple(each.recorded for each in recorders or () if each.recorded is not None)
    mx.eval(list(captured.values()), caches)
    return BaseRun(
        tokens,
        tuple(captured[point] for point in streams),
        caches if len(caches) == n_layers else None,
        found,
        captured,
        tuple(edits),
    )


def for_row(edit: Intervention, row: int) -> Intervention:
    """The same intervention, made on this row of a batch only."""
    return replace(edit, where=replace(edit.where, rows=(row,)))


class KeyValueRecorder:
    """A cache in the form of mlx-lm's that starts empty and records what a layer gave it."""

    offset = 0

    def __init__(self) -> None:
        self.recorded: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.recorded = (keys, values)
        return keys, values

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return cache_mask(n, 0, return_array=return_array, window_size=window_size)


class PrefixCache:
    """A cache that holds the prompts' keys and values before a position.

    Args:
        start: that position.
        recorded: keys and values of all positions, of n prompts.
        bases: the prompt of each row of a batch; None for batches that repeat all of them in order.
    """

    def __init__(
        self, start: int, recorded: tuple[mx.array, mx.array], bases: Sequence[int] | None = None
    ) -> None:
        self.offset = start
        self._before = tuple(part[:, :, :start] for part in recorded)
        self._bases = None if bases is None else mx.array(list(bases))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        index = mx.arange(len(keys)) % len(self._before[0]) if self._bases is None else self._bases
        k, v = (
            mx.concatenate([mx.take(old, index, axis=0), new], axis=2)
            for old, new in zip(self._before, (keys, values), strict=True)
        )
        return k, v

    def make_mask(self, n: int, *, return_array: bool = False, window_size: int | None = None) -> Any:
        return cache_mask(n, self.offset, return_array=return_array, window_size=window_size)


def cache_mask(n: int, offset: int, *, return_array: bool, window_size: int | None) -> Any:
    """What mlx-lm's own cache answers: no mask for one token, a name where that suffices, else booleans."""
    if window_size is None and not return_array:
        return None if n == 1 else "causal"
    return causal_mask(n, offset, window_size)


def causal_mask(n: int, start: int, window: int | None) -> mx.array:
    """Booleans [n, start + n]: the positions that the n tokens from `start` on may attend to."""
    dest, src = mx.arange(start, start + n)[:, None], mx.arange(start + n)[None]
    mask = dest >= src
    return mask if window is None else mask & (dest < src + window)
