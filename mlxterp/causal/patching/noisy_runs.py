"""Runs with noise on the subject's embeddings, and with one clean state restored in each.

What lives here: where the subject is, the noise, the restored states, the rows of the sweep. What doesn't:
how much noise, and what is made of the numbers (`causal_tracing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp import metrics
from mlxterp.causal.batching import one_pass, packed_rows, sweep
from mlxterp.causal.prompts.encoding import Ids, position_index, str_tokens
from mlxterp.core import interventions
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.linux_blas import swiglu as fast_math
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError, TokenError
from mlxterp.metrics import Floats, Metric

EMBED = HookPoint("embed")


@dataclass(frozen=True, eq=False)
class Subject:
    """One prompt as tokens, where its subject is, and its clean metric."""

    tokens: Ids  # [1, length]
    positions: tuple[int, ...]
    targets: metrics.Targets
    clean: float
    embed: mx.array  # [1, length, d_model], float32


def subject_positions(
    model: InterpretableModel, tokens: Ids, subject: str | tuple[int, ...]
) -> tuple[int, ...]:
    """The tokens that hold any of the subject's characters."""
    if not isinstance(subject, str):
        found = tuple(sorted({position_index(p, tokens.shape[1]) for p in subject}))
        if not found:
            raise TokenError("subject=() names no position. Give the positions of the subject's tokens.")
        return found
    shown = str_tokens(model, tokens[0])
    text = "".join(shown)
    if not subject or text.count(subject) != 1:
        raise PromptPairError(
            f"subject={subject!r} stands {text.count(subject) if subject else 0} times in {text!r}. Give a "
            "part that stands there once, or the positions of its tokens."
        )
    first = text.index(subject)
    ends = np.cumsum([len(token) for token in shown])
    starts = ends - [len(token) for token in shown]
    inside = (ends > first) & (starts < first + len(subject))
    return tuple(int(p) for p in np.flatnonzero(inside))


def trace(
    model: InterpretableModel,
    subject: Subject,
    metric: Metric,
    name: str,
    window: int,
    layers: Sequence[int],
    std: float,
    samples: int,
    key: mx.array,
    progress: Callable[[int, int], None] | None,
) -> tuple[Floats, Floats]:
    """The metric with noise [samples], and with each state restored [samples, n_layers, length]."""
    length, where = subject.tokens.shape[1], list(subject.positions)
    clean = subject.embed[:, mx.array(where)]
    noisy = clean + std * mx.random.normal((samples, *clean.shape[1:]), key=key)
    mx.eval(noisy)
    corrupt = [interventions.replace(EMBED, noisy[s : s + 1], positions=where) for s in range(samples)]
    points = [HookPoint(name, layer) for layer in range(model.n_layers)]
    states = sweep.capture(model, subject.tokens, points)

    def read(logits: np.ndarray[Any, Any], _: Ids) -> Floats:
        return metric(logits, subject.targets.take(np.zeros(len(logits), dtype=np.int64)))

    restored = _Restored(states, window, model.n_layers)
    cells = [(row, layer, p) for row, layer in enumerate(layers) for p in range(where[0], length)]
    base = sweep.run_rows(model, subject.tokens, [sweep.Row(0, (edit,)) for edit in corrupt], read)
    values = np.repeat(base[:, None], len(layers) * length, axis=1).reshape(samples, len(layers), length)
    size = max(1, sweep.KEPT_TOKENS // length)
    for start in range(0, samples, size):
        some = range(start, min(start + size, samples))
        noisy_run = _noisy_run(model, subject.tokens, noisy[some.start : some.stop], where)
        joining = [] if noisy_run is None else [c for c in cells if restored.joins(name, c[1])]
        from_embedding = [c for c in cells if c not in set(joining)]
        for chosen, kept in ((joining, noisy_run), (from_embedding, None)):
            edits = [(i, s, restored.edits(layer, p)) for _, layer, p in chosen for i, s in enumerate(some)]
            if kept is None:  # the rows bring their noise along
                tokens = subject.tokens
                rows = [sweep.Row(0, (corrupt[s], *each)) for _, s, each in edits]
            else:
                tokens = np.repeat(subject.tokens, len(some), axis=0)
                rows = [sweep.Row(i, each) for i, _, each in edits]
            if not rows:
                continue
            # The plain engine knows nothing of a noisy run, so rows that join one must not fall back to it.
            engine: sweep.Engine = "auto" if kept is None else "one_pass"
            found = sweep.run_rows(model, tokens, rows, read, base=kept, engine=engine, progress=progress)
            for (row, _, p), of_samples in zip(chosen, found.reshape(len(chosen), -1), strict=True):
                values[list(some), row, p] = of_samples
    return base, values


def _noisy_run(
    model: InterpretableModel, tokens: Ids, noisy: mx.array, where: Sequence[int]
) -> sweep.Base | None:
    """The runs of these draws of noise, for rows to join; None where rows cannot join a running batch."""
    if tokens.size > sweep.KEPT_TOKENS:
        return None
    names = [name for name in packed_rows.POINTS if model.capabilities[name].available]
    points = [HookPoint(name, layer) for name in names for layer in range(model.n_layers)]
    edit = interventions.replace(EMBED, noisy, positions=list(where))
    rows = np.repeat(tokens, len(noisy), axis=0)
    try:
        with fast_math.used(model.architecture):
            return one_pass.run_base(model, rows, points, interventions=[edit])
    except one_pass.CannotJoin:
        return None


class _Restored:
    """The interventions that restore a state, made once each: equal rows then share them."""

    def __init__(self, states: Mapping[HookPoint, mx.array], window: int, n_layers: int) -> None:
        self._states = {point: np.array(x.astype(mx.float32)) for point, x in states.items()}
        self._window, self._n_layers = window, n_layers
        self._made: dict[tuple[HookPoint, int], interventions.Intervention] = {}

    def joins(self, name: str, layer: int) -> bool:
        """Whether a row restored around this layer is as its noisy run behind some block."""
        return name == "resid_post" or self._layers(layer).start > 0

    def edits(self, layer: int, position: int) -> tuple[interventions.Intervention, ...]:
        layers = self._layers(layer)
        return tuple(self._edit(point, position) for point in self._states if point.layer in layers)

    def _layers(self, middle: int) -> range:
        """As many layers as the window has, fewer at the ends."""
        first, until = middle - self._window // 2, middle - (-self._window // 2)
        return range(max(0, first), min(self._n_layers, until))

    def _edit(self, point: HookPoint, position: int) -> interventions.Intervention:
        known = self._made.get((point, position))
        if known is None:
            value = self._states[point][:, position : position + 1]
            known = self._made[point, position] = interventions.replace(point, value, positions=[position])
        return known
