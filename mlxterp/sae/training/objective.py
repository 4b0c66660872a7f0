"""The loss of each variant, as a function of the weights and a piece of a batch.

Inside a training, inputs and targets have mean 0 and a mean squared length of 9 k (`scaling.py`), so that an
active feature is about 3. The loss is divided by it: it is a fraction of variance unexplained, and a learning
rate means the same for every model.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlxterp.sae.config import SAEConfig


def largest(values: mx.array, k: int) -> mx.array:
    """Indices [rows, k] of the k largest of each row of `values` [rows, n], unordered."""
    rows, n = values.shape
    if k >= n:
        return mx.broadcast_to(mx.arange(n), (rows, n))
    size = _group_size(n, k)
    if size == 1:
        return mx.argpartition(values, kth=n - k, axis=-1)[:, n - k :]
    maxima = values.reshape(rows, n // size, size).max(axis=-1)
    groups = mx.argpartition(maxima, kth=n // size - k, axis=-1)[:, n // size - k :]
    candidates = (groups[:, :, None] * size + mx.arange(size)).reshape(rows, k * size)
    found = mx.take_along_axis(values, candidates, axis=-1)
    best = mx.argpartition(found, kth=k * size - k, axis=-1)[:, k * size - k :]
    return mx.take_along_axis(candidates, best, axis=-1)


def _group_size(n: int, k: int) -> int:
    """The divisor of n that makes both partitions small together; 1 where one partition is as good."""
    best, cost = 1, 0.8 * n
    for size in range(2, math.isqrt(n) + 1):
        if n % size == 0 and n // size > k and n / size + k * size < cost:
            best, cost = size, n / size + k * size
    return best


Params = dict[str, mx.array]

ACTIVATION = 3.0
"""About how large an active feature is. Measured on planted sets: at 1, biases fall fast and features die; at
10, runs of 1,000 steps end further from the optimum."""

LIFTED = 1.0
"""The largest pre-activation that a dead feature is given where it has no positive one."""

BY_TOKEN = 0.8
"""Share of a run in which batchtopk and matryoshka choose token by token, as topk does; then batch by batch.

Choosing by batch from the start left 4 to 8 of 64 planted features unfound on each of two seeds, at every
learning rate from 1e-3 to 1e-2; this way all were found."""

BANDWIDTH = 0.3
"""Of the straight-through gradients of JumpReLU, a tenth of `ACTIVATION`; 0.001 is for longer runs."""


class Seen(NamedTuple):
    """What is measured of a piece of a batch beside its loss."""

    squared_error: mx.array  # sum over tokens and dimensions
    active: mx.array  # [d_sae], on how many tokens each feature fired
    smallest: mx.array  # the smallest positive activation; infinity where there is none


class Penalty(NamedTuple):
    """The weights in the loss that change during a run."""

    sparsity: mx.array
    per_token: mx.array  # 1 / tokens of the whole batch
    by_batch: bool = True  # batchtopk and matryoshka: choose among all tokens, and not token by token


def start(config: SAEConfig, d_in: int, d_out: int, *, tied: bool) -> Params:
    """Random unit decoder rows; the encoder is their transpose where input and output are one place."""
    key_dec, key_enc = mx.random.split(mx.random.key(config.seed))
    rows = mx.random.normal((config.d_sae, d_out), key=key_dec)
    rows = rows / mx.linalg.norm(rows, axis=1, keepdims=True)
    columns = rows
    if not tied:
        columns = mx.random.normal((config.d_sae, d_in), key=key_enc)
        columns = columns / mx.linalg.norm(columns, axis=1, keepdims=True)
    params = {
        "W_enc": mx.contiguous(columns.T),
        "b_enc": mx.zeros((config.d_sae,)),
        "W_dec": rows,
        "b_dec": mx.zeros((d_out,)),
    }
    if config.variant == "jumprelu":
        params["threshold"] = mx.full((config.d_sae,), 0.1)
    if config.skip:
        params["W_skip"] = mx.zeros((d_in, d_out))
    return params


def pre_activations(params: Params, x: mx.array, *, tied: bool) -> mx.array:
    """[tokens, d_sae]. The decoder's bias is taken off the input by way of the bias: one product less."""
    bias = params["b_enc"]
    if tied:
        bias = bias - params["b_dec"] @ params["W_enc"]
    return x @ params["W_enc"] + bias


