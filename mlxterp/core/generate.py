"""Continuations of a prompt: greedy or sampled, with a KV cache, with interventions at absolute positions.

Sampling: temperature, then the `top_k` likeliest, then the nucleus (Holtzman et al. 2020, arXiv:1904.09751).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import mlx.core as mx
import numpy as np

from mlxterp.core import engine
from mlxterp.core.architectures import Architecture
from mlxterp.core.cache import make_cache
from mlxterp.core.interventions import Intervention
from mlxterp.errors import HookError, TokenError


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
    edits = [replace(i, where=i.where.from_end_of(len(prompt))) for i in interventions]
    _refuse_unreachable(edits, len(prompt) + max_new_tokens - 1)
    cache = make_cache(architecture) if architecture.takes_cache else None
    tokens, logprobs, fired = list(prompt), [], set[Intervention]()
    keys = mx.random.split(mx.random.key(seed), max(max_new_tokens, 1))
    stopped: Literal["end", "length"] = "length"
    for step in range(max_new_tokens):
        start = 0 if cache is None or step == 0 else len(tokens) - 1
        logits, _, changed = engine.run(
            architecture,
            mx.array([tokens[start:]]),
            interventions=edits,
            cache=cache,
            start=start,
            grows=True,
        )
        fired |= changed
        last = logits[0, -1].astype(mx.float32)
        token = int(np.array(sampling.choose(last, keys[step])))
        tokens.append(token)
        logprobs.append(float(np.array(last[token] - mx.logsumexp(last))))
        if token in end:
            stopped = "end"
            break
    engine.raise_unfired(edits, fired)
    new = tokens[len(prompt) :]
    text = decode(new[:-1] if stopped == "end" else new)
    return Generation(text, tuple(new), tuple(logprobs), tuple(prompt), stopped)


def _refuse_unreachable(edits: Sequence[Intervention], length: int) -> None:
    for edit in edits:
        positions = edit.where.positions
        beyond = [p for p in positions if not 0 <= p < length] if isinstance(positions, tuple) else []
        if beyond:
            raise HookError(
                f"{edit}: position {beyond[0]} is never computed. The prompt and the new tokens that are fed "
                f"back are positions 0 to {length - 1}; ask for more new tokens or an earlier position."
            )
