"""What the model does, before anything is patched: its answers to prompts, and a continuation token by token.
`mlxterp.causal` and `InterpretableModel.generate` measure it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Cell, Component, Floats, Show, Table, bars, cautions
from mlxterp.text import number


@dataclass(frozen=True, kw_only=True)
class MetricsRow:
    """How the model answers one prompt.

    Attributes:
        prompt, answer: texts; `foil` the wrong answer it is compared with, if any.
        logit_diff: answer minus foil; None without a foil.
        prob: of the answer.
        rank: of the answer among all tokens; 1 = the model's first choice.
        top_token: what the model says first, if recorded.
        run: "clean" or "corrupted".
    """

    prompt: str
    answer: str
    prob: float
    rank: int
    foil: str | None = None
    logit_diff: float | None = None
    top_token: str | None = None
    run: str = "clean"


@dataclass(frozen=True, eq=False, kw_only=True)
class MetricsResult(AnalysisResult):
    """The behaviour itself, before anything is patched: one row per prompt, and named totals.

    Attributes:
        rows: one per prompt (and run).
        totals: named numbers over all prompts, beyond the means that `summary` gives.
    """

    kind: ClassVar[str] = "metrics"
    rows: tuple[MetricsRow, ...]
    totals: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return "Behaviour on the prompts"

    def mean(self, name: str, *, run: str = "clean") -> float:
        """The mean of "logit_diff", "prob" or "rank" over the rows of a run; NaN when no row has it."""
        if name not in ("logit_diff", "prob", "rank"):
            raise ResultError(f"no metric {name!r}. There are: logit_diff, prob, rank.")
        values = [getattr(row, name) for row in self.rows if row.run == run]
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else math.nan

    def summary(self) -> str:
        lines = [f"{self._headline()}."]
        for run in dict.fromkeys(row.run for row in self.rows):
            rows = [row for row in self.rows if row.run == run]
            first = sum(row.rank == 1 for row in rows)
            better = [row.logit_diff > 0 for row in rows if row.logit_diff is not None]
            over = f"; the answer beats the foil on {sum(better)} of {len(better)}" if better else ""
            diff = self.mean("logit_diff", run=run)
            mean = f", mean logit difference {number(diff)}" if math.isfinite(diff) else ""
            lines.append(
                f"{run}: the answer ranks first on {first} of {len(rows)} prompts{over}; "
                f"mean probability {number(self.mean('prob', run=run))}{mean}."
            )
        if self.totals:
            lines.append(", ".join(f"{name} {number(value)}" for name, value in self.totals.items()) + ".")
        return self._with_limits(*lines)

    def shows(self) -> tuple[Show, ...]:
        several = len({row.run for row in self.rows}) > 1
        columns: tuple[str, ...] = (
            "prompt",
            "answer",
            "foil",
            "logit difference",
            "probability",
            "rank",
            "model says",
        )
        rows: list[tuple[Cell, ...]] = [
            (row.prompt, row.answer, row.foil, row.logit_diff, row.prob, row.rank, row.top_token)
            for row in self.rows
        ]
        if several:
            columns = ("run", *columns)
            rows = [(row.run, *cells) for row, cells in zip(self.rows, rows, strict=True)]
        clean = [row for row in self.rows if row.run == "clean"]
        wrong = [repr(row.prompt) for row in clean if row.logit_diff is not None and row.logit_diff <= 0]
        named = ", ".join(wrong[:3])
        limit = f"The foil is not below the answer on {len(wrong)} of {len(clean)} prompts: {named}."
        table = Table(title="How the model answers", columns=columns, rows=tuple(rows))
        return table, *cautions((limit,) if wrong else ())


_STOPPED = {"end": "at an end-of-sequence token", "length": "at the length that was asked for"}


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
    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    token_texts: tuple[str, ...]
    logprobs: Floats
    stopped: str

    def _check(self) -> None:
        n = len(self.tokens)
        if len(self.token_texts) != n or self.logprobs.shape != (n,):
            raise ResultError(
                f"{n} tokens with {len(self.token_texts)} texts and log-probabilities of shape "
                f"{self.logprobs.shape}. Give one of each per token."
            )
        self._require_one_of("stopped", _STOPPED)

    @property
    def title(self) -> str:
        return f"Continuation of {len(self.tokens)} tokens"

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability of the new tokens; NaN for none."""
        return math.exp(-float(self.logprobs.mean())) if len(self.tokens) else math.nan

    @property
    def total_logprob(self) -> float:
        """The log-probability of the whole continuation, in nats."""
        return float(self.logprobs.sum())

    def summary(self) -> str:
        lines = [
            f"{self._headline()}, ended {_STOPPED[self.stopped]}.",
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
        logprobs, probs = self.logprobs.tolist(), np.exp(self.logprobs).tolist()
        table = Table(
            title="New tokens",
            columns=("place", "token", "id", "log-probability", "probability"),
            rows=tuple(
                zip(range(len(self.tokens)), self.token_texts, self.tokens, logprobs, probs, strict=True)
            ),
        )
        if not self.tokens:
            return (table,)
        drawn = bars(
            (
                Component(f"{i} {text!r}", p)
                for i, (text, p) in enumerate(zip(self.token_texts, probs, strict=True))
            ),
            title="Probability of each new token",
            unit="probability",
            reading="Under the model, given all tokens before it; before temperature and truncation.",
            accented=0,
        )
        return replace(drawn, ordered=True, axis="token"), table
