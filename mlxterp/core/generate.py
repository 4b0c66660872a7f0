"""Continuations of a prompt: greedy or sampled, with a KV cache, with interventions at absolute positions.

Sampling: temperature, then the `top_k` likeliest, then the nucleus (Holtzman et al. 2020, arXiv:1904.09751).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlxterp.core import forward
from mlxterp.core.architecture.parts import Architecture
from mlxterp.core.interventions import Intervention
from mlxterp.errors import HookError, NotFinite, TokenError

_STEP = 256


class KeyValueCache:
    """Keys and values [batch, n_kv_heads, pos, d_head] of one layer; `offset` of them are filled."""

    def __init__(self) -> None:
        self.offset = 0
        self._keys: mx.array | None = None
        self._values: mx.array | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Adds the next positions and returns all of them."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys = _written(self._keys, keys, start)
        self._values = _written(self._values, values, start)
        return self._keys[..., : self.offset, :], self._values[..., : self.offset, :]

    def make_mask(
        self, n: int, *, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """The mask of the next `n` positions in the forms that mlx-lm's models take: an array, "causal", or
        None for all."""
        if window_size is None and n == 1:
            return None
        if window_size is None and not return_array:
            return "causal"
        dest, src = mx.arange(self.offset, self.offset + n)[:, None], mx.arange(self.offset + n)[None]
        causal = dest >= src
        return causal if window_size is None else causal & (dest < src + window_size)


def _written(buffer: mx.array | None, new: mx.array, start: int) -> mx.array:
    """`buffer` with `new` from `start` on; it grows by whole steps, so that most writes are in place."""
    end = start + new.shape[2]
    room = 0 if buffer is None else buffer.shape[2]
    if end > room:
        fresh = mx.zeros((*new.shape[:2], -(-(end - room) // _STEP) * _STEP, new.shape[3]), dtype=new.dtype)
        buffer = fresh if buffer is None else mx.concatenate([buffer, fresh], axis=2)
    assert buffer is not None
    buffer[..., start:end, :] = new
    return buffer


def make_cache(architecture: Architecture) -> list[Any]:
    """One cache per layer for a model's forward.

    A rotating cache would move positions, and edits name positions, so a plain one stands in its place: the
    models mask their windows themselves, and the result is the same at the price of memory.
    """
    own = getattr(architecture.model, "make_cache", None)
    if own is None:
        return [KeyValueCache() for _ in architecture.layers]
    return [KeyValueCache() if type(c).__name__ == _ROTATING else c for c in own()]


_ROTATING = "RotatingKVCache"


@dataclass(frozen=True)
class Generation:
    """A continuation.

    Attributes:
        text: of the new tokens only.
        tokens: ids of the new tokens, the end-of-sequence token included if it ended the text.
        logprobs: log-probability of each new token under the model, before temperature and truncation.
        prompt_tokens: ids of the prompt.
        stopped: "end" at an end-of-sequence token, "length" at max_new_tokens.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    stopped: Literal["end", "length"]


