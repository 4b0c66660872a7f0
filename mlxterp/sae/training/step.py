"""One step of a training: gradients of a batch in pieces, Adam, decoder rows of norm 1.

A batch goes through in pieces that fit the cache: arrays [tokens, d_sae] of a whole batch cost more in page
faults than in arithmetic. On a GPU the gradient of a piece is compiled. On a CPU it is not: `mx.compile`
there calls a C++ compiler at run time and gains less than the noise, the products being most of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np

from mlxterp.sae.config import Plan, SAEConfig
from mlxterp.sae.training import objective
from mlxterp.sae.training.objective import Params, Penalty, Seen

MARK_DEAD_EVERY = 10
"""Steps between two checks of which features are dead."""

THRESHOLD_MEMORY = 0.99
_PIECE_VALUES = 1 << 23  # [tokens, d_sae] of one piece: 32 MB
_L1_RATE = 0.005
_REVIVAL_TOKENS = 2048

Gradient = Callable[..., tuple[tuple[mx.array, ...], Params]]


@dataclass(eq=False)
class State:
    """Everything that a step reads and changes; what a checkpoint holds.

    `since` counts tokens since each feature fired; `dead` are the indices of the features dead at the last
    check; `threshold` / `threshold_weight` is the running mean of the smallest activation that batchtopk
    kept; `sparsity` is the weight of the penalty of relu and jumprelu.
    """

    params: Params
    moments: dict[str, Any]
    since: mx.array
    dead: mx.array
    threshold: mx.array
    threshold_weight: float
    sparsity: float
    step: int = 0


@dataclass(frozen=True, eq=False)
class Stepped:
    """What was measured in a step, as arrays that are computed when they are read."""

    tokens: int
    squared_error: mx.array
    variance: mx.array
    active: mx.array
    loss: mx.array


@dataclass(eq=False)
class Stepper:
    """The functions of a config, made once: they hold the compiled gradient."""

    config: SAEConfig
    plan: Plan
    learning_rate: float
    _gradient: dict[bool, Gradient] = field(init=False)
    _optimizer: optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        self._gradient = {
            by_batch: mx.compile(self._of_piece(by_batch=by_batch))
            if on_gpu
            else self._of_piece(by_batch=by_batch)
            for by_batch in (False, True)
        }
        self._optimizer = optim.Adam(self.learning_rate, betas=[0.9, 0.999], bias_correction=True)

    def _of_piece(self, *, by_batch: bool) -> Gradient:
        """(params, x, y, sparsity, per_token, [dead]) → ((loss, *Seen), gradients): arrays only, so that it
        can be compiled. With dead features it is not, because their number changes from step to step."""

        def loss(
            params: Params, x: mx.array, y: mx.array, sparsity: mx.array, per_token: mx.array, *dead: mx.array
        ) -> tuple[mx.array, ...]:
            penalty = Penalty(sparsity, per_token, by_batch)
            value, seen = objective.loss(self.config, params, x, y, penalty, dead[0] if dead else None)
            return value, *seen

        return mx.value_and_grad(loss)

    def begin(self, d_in: int, d_out: int, x: mx.array) -> State:
        """The state before the first step; some tokens `x` set jumprelu's threshold."""
        tied = not self.config.is_transcoder
        params = objective.start(self.config, d_in, d_out, tied=tied)
        if self.config.variant == "jumprelu":
            # Deviation from the paper's 0.001: a short run begins with the threshold at which k features
            # fire.
            pre = np.array(objective.pre_activations(params, x, tied=tied))
            level = float(np.quantile(pre, 1 - self.config.k / self.config.d_sae))
            params["threshold"] = mx.full((self.config.d_sae,), max(level, 1e-3))
        self._optimizer.init(params)
        sparsity = 0.1 if self.config.variant == "jumprelu" else 0.03 / self.config.k
        none = mx.zeros((0,), dtype=mx.int32)
        since = mx.zeros((self.config.d_sae,), dtype=mx.int32)
        moments = dict(self._optimizer.state)
        return State(params, moments, since, none, mx.array(0.0), 0.0, sparsity)

    def rate(self, step: int) -> float:
        """Rises to the learning rate over the warm-up, falls to 0 over the last part."""
        steps = self.plan.steps
        warm, decay = max(1, round(self.config.warmup * steps)), max(1, round(self.config.decay * steps))
        return self.learning_rate * min(1.0, (step + 1) / warm, (steps - step) / decay)

    def advance(self, state: State, x: mx.array, y: mx.array) -> Stepped:
        """One step on a batch [tokens, d], scaled. Changes `state`.

        With the same bits in every run if called in `blas.pinned_threads()`, as the training does.
        """
        gradients, seen, loss = self._gradients(state, x, y)
        state.params = self._updated(state, gradients)
        n = x.shape[0]
        active = seen.active
        state.since = mx.where(active > 0, 0, state.since + n)
        # A batch without a positive activation has no smallest one: infinity would stay in the mean for good.
        if self.by_batch(state.step) and math.isfinite(float(seen.smallest)):
            state.threshold = THRESHOLD_MEMORY * state.threshold + (1 - THRESHOLD_MEMORY) * seen.smallest
            state.threshold_weight = THRESHOLD_MEMORY * state.threshold_weight + 1 - THRESHOLD_MEMORY
        mx.eval(state.params, state.moments, state.since, state.threshold, active)
        if self.config.variant == "relu":
            self._adapt_penalty(state, float(active.sum()) / n)
        state.step += 1
        if self.config.aux_weight and state.step % MARK_DEAD_EVERY == 0:
            self._mark_dead(state, x[:_REVIVAL_TOKENS])
        return Stepped(n, seen.squared_error, y.square().sum(), active, loss)

    def _gradients(self, state: State, x: mx.array, y: mx.array) -> tuple[Params, Seen, mx.array]:
        n = x.shape[0]
        piece = max(1, _PIECE_VALUES // self.config.d_sae)
        piece = math.ceil(n / math.ceil(n / piece))
        weights = (mx.array(state.sparsity), mx.array(1.0 / n))
        by_batch = self.by_batch(state.step)
        function = self._of_piece(by_batch=by_batch) if state.dead.size else self._gradient[by_batch]
        dead = (state.dead,) if state.dead.size else ()
        total: Params = {}
        every: list[Seen] = []
        loss = mx.array(0.0)
        for low in range(0, n, piece):
            high = low + piece
            (value, *seen), gradients = function(state.params, x[low:high], y[low:high], *weights, *dead)
            total = {name: total[name] + g for name, g in gradients.items()} if total else gradients
            loss = loss + value
            every.append(Seen(*seen))
            mx.eval(total, loss, *seen)
        return total, _combined(every), loss

    def _updated(self, state: State, gradients: Params) -> Params:
        """Adam; the decoder's gradient along its rows is removed first, and its rows get norm 1 after."""
        rows = state.params["W_dec"]
        along = (gradients["W_dec"] * rows).sum(axis=1, keepdims=True)
        gradients = gradients | {"W_dec": gradients["W_dec"] - along * rows}
        self._optimizer.state = state.moments
        self._optimizer.learning_rate = mx.array(self.rate(state.step))
        params: Params = self._optimizer.apply_gradients(gradients, state.params)
        state.moments = dict(self._optimizer.state)
        params["W_dec"] = params["W_dec"] / mx.linalg.norm(params["W_dec"], axis=1, keepdims=True)
        if "threshold" in params:
            params["threshold"] = mx.maximum(params["threshold"], 1e-6)
        return params

    def by_batch(self, step: int) -> bool:
        """Whether this step chooses among all tokens of a piece; the threshold is learned from these."""
        batchwise = self.config.variant in ("batchtopk", "matryoshka")
        return batchwise and step >= objective.BY_TOKEN * self.plan.steps

    def _mark_dead(self, state: State, x: mx.array) -> None:
        """Finds the dead features. Until the rate decays, those that are positive on no token get a bias with
        which they are: no gradient would bring them back."""
        dead = np.flatnonzero(np.array(state.since) >= self.plan.dead_after)
        state.dead = mx.array(dead.astype(np.int32))
        if not dead.size or state.step > (1 - self.config.decay) * self.plan.steps:
            return
        pre = objective.pre_activations(state.params, x, tied=not self.config.is_transcoder)
        highest = np.array(pre[:, state.dead].max(axis=0))
        lift = np.where(highest <= 0, objective.LIFTED - highest, 0.0)
        raised = np.array(state.params["b_enc"])
        raised[dead] += lift
        state.params["b_enc"] = mx.array(raised)

    def _adapt_penalty(self, state: State, active: float) -> None:
        """The L1 weight follows the number of active features towards k."""
        push = min(1.0, max(-1.0, active / self.config.k - 1.0))
        state.sparsity *= math.exp(_L1_RATE * push)


def _combined(every: list[Seen]) -> Seen:
    if len(every) == 1:
        return every[0]
    active = every[0].active
    for each in every[1:]:
        active = active + each.active
    return Seen(
        mx.stack([each.squared_error for each in every]).sum(),
        active,
        mx.stack([each.smallest for each in every]).min(),
    )
