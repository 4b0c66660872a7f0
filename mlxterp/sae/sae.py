"""`SAE`: a sparse autoencoder as a value: weights, activation function, hook points, how it was trained.

An SAE takes raw activations: whatever scaling a training or a file used is folded into the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from mlxterp.core.hook_points import HookPoint, parse
from mlxterp.errors import SAEError


@dataclass(frozen=True)
class Relu:
    """a = max(pre, 0)."""

    def __call__(self, pre: mx.array) -> mx.array:
        return mx.maximum(pre, 0.0)


@dataclass(frozen=True)
class TopK:
    """The k largest pre-activations of a token, those of them that are positive; 0 elsewhere.

    Exactly k are chosen, also where some are equal. Source: Gao et al. 2024, "Scaling and evaluating
    sparse autoencoders", arXiv:2406.04093.
    """

    k: int

    def __call__(self, pre: mx.array) -> mx.array:
        d_sae = pre.shape[-1]
        if self.k >= d_sae:
            return mx.maximum(pre, 0.0)
        chosen = mx.argpartition(pre, kth=d_sae - self.k, axis=-1)[..., d_sae - self.k :]
        kept = mx.maximum(mx.take_along_axis(pre, chosen, axis=-1), 0.0)
        return mx.put_along_axis(mx.zeros_like(pre), chosen, kept, axis=-1)


@dataclass(frozen=True, eq=False)
class JumpRelu:
    """a = max(pre, 0) where pre > threshold, 0 elsewhere. `threshold` is [d_sae], float32.

    Source: Rajamanoharan et al. 2024, "Jumping ahead", arXiv:2407.14435.
    """

    threshold: mx.array

    def __call__(self, pre: mx.array) -> mx.array:
        return mx.where(pre > self.threshold, mx.maximum(pre, 0.0), 0.0)


Activation = Relu | TopK | JumpRelu


@dataclass(frozen=True, eq=False, kw_only=True)
class SAE:
    """A sparse autoencoder, or a transcoder where it writes elsewhere than it reads.

    With x one token's raw activation: pre = (x − b_dec if `subtract_b_dec` else x) W_enc + b_enc,
    a = activation(pre), reconstruction = a W_dec + b_dec (+ x W_skip).

    Attributes:
        W_enc: [d_in, d_sae], float32 like all weights (others are cast).
        b_enc: [d_sae].
        W_dec: [d_sae, d_out]; row f is the direction that feature f writes.
        b_dec: [d_out].
        activation: Relu(), TopK(k) or JumpRelu(threshold [d_sae]).
        hook_point: where it reads, as in "L15.resid_post".
        model: the name of the model it was trained on.
        hook_point_out: where a transcoder writes; None for an SAE, which writes where it reads.
        subtract_b_dec: whether b_dec is taken off the input.
        W_skip: [d_in, d_out], the linear path of a skip transcoder, or None.
        metadata: plain values: how it was trained, what was measured.

    Raises:
        SAEError: shapes that do not go together; the message lists all of them.
        UnknownHookPoint: a hook point that does not parse.
    """

    W_enc: mx.array
    b_enc: mx.array
    W_dec: mx.array
    b_dec: mx.array
    activation: Activation
    hook_point: str
    model: str
    hook_point_out: str | None = None
    subtract_b_dec: bool = False
    W_skip: mx.array | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _float32(value))
        if isinstance(self.activation, JumpRelu):
            threshold = _float32(self.activation.threshold)
            if threshold.ndim == 0:
                threshold = mx.broadcast_to(threshold, self.b_enc.shape)
            object.__setattr__(self, "activation", JumpRelu(threshold))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))
        parse(self.hook_point)
        if self.hook_point_out is not None:
            parse(self.hook_point_out)
        self._check_shapes()

    def _check_shapes(self) -> None:
        shapes = {name: tuple(getattr(self, name).shape) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        if self.W_enc.ndim != 2 or self.W_dec.ndim != 2:
            raise SAEError(
                f"An SAE with weights of shapes {shapes}. W_enc is [d_in, d_sae], W_dec [d_sae, d_out]."
            )
        (d_in, d_sae), d_out = self.W_enc.shape, self.W_dec.shape[1]
        needed = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_out), "b_dec": (d_out,)}
        if self.W_skip is not None:
            shapes["W_skip"], needed["W_skip"] = tuple(self.W_skip.shape), (d_in, d_out)
        if isinstance(self.activation, JumpRelu):
            shapes["threshold"], needed["threshold"] = tuple(self.activation.threshold.shape), (d_sae,)
        if shapes != needed:
            raise SAEError(
                f"An SAE with weights of shapes {shapes}. With this W_enc and W_dec they must be {needed}."
            )
        if isinstance(self.activation, TopK) and not 1 <= self.activation.k <= d_sae:
            raise SAEError(f"TopK(k={self.activation.k}) of {d_sae} features. Choose k from 1 to {d_sae}.")
        if self.subtract_b_dec and d_in != d_out:
            raise SAEError(
                f"subtract_b_dec with d_in {d_in} and d_out {d_out}: b_dec [{d_out}] cannot be taken off the "
                "input. Transcoders read their input as it is: leave subtract_b_dec False."
            )

    def __repr__(self) -> str:
        where = f"{self.hook_point} → {self.hook_point_out}" if self.is_transcoder else self.hook_point
        kind = type(self.activation).__name__
        k = f"({self.activation.k})" if isinstance(self.activation, TopK) else ""
        return f"SAE({self.model} {where}, d_in {self.d_in}, d_sae {self.d_sae}, {kind}{k})"

    @property
    def d_in(self) -> int:
        """The width of what it reads."""
        return int(self.W_enc.shape[0])

    @property
    def d_sae(self) -> int:
        """How many features it has."""
        return int(self.W_enc.shape[1])

    @property
    def d_out(self) -> int:
        """The width of what it writes."""
        return int(self.W_dec.shape[1])

    @property
    def point(self) -> HookPoint:
        """Where it reads."""
        return parse(self.hook_point)

    @property
    def point_out(self) -> HookPoint:
        """Where it writes: for an SAE, where it reads."""
        return parse(self.hook_point_out or self.hook_point)

    @property
    def layer(self) -> int:
        """The layer it reads in.

        Raises:
            SAEError: it reads outside the layers, as at "embed".
        """
        layer = self.point.layer
        if layer is None:
            raise SAEError(
                f"This SAE reads {self.hook_point!r}, which is in no layer. Use sae.point or sae.hook_point."
            )
        return layer

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return self.hook_point_out is not None and self.hook_point_out != self.hook_point

    def pre_activations(self, x: mx.array) -> mx.array:
        """[..., d_in] → [..., d_sae]: the input of the activation function."""
        if x.shape[-1] != self.d_in:
            raise SAEError(
                f"Activations of shape {tuple(x.shape)} for an SAE that reads d_in = {self.d_in} at "
                f"{self.model} {self.hook_point}. Give it what was captured there."
            )
        x = x.astype(mx.float32)
        return (x - self.b_dec if self.subtract_b_dec else x) @ self.W_enc + self.b_enc

    def encode(self, x: mx.array) -> mx.array:
        """Feature activations [..., d_sae], float32, of raw activations [..., d_in].

        Each token by itself, whatever else is in the batch. 2·d_in·d_sae operations a token.

        Raises:
            SAEError: activations of another width.
        """
        return self.activation(self.pre_activations(x))

    def decode(self, acts: mx.array) -> mx.array:
        """What the features write, with b_dec, without a skip path: [..., d_sae] → [..., d_out]."""
        return acts @ self.W_dec + self.b_dec

    def reconstruct(self, x: mx.array) -> mx.array:
        """[..., d_in] → [..., d_out], float32: decode(encode(x)), and the skip path where there is one."""
        written = self.decode(self.encode(x))
        return written if self.W_skip is None else written + x.astype(mx.float32) @ self.W_skip

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every weight, the activation function, and where it reads and writes; hex."""
        seen = hashlib.sha256()
        facts: list[Any] = [type(self.activation).__name__, self.hook_point, self.hook_point_out]
        facts += [self.model, self.subtract_b_dec]
        arrays = {name: getattr(self, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")}
        if isinstance(self.activation, TopK):
            facts.append(self.activation.k)
        if isinstance(self.activation, JumpRelu):
            arrays["threshold"] = self.activation.threshold
        seen.update(json.dumps(facts).encode())
        for name, array in arrays.items():
            if array is not None:
                seen.update(f"{name} {tuple(array.shape)}".encode())
                seen.update(np.ascontiguousarray(np.array(array)).tobytes())
        return seen.hexdigest()


def _float32(array: mx.array) -> mx.array:
    return array if array.dtype == mx.float32 else array.astype(mx.float32)