@dataclass(frozen=True, eq=False)
class _Step:
    """One new token, not computed yet, and which interventions fire on the way to it."""

    token: mx.array
    logprob: mx.array
    fired: set[Intervention]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is the likeliest token."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise TokenError(f"temperature is {self.temperature}; it is 0 (greedy) or more.")
        if self.top_k is not None and self.top_k < 1:
            raise TokenError(f"top_k is {self.top_k}; it is at least 1.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise TokenError(f"top_p is {self.top_p}; it is above 0 and at most 1.")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise TokenError("top_k and top_p change nothing at temperature 0. Give a temperature above 0.")

    def choose(self, logits: mx.array, key: mx.array) -> mx.array:
        """A token from float32 logits [d_vocab]."""
        if self.temperature == 0:
            return mx.argmax(logits)
        return mx.random.categorical(self.truncated(logits / self.temperature), key=key)

    def truncated(self, logits: mx.array) -> mx.array:
        """Logits with all but the `top_k` likeliest, then all but their nucleus, at minus infinity."""
        if self.top_k is None and self.top_p is None:
            return logits
        order = mx.argsort(-logits)
        ranked = logits[order]
        keep = mx.ones(ranked.shape, dtype=mx.bool_)
        if self.top_k is not None:
            keep = mx.arange(len(ranked)) < self.top_k
            ranked = mx.where(keep, ranked, -mx.inf)
        if self.top_p is not None:
            probs = mx.softmax(ranked)
            # The smallest set that reaches top_p: a token is in as long as those before it have not reached
            # it.
            keep = keep & (mx.cumsum(probs) - probs < self.top_p)
        return mx.put_along_axis(logits, order, mx.where(keep, ranked, -mx.inf), axis=0)


def generate(
    architecture: Architecture,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    end: frozenset[int],
    interventions: Sequence[Intervention],
    decode: Callable[[Sequence[int]], str],
) -> Generation:
    """Continues `prompt`. Positions of interventions are absolute; negative ones count from the end of the
    prompt.

    With a KV cache each step computes one position, so an intervention at a prompt position acts once, when
    the prompt is read; one at all positions, or from a position on, acts on each new token too.
    """
    if max_new_tokens < 0:
        raise TokenError(f"max_new_tokens is {max_new_tokens}; it is 0 or more.")
    edits = [replace(i, where=i.where.from_end_of(len(prompt))) for i in interventions]
    _refuse_unreachable(edits, len(prompt) + max_new_tokens - 1)
    cache = make_cache(architecture) if architecture.takes_cache else None
    keys = mx.random.split(mx.random.key(seed), max(max_new_tokens, 1))

    def step(number: int, unread: mx.array, read: int) -> _Step:
        """The token after those in `unread` [1, pos], `read` others being in the cache. Does not
        wait for the result."""
        logits, _, changed = forward.run(
            architecture, unread, interventions=edits, cache=cache, start=read, grows=True
        )
        last = logits[0, -1].astype(mx.float32)
        token = sampling.choose(last, keys[number])
        found = _Step(token, last[token] - mx.logsumexp(last), changed)
        mx.async_eval(found.token, found.logprob)  # type: ignore[no-untyped-call]
        return found

    tokens, logprobs, fired = list(prompt), [], set[Intervention]()
    stopped: Literal["end", "length"] = "length"
    row = mx.array([tokens])
    current = step(0, row, 0) if max_new_tokens else None
    for number in range(1, max_new_tokens + 1):
        assert current is not None
        # The next step is begun before this one's token is known, so that neither waits for the other. If
        # this token ends the text, the next step is thrown away, and so is what fired in it.
        following = None
        if number < max_new_tokens:
            new = current.token.reshape(1, 1).astype(row.dtype)
            row = new if cache is not None else mx.concatenate([row, new], axis=1)
            following = step(number, row, 0 if cache is None else len(tokens))
        fired |= current.fired
        tokens.append(int(np.array(current.token)))
        logprobs.append(float(np.array(current.logprob)))
        if not math.isfinite(logprobs[-1]):
            raise NotFinite(
                f"{architecture.name}: the logits behind {len(tokens) - 1} tokens are NaN or infinite, so no "
                "token is the likeliest. Look at the weights and at model.trace(prompt, capture='all'); a "
                "16-bit type may overflow, which dtype=mx.float32 cures."
            )
        if tokens[-1] in end:
            stopped = "end"
            break
        current = following
    forward.raise_unfired(edits, fired)
    added = tokens[len(prompt) :]
    text = decode(added[:-1] if stopped == "end" else added)
    return Generation(text, tuple(added), tuple(logprobs), tuple(prompt), stopped)


def _refuse_unreachable(edits: Sequence[Intervention], length: int) -> None:
    for edit in edits:
        positions = edit.where.positions
        beyond = [p for p in positions if not 0 <= p < length] if isinstance(positions, tuple) else []
        if beyond:
            raise HookError(
                f"{edit}: position {beyond[0]} is never computed. The prompt and the new tokens that are fed "
                f"back are positions 0 to {length - 1}; ask for more new tokens or an earlier position."
            )
