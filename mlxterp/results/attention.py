"""`AttentionPatternResult`: how much each token attends to each other one. `mlxterp.causal` measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Floats, Heatmap, Note, Show, Table, heatmap, number
from mlxterp.results.values import ARRAY, TEXTS, converted

_MOST_MAPS = 9
_READING = "Each row is a token that attends; it adds up to 1 over the tokens it attends to."


def _pairs(value: Sequence[Sequence[Any]]) -> tuple[tuple[int, int], ...]:
    return tuple((int(layer), int(head)) for layer, head in value)


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionPatternResult(AnalysisResult):
    """Attention patterns of some heads on one prompt.

    Attributes:
        heads: (layer, head) of each pattern.
        patterns: [n_patterns, n_tokens, n_tokens], `[i, dest, src]`: how much the token at `dest` attends to
            that at `src`; between 0 and 1. A row adds up to 1, or to less where a model has attention sinks.
        tokens: the prompt's tokens.
    """

    kind: ClassVar[str] = "attention_pattern"
    heads: tuple[tuple[int, int], ...] = field(metadata=converted(_pairs))
    patterns: Floats = field(metadata=ARRAY)
    tokens: tuple[str, ...] = field(metadata=TEXTS)

    def _check(self) -> None:
        wanted = (len(self.heads), len(self.tokens), len(self.tokens))
        if self.patterns.shape != wanted:
            raise ResultError(
                f"patterns of shape {self.patterns.shape} for {len(self.heads)} heads and {len(self.tokens)} "
                f"tokens; they are {wanted}, [n_patterns, dest, src]."
            )
        if len(set(self.heads)) < len(self.heads):
            raise ResultError("attention patterns that name one head twice. Name each once.")

    @property
    def title(self) -> str:
        heads = [_name(*head) for head in self.heads]
        which = ", ".join(heads) if len(heads) <= 4 else f"{len(heads)} heads"
        return f"Attention of {which} on {len(self.tokens)} tokens"

    def pattern(self, layer: int, head: int) -> Floats:
        """[dest, src] of one head; one that was not measured raises ResultError, listing those that were."""
        if (layer, head) not in self.heads:
            there = ", ".join(_name(*each) for each in self.heads)
            raise ResultError(f"no pattern of {_name(layer, head)}. There are: {there}.")
        found: Floats = self.patterns[self.heads.index((layer, head))]
        return found

    def components(self) -> tuple[Component, ...]:
        """Every head, with the mean attention that a token gives to tokens other than itself and the first.

        Most heads rest on the first token; what is left over says that a head does something on this prompt.
        """
        return tuple(
            Component(_name(layer, head), self._elsewhere(i), name="pattern", layer=layer, head=head)
            for i, (layer, head) in enumerate(self.heads)
        )

    def _elsewhere(self, i: int) -> float:
        """Over the tokens that have one to attend to besides the first and themselves."""
        rows = self.patterns[i][2:]
        if not len(rows):
            return 0.0
        own = np.array([row[dest] for dest, row in enumerate(rows, start=2)])
        with np.errstate(invalid="ignore"):  # ∞ − ∞ is n/a, and no warning
            return float(np.mean(rows.sum(axis=-1) - rows[:, 0] - own))

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        top = ", ".join(f"{c.label} {number(c.effect)}" for c in self.top_components(5))
        lines = [
            f"{self.title}{f' ({on})' if on else ''}.",
            f"Attention to tokens other than the first and the token itself, most: {top or 'none'}.",
        ]
        strongest = self._strongest()
        if strongest:
            told = ", ".join(
                f"{name} from {self._token(dest)} to {self._token(src)} {number(value)}"
                for name, dest, src, value in strongest[:3]
            )
            lines.append(f"Strongest of these: {told}.")
        return "\n".join(lines)

    def _strongest(self) -> list[tuple[str, int, int, float]]:
        """Per head its largest weight off the first token and the diagonal, largest first."""
        found = []
        for (layer, head), pattern in zip(self.heads, self.patterns, strict=True):
            others = np.array(pattern)
            others[:, :1] = 0.0
            np.fill_diagonal(others, 0.0)
            if others.size and others.max() > 0:
                dest, src = np.unravel_index(int(others.argmax()), others.shape)
                found.append((_name(layer, head), int(dest), int(src), float(others[dest, src])))
        return sorted(found, key=lambda each: -each[3])

    def shows(self) -> tuple[Show, ...]:
        """The heads that attend most elsewhere, at most 9 of them, in the model's order; `panels` has all."""
        top = {(c.layer, c.head) for c in self.top_components(_MOST_MAPS)}
        shown = [i for i, head in enumerate(self.heads) if head in top or len(self.heads) <= _MOST_MAPS]
        table = Table(
            title="Strongest attention elsewhere",
            columns=("head", "from", "to", "attention"),
            rows=tuple(
                (name, self._token(dest), self._token(src), value)
                for name, dest, src, value in self._strongest()[:20]
            ),
            caption="Per head, leaving out the first token and the token itself.",
        )
        drawn: list[Show] = [*(self._map(i) for i in shown), table]
        if len(shown) < len(self.heads):
            drawn.append(
                Note(
                    f"Drawn: the {len(shown)} of {len(self.heads)} heads that attend most to tokens other "
                    "than the first and themselves. An interactive page has all."
                )
            )
        return tuple(drawn)

    def panels(self) -> tuple[Heatmap, ...]:
        """The pattern of every head."""
        return tuple(self._map(i) for i in range(len(self.heads)))

    def _map(self, i: int) -> Heatmap:
        name = _name(*self.heads[i])
        tokens = [self._token(pos) for pos in range(len(self.tokens))]
        drawn = heatmap(
            np.array(self.patterns[i]),
            title=f"Attention of {name}",
            rows=("destination", tokens),
            columns=("source", tokens),
            unit="attention",
            reading=_READING,
            diverging=False,
            within=name,
        )
        return replace(drawn, high=max(1.0, drawn.high))  # one scale for all heads

    def _token(self, pos: int) -> str:
        return f"{pos} {self.tokens[pos]!r}"


def _name(layer: int, head: int) -> str:
    return f"L{layer}.H{head}"
