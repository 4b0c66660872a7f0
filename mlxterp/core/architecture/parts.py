"""A model as its parts: which module is what, what it lacks, and each part as something to run or a formula.

What doesn't live here: finding the parts (`discovery.py`), checking that they are what they seem
(`self_check.py`), and hooking a run (`forward.py`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlxterp import other_libraries
from mlxterp.component_names import GLOBAL_NAMES, LAYER_NAMES
from mlxterp.core.architecture import linear
from mlxterp.core.architecture.families import Family
from mlxterp.core.architecture.norms import IDENTITY, Norm, read_norm
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.taps import RunLock, other_runs_waiting, run_lock, tapped
from mlxterp.errors import CapabilityUnavailable, TokenError, UnknownHookPoint

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Layer:
    """The parts of one block; None where the block has no such part."""

    block: nn.Module
    attn: nn.Module | None
    mlp: nn.Module | None
    out_proj: nn.Module | None
    attn_adds: nn.Module | None  # the module whose output attention adds to the residual stream
    mlp_adds: nn.Module | None
    n_heads: int | None
    n_kv_heads: int | None
    namespace: dict[str, Any]  # the globals in which the attention module looks up its functions
    own_softmax: OwnSoftmax | None = None


@dataclass(frozen=True, eq=False)
class OwnSoftmax:
    """The parts of an attention module that computes its softmax in place: where q, k and v can be seen."""

    rope: nn.Module  # called for the queries first, then for the keys
    v_proj: nn.Module


@dataclass(frozen=True)
class Capability:
    """Whether a hook point or a part can be used.

    Attributes:
        available: in every layer, or at all for what has no layers.
        reason: why not; for what is available, what limits its meaning in this model, or "".
        layers: where it is available in some layers and not in others, which have it.
    """

    available: bool
    reason: str = ""
    layers: tuple[int, ...] = ()


YES = Capability(available=True)


def missing(reason: str) -> Capability:
    """A capability that is missing, and why."""
    return Capability(available=False, reason=reason)


@dataclass(frozen=True, eq=False)
class Prologue:
    """What a forward has ready before its blocks: the embedding, and what else each block is called with."""

    h: mx.array
    calls: tuple[OtherArguments, ...]


class OtherArguments(NamedTuple):
    """What a block is called with beside the residual stream: behind it, by name, and in front of it."""

    after: tuple[Any, ...]
    named: dict[str, Any]
    before: tuple[Any, ...] = ()

    def call(self, block: Callable[..., Any], h: mx.array) -> Any:
        """The block's answer on `h`."""
        return block(*self.before, h, *self.after, **self.named)