def loss(
    config: SAEConfig, params: Params, x: mx.array, y: mx.array, penalty: Penalty, dead: mx.array | None
) -> tuple[mx.array, Seen]:
    """The loss of a piece of a batch, and what was measured. `dead` holds the indices of dead features."""
    tied = not config.is_transcoder
    pre = pre_activations(params, x, tied=tied)
    acts = activations(config, params, pre, by_batch=penalty.by_batch)
    target = y - x @ params["W_skip"] if config.skip else y
    share = penalty.per_token / (config.k * ACTIVATION**2)
    total, error = _reconstruction(config, params, acts, target)
    value = total * share
    if config.variant == "relu":
        value = value + penalty.sparsity * acts.sum() * penalty.per_token
    if config.variant == "jumprelu":
        active = cast(mx.array, firing(pre, params["threshold"])).sum() * penalty.per_token / config.k
        # Per piece: the pieces of a batch are random samples of one size, so each aims at its share of k.
        part = x.shape[0] * penalty.per_token
        value = value + penalty.sparsity * mx.square(active / part - 1.0) * part
    if dead is not None:
        value = value + config.aux_weight * _revival(config, params, x, error, dead) * (
            x.shape[0] * penalty.per_token
        )
    fires = mx.stop_gradient(acts) > 0
    smallest = mx.where(fires, mx.stop_gradient(acts), float("inf")).min()
    # A product and not a square: where a loss and what is returned beside it share a node, mx.compile of mlx
    # 0.32 raises "_Map_base::at".
    squared_error = (mx.stop_gradient(error) * mx.stop_gradient(error)).sum()
    return value, Seen(squared_error, fires.sum(axis=0), smallest)


def activations(config: SAEConfig, params: Params, pre: mx.array, *, by_batch: bool) -> mx.array:
    """[tokens, d_sae], as they are during training."""
    if config.variant == "relu":
        return mx.maximum(pre, 0.0)
    if config.variant == "jumprelu":
        return cast(mx.array, jump(pre, params["threshold"]))
    by_token = config.variant == "topk" or not by_batch
    rows, k = (pre, config.k) if by_token else (pre.reshape(1, -1), config.k * pre.shape[0])
    chosen = largest(mx.stop_gradient(rows), k)
    kept = mx.maximum(mx.take_along_axis(rows, chosen, axis=-1), 0.0)
    return mx.put_along_axis(mx.zeros(rows.shape), chosen, kept, axis=-1).reshape(pre.shape)


def _reconstruction(
    config: SAEConfig, params: Params, acts: mx.array, target: mx.array
) -> tuple[mx.array, mx.array]:
    """The squared error that is minimised, and the error left by all features together."""
    if config.variant != "matryoshka":
        error = target - (acts @ params["W_dec"] + params["b_dec"])
        return error.square().sum(), error
    bounds = [0, *(round(share * config.d_sae) for share in config.prefixes)]
    written, total = params["b_dec"], mx.array(0.0)
    for low, high in pairwise(bounds):
        written = written + acts[:, low:high] @ params["W_dec"][low:high]
        error = target - written
        total = total + error.square().sum()
    return total / (len(bounds) - 1), error


def _revival(config: SAEConfig, params: Params, x: mx.array, error: mx.array, dead: mx.array) -> mx.array:
    """The share of the living features' error that the dead features leave: 1 if they explain none of it.

    Gao et al. 2024, section A.2: the largest `aux_k` of the dead reconstruct the residual, which is a
    constant here, without the bias. Deviation: a dead feature that is nowhere positive would get no gradient,
    so it is lifted until its largest pre-activation in this piece is `LIFTED`; and biases get no gradient
    from this loss, because they would fall without end under the lift.
    """
    encoder, bias = params["W_enc"][:, dead], params["b_enc"][dead]
    if not config.is_transcoder:
        bias = bias - params["b_dec"] @ encoder
    pre = x @ encoder + mx.stop_gradient(bias)
    acts = mx.maximum(pre + mx.stop_gradient(mx.maximum(LIFTED - pre.max(axis=0), 0.0)), 0.0)
    aux_k = config.aux_k or max(1, x.shape[-1] // 2)
    if dead.shape[0] > aux_k:
        chosen = largest(mx.stop_gradient(acts), aux_k)
        kept = mx.take_along_axis(acts, chosen, axis=-1)
        acts = mx.put_along_axis(mx.zeros(acts.shape), chosen, kept, axis=-1)
    left = mx.stop_gradient(error)
    return (left - acts @ params["W_dec"][dead]).square().sum() / (left.square().sum() + 1e-12)


# JumpReLU's step has no useful gradient in its threshold: a rectangle of width BANDWIDTH around it stands in
# (Rajamanoharan et al. 2024, section 4).


@mx.custom_function
def jump(pre: mx.array, threshold: mx.array) -> mx.array:
    """pre where it is above its threshold."""
    return mx.where(pre > threshold, mx.maximum(pre, 0.0), 0.0)


@jump.vjp
def _jump_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    pre, threshold = primals
    open_ = mx.where((pre > threshold) & (pre > 0), cotangent, 0.0)
    near = (mx.abs(pre - threshold) < BANDWIDTH / 2).astype(mx.float32)
    return open_, (-(threshold / BANDWIDTH) * (near * cotangent).sum(axis=0))


@mx.custom_function
def firing(pre: mx.array, threshold: mx.array) -> mx.array:
    """1 where pre is above its threshold."""
    return (pre > threshold).astype(mx.float32)


@firing.vjp
def _firing_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    pre, threshold = primals
    near = (mx.abs(pre - threshold) < BANDWIDTH / 2).astype(mx.float32)
    return mx.zeros_like(pre), -(1 / BANDWIDTH) * (near * cotangent).sum(axis=0)
