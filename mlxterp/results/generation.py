"""`GenerationResult`: a continuation, token by token. `InterpretableModel.generate` makes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Bars, Component, Floats, Show, Table, number
from mlxterp.results.values import ARRAY, TEXTS, converted

_STOPPED = {"end": "at an end-of-sequence token", "length": "at the length that was asked for"}


def _to_ids(value: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(token) for token in value)


IDS = converted(_to_ids)


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationResult(AnalysisResult):
    """A continuation of a prompt.

    Attributes:
        prompt, text: of the prompt, and of the new tokens only.
        prompt_tokens, tokens: token ids of both; an end-of-sequence token that ended the text is in `tokens`.
        token_texts: what a reader sees of each new token.
        logprobs: log-probability of each new token, in nats, before temperature and truncation.
        stopped: "end" or "length".
    """

    kind: ClassVar[str] = "generation"
    prompt: str
    text: str
    prompt_tokens: tuple[int, ...] = field(metadata=IDS)
    tokens: tuple[int, ...] = field(metadata=IDS)
    token_texts: tuple[str, ...] = field(metadata=TEXTS)
    logprobs: Floats = field(metadata=ARRAY)
    stopped: str

    def _check(self) -> None:
        n = len(self.tokens)
        if len(self.token_texts) != n or self.logprobs.shape != (n,):
            raise ResultError(
                f"{n} tokens with {len(self.token_texts)} texts and log-probabilities of shape "
                f"{self.logprobs.shape}. Give one of each per token."
            )
        if self.stopped not in _STOPPED:
            raise ResultError(f"stopped {self.stopped!r}. It is one of: {', '.join(_STOPPED)}.")

    @property
    def title(self) -> str:
        return f"Continuation of {len(self.tokens)} tokens"

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of the new tokens; NaN for none."""
        return math.exp(-float(self.logprobs.mean())) if len(self.tokens) else math.nan

    @property
    def total_logprob(self) -> float:
        """Of the whole continuation, in nats."""
        return float(self.logprobs.sum())

    def components(self) -> tuple[Component, ...]:
        """Empty: tokens are no components."""
        return ()

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}, ended {_STOPPED[self.stopped]}.",
            f"{self.prompt!r} is continued with {self.text!r}.",
        ]
        if self.tokens:
            least = int(np.argmin(self.logprobs))
            lines.append(
                f"Perplexity {number(self.perplexity)}; the least expected token is "
                f"{self.token_texts[least]!r}, probability {number(math.exp(float(self.logprobs[least])))}."
            )
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        probabilities = tuple(float(p) for p in np.exp(self.logprobs))
        rows = tuple(
            (i, text, token, float(logprob), p)
            for i, (text, token, logprob, p) in enumerate(
                zip(self.token_texts, self.tokens, self.logprobs, probabilities, strict=True)
            )
        )
        table = Table(
            title="New tokens", columns=("place", "token", "id", "log-probability", "probability"), rows=rows
        )
        if not rows:
            return (table,)
        bars = Bars(
            title="Probability of each new token",
            labels=tuple(f"{i} {text!r}" for i, text in enumerate(self.token_texts)),
            values=probabilities,
            unit="probability",
            axis="token",
            ordered=True,
            reading="Under the model, given all tokens before it; before temperature and truncation.",
        )
        return bars, table