@dataclass(eq=False)
class Architecture:
    """The parts of a model, and which of them can be used."""

    model: nn.Module
    family: Family
    layers: tuple[Layer, ...]
    norm_module: nn.Module | None
    embedding: nn.Module | None
    unembedding_module: nn.Module | None
    tied: bool
    attn_scale: float
    mlp_scale: float
    logit_scale: float
    softcap: float | None
    takes_cache: bool
    d_model: int = 0
    d_vocab: int = 0
    capabilities: dict[str, Capability] = field(default_factory=dict)
    max_positions: int | None = None  # rows of a table of learned positions; None where there is none
    dtype: mx.Dtype = mx.float32  # of the residual stream, as the model computes it by itself
    stream_in_float32: bool = False  # see `float32_stream`

    @property
    def name(self) -> str:
        """The family's name: that of the Python module which defines the blocks."""
        return type(self.layers[0].block).__module__.rsplit(".", 1)[-1]

    @property
    def lock(self) -> RunLock:
        """Held by whoever runs the model."""
        return run_lock(self.model)

    @contextmanager
    def float32_stream(self) -> Iterator[None]:
        """While the block runs, runs of this model have a float32 residual stream, whatever its weights are.

        What enters the first block is cast; MLX then computes everything behind it in float32, with the
        16-bit weights as they are. Runs that are batched differently are the same up to float32 rounding.
        """
        with other_runs_waiting():
            before, self.stream_in_float32 = self.stream_in_float32, True
            try:
                yield
            finally:
                self.stream_in_float32 = before

    def entering(self, h: mx.array) -> mx.array:
        """What the first block is given, from what the model gives it."""
        return h.astype(mx.float32) if self.stream_in_float32 else h

    def require(self, *names: str) -> None:
        """Raises CapabilityUnavailable for the first of these that this model does not have."""
        for name in names:
            capability = self.capabilities.get(name, Capability(available=True))
            if not capability.available and capability.layers:
                raise CapabilityUnavailable(
                    f"{self.name} does not have {name!r} in every layer: {capability.reason} "
                    f"{_which_have_it(name, capability.layers)}"
                )
            if not capability.available:
                layered = [n for n in LAYER_NAMES if self.capabilities[n].available]
                outside = [n for n in GLOBAL_NAMES if self.capabilities[n].available]
                raise CapabilityUnavailable(
                    f"{self.name} has no {name!r}: {capability.reason} "
                    f"Available in a layer: {', '.join(layered)}; outside: {', '.join(outside)}."
                )

    def layers_with(self, name: str) -> tuple[int, ...]:
        """The layers in which a hook point or part of layers is available."""
        capability = self.capabilities[name]
        return tuple(range(len(self.layers))) if capability.available else capability.layers

    def require_in_some_layer(self, *names: str) -> None:
        """Raises CapabilityUnavailable for the first of these that no layer of this model has."""
        for name in names:
            if not self.layers_with(name):
                self.require(name)

    def require_in_layer(self, name: str, layer: int) -> None:
        """Raises CapabilityUnavailable if this layer does not have `name`, saying which have it."""
        if layer in self.layers_with(name):
            return
        layers = self.capabilities[name].layers
        if not layers:
            self.require(name)
        raise CapabilityUnavailable(
            f"{self.name} has no {name!r} in layer {layer}: {self.capabilities[name].reason} "
            f"{_which_have_it(name, layers)}"
        )

    def require_point(self, point: HookPoint) -> None:
        """Raises if `point` does not exist in this model, saying what does."""
        if point.is_module_path:
            self.module_at(point.name)
            return
        if point.spelled == "hook_embed" and self.max_positions is not None:
            raise UnknownHookPoint(other_libraries.WITH_POSITIONS)
        if point.layer is not None and point.layer >= len(self.layers):
            raise UnknownHookPoint(
                f"{point}: there is no layer {point.layer}. This model has {len(self.layers)} layers, "
                f"L0 to L{len(self.layers) - 1}."
            )
        if point.layer is None:
            self.require(point.name)
        else:
            self.require_in_layer(point.name, point.layer)

    def module_at(self, path: str) -> nn.Module:
        """The module at a dotted path, as in `model.layers.0.mlp`."""
        node: Any = self.model
        walked: list[str] = []
        for part in path.split("."):
            children = _children(node)
            if part not in children:
                there = ", ".join(sorted(children)) or "nothing"
                raise UnknownHookPoint(
                    f"{path!r} is neither a hook point nor a module: {'.'.join(walked) or 'the model'} "
                    f"has no {part!r}. It has: {there}."
                )
            node = children[part]
            walked.append(part)
        if not isinstance(node, nn.Module):
            raise UnknownHookPoint(f"{path!r} holds several modules. Say which, as in '{path}.0'.")
        return node

    # heads

    @property
    def n_heads(self) -> int | None:
        return self._attending.n_heads

    @property
    def n_kv_heads(self) -> int | None:
        return self._attending.n_kv_heads

    @property
    def _attending(self) -> Layer:
        """The first layer with attention: a hybrid may begin with another kind."""
        return self.layers[next(iter(self.layers_with("pattern") or self.layers_with("z")), 0)]

    def w_o(self, layer: int) -> mx.array:
        """W_O of a layer, float32 [n_heads, d_head, d_model], dequantised: head h writes z[h] @ W_O[h]."""
        self.require_in_layer("head_outputs", layer)
        part = self.layers[layer]
        weight = linear.rows(_there(part.out_proj)).T
        return weight.reshape(_there(part.n_heads), -1, weight.shape[-1])

    def b_o(self, layer: int) -> mx.array | None:
        """The bias of a layer's output projection, float32 [d_model], or None."""
        self.require_in_layer("head_outputs", layer)
        return linear.bias(_there(self.layers[layer].out_proj))

    def head_outputs(self, layer: int, z: mx.array) -> tuple[mx.array, mx.array]:
        """What each head, and the bias, add to the residual stream: [..., n_heads, d_model], [..., d_model].

        `z` is the layer's z [..., n_heads, d_head] with every head of one run: where a norm stands between
        the heads and the stream (gemma2, olmo2), its scale is frozen at this run's value. All heads plus the
        bias are attn_out.
        """
        heads = mx.einsum("...hd,hdm->...hm", z.astype(mx.float32), self.w_o(layer))
        b_o = self.b_o(layer)
        bias = mx.zeros(heads.shape[-1]) if b_o is None else b_o
        norm = self._post_attention_norm(layer)
        total = mx.sum(heads, axis=-2) + bias
        heads = norm.linear(heads) * norm.scale(total)[..., None, :] * self.attn_scale
        bias = norm.linear(mx.broadcast_to(bias, total.shape)) * norm.scale(total)
        return heads, (bias if norm.bias is None else bias + norm.bias) * self.attn_scale

    def _post_attention_norm(self, layer: int) -> Norm:
        part = self.layers[layer]
        if part.attn_adds is part.attn:
            return IDENTITY
        norm = read_norm(_there(part.attn_adds), self.d_model)
        if norm is None:
            raise CapabilityUnavailable(
                f"{self.name}: the norm behind layer {layer}'s attention has no known formula, so what each "
                "head adds is not known. Use attn_out."
            )
        return norm

    # running the parts one by one

    def prologue(self, tokens: mx.array, cache: list[Any] | None = None) -> Prologue:
        """The embedding and each block's other arguments (masks, cache), by a forward that skips its blocks.

        Nothing is evaluated. `cache` may hold any objects with the methods of `cache.KeyValueCache`.
        """
        self.require("decomposed")
        first: list[mx.array] = []
        calls: list[OtherArguments] = []

        def skip(_: Callable[..., Any], *args: Any, **kwargs: Any) -> mx.array:
            h, others = self.stream(args, kwargs)
            if not first:
                h = self.entering(h)
            first.append(h[...] if not first else h)
            calls.append(others)
            return h

        with self.lock.part_of_run(), tapped([(layer.block, skip) for layer in self.layers]):
            self.forward(tokens, cache)
        return Prologue(first[0], tuple(calls))

    def embed(self, tokens: mx.array) -> mx.array:
        """What enters the first block [batch, pos, d_model], with positions and scale."""
        return self.prologue(tokens).h

    def block(self, layer: int, h: mx.array, prologue: Prologue) -> mx.array:
        """One block's output on `h`, called as the model calls it."""
        out: mx.array = prologue.calls[layer].call(self.layers[layer].block, h[...])
        return out

    def stream(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[mx.array, OtherArguments]:
        """A block's call as the residual stream and the other arguments."""
        at = self.family.stream_argument
        if len(args) > at:
            return args[at], OtherArguments(args[at + 1 :], kwargs, args[:at])
        name = list(kwargs)[at - len(args)]
        named = {key: value for key, value in kwargs.items() if key != name}
        return kwargs[name], OtherArguments((), named, args)

    def final(self, h: mx.array) -> mx.array:
        """Logits from the last block's output [..., d_model]: final norm, unembedding, scale, softcap."""
        self.require("unembedding")
        return self.softcapped(self._unembed(h if self.norm_module is None else self.norm_module(h)))

    def _unembed(self, x: mx.array) -> mx.array:
        module = _there(self.unembedding_module)
        logits: mx.array = module.as_linear(x) if self.tied else module(x)
        return logits if self.logit_scale == 1.0 else logits * self.logit_scale

    def softcapped(self, logits: mx.array) -> mx.array:
        """c · tanh(logits / c) where the family caps its logits at c."""
        return logits if self.softcap is None else mx.tanh(logits / self.softcap) * self.softcap

    def forward(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        """The model's own logits, [batch, pos, d_vocab].

        Raises:
            TokenError: more tokens than the model has learned positions.
        """
        self._refuse_missing_positions(tokens, cache)
        with self.lock.part_of_run():
            if cache is None and not self.needs_cache_argument:
                out: mx.array = self.model(tokens)
                return out
            cached: mx.array = self.model(tokens, cache=cache)
            return cached

    def _refuse_missing_positions(self, tokens: mx.array, cache: list[Any] | None) -> None:
        if self.max_positions is None:
            return
        # An embedding that is indexed behind its last row reads whatever memory comes after it.
        stop = tokens.shape[-1] + (cache[0].offset if cache and cache[0] is not None else 0)
        if stop > self.max_positions:
            raise TokenError(
                f"{stop} tokens are too many: this model has {self.max_positions} learned positions. "
                "Use a shorter prompt, or ask for fewer new tokens."
            )

    @cached_property
    def needs_cache_argument(self) -> bool:
        """Some models have no default for their `cache`."""
        parameter = inspect.signature(type(self.model).__call__).parameters.get("cache")
        return parameter is not None and parameter.default is parameter.empty

    # the unembedding

    def unembed_rows(self, token_ids: mx.array) -> mx.array:
        """Rows of W_U in float32 [n, d_model], dequantised; only these rows are read."""
        self.require("unembedding")
        return linear.rows(_there(self.unembedding_module), token_ids)

    def unembed_bias(self, token_ids: mx.array) -> mx.array | None:
        """The unembedding's bias for these tokens, float32 [n], or None."""
        self.require("unembedding")
        bias = None if self.tied else linear.bias(_there(self.unembedding_module))
        return None if bias is None else bias[token_ids]

    @cached_property
    def norm(self) -> Norm:
        """The final norm as a formula."""
        self.require("final_norm_formula")
        return self.read_final_norm() or IDENTITY

    def read_final_norm(self) -> Norm | None:
        """The formula of the final norm, or None if it is none of the known ones."""
        return IDENTITY if self.norm_module is None else read_norm(self.norm_module, self.d_model)

    def norm_scale(self, resid: mx.array) -> mx.array:
        """The final norm's factor [..., 1] on this residual stream; 1 where a model has no final norm."""
        return self.norm.scale(resid)

    def logit_directions(self, token_ids: mx.array) -> tuple[mx.array, mx.array]:
        """Directions [n, d_model] and constants [n], float32, that make logits linear in the residual stream.

        With s = norm_scale(resid), s · ⟨resid, direction⟩ + constant is the token's logit before any softcap,
        and s · ⟨component, direction⟩ what a component of resid contributes. Norm weight, centring and logit
        scale are folded into the directions, biases into the constants.
        """
        rows = self.unembed_rows(token_ids)
        constants = mx.zeros(rows.shape[0]) if self.norm.bias is None else rows @ self.norm.bias
        bias = self.unembed_bias(token_ids)
        constants = constants if bias is None else constants + bias
        return self.norm.fold(rows) * self.logit_scale, constants * self.logit_scale


def _which_have_it(name: str, layers: tuple[int, ...]) -> str:
    labels = ", ".join(f"L{layer}" for layer in layers)
    return f"Layers that have it: {labels}. Name one, as in 'L{layers[0]}.{name}'."


def _children(node: Any) -> dict[str, Any]:
    entries = node.items() if isinstance(node, dict) else enumerate(node)  # a module is a dict of its parts
    return {str(key): child for key, child in entries if isinstance(child, dict | list | tuple)}


def _there(part: T | None) -> T:
    assert part is not None, "a capability was not required before its part was used"
    return part
