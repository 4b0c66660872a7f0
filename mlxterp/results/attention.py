"""Attention: how much each token attends to each other one, and scores of every head's pattern.
`mlxterp.causal` measures them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.views import Component, Floats, Heatmap, Note, Show, Table, heatmap, listed, numbered
from mlxterp.text import number

_MOST_MAPS = 9
_READING = "Each row is a token that attends; it adds up to 1 over the tokens it attends to."


class _Weight(NamedTuple):
    """The largest attention weight of a head off the first token and the diagonal."""

    head: str
    dest: str
    src: str
    value: float


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
    heads: tuple[tuple[int, int], ...]
    patterns: Floats
    tokens: tuple[str, ...]

    def _check(self) -> None:
        expected = (len(self.heads), len(self.tokens), len(self.tokens))
        if self.patterns.shape != expected:
            raise ResultError(
                f"patterns of shape {self.patterns.shape} for {len(self.heads)} heads and {len(self.tokens)} "
                f"tokens; they are {expected}, [n_patterns, dest, src]."
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
            Component(_name(layer, head), _elsewhere(pattern), name="pattern", layer=layer, head=head)
            for (layer, head), pattern in zip(self.heads, self.patterns, strict=True)
        )

    def summary(self) -> str:
        lines = [
            f"{self._headline()}.",
            "Attention to tokens other than the first and the token itself, most: "
            f"{listed(self.top_components(5)) or 'none'}.",
        ]
        strongest = self._strongest()[:3]
        if strongest:
            named = [f"{w.head} from {w.dest} to {w.src} {number(w.value)}" for w in strongest]
            lines.append(f"Strongest of these: {', '.join(named)}.")
        return "\n".join(lines)

    def _strongest(self) -> list[_Weight]:
        """Per head its largest weight elsewhere, largest first."""
        found, tokens = [], self._token_labels()
        for head, pattern in zip(self.heads, self.patterns, strict=True):
            others = np.array(pattern)
            others[:, :1] = 0.0
            np.fill_diagonal(others, 0.0)
            if others.size and others.max() > 0:
                dest, src = np.unravel_index(int(others.argmax()), others.shape)
                found.append(_Weight(_name(*head), tokens[dest], tokens[src], float(others[dest, src])))
        return sorted(found, key=lambda weight: -weight.value)

    def shows(self) -> tuple[Show, ...]:
        """The heads that attend most elsewhere, at most 9 of them, in the model's order; `panels` has all."""
        top = {(c.layer, c.head) for c in self.top_components(_MOST_MAPS)}
        shown = [i for i, head in enumerate(self.heads) if head in top or len(self.heads) <= _MOST_MAPS]
        table = Table(
            title="Strongest attention elsewhere",
            columns=("head", "from", "to", "attention"),
            rows=tuple((w.head, w.dest, w.src, w.value) for w in self._strongest()[:20]),
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
        name, tokens = _name(*self.heads[i]), self._token_labels()
        drawn = heatmap(
            self.patterns[i],
            title=f"Attention of {name}",
            rows=("destination", tokens),
            columns=("source", tokens),
            unit="attention",
            reading=_READING,
            diverging=False,
            within=name,
        )
        return replace(drawn, high=max(1.0, drawn.high))  # one scale for all heads

    def _token_labels(self) -> list[str]:
        return [f"{pos} {token!r}" for pos, token in enumerate(self.tokens)]


def _elsewhere(pattern: Floats) -> float:
    """Mean attention to tokens other than the first and itself, over the tokens that have one."""
    rows = pattern[2:]
    if not len(rows):
        return 0.0
    with np.errstate(invalid="ignore"):  # ∞ − ∞ is n/a, and no warning
        return float(np.mean(rows.sum(axis=-1) - rows[:, 0] - np.diagonal(pattern)[2:]))


def _name(layer: int, head: int) -> str:
    return f"L{layer}.H{head}"


_SCORES = {
    "previous_token": "mean attention from each position to the one before it",
    "duplicate_token": "mean attention to the earlier occurrence of the same token",
    "induction": "mean attention to the token after the earlier occurrence of the same token",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadScoresResult(AnalysisResult):
    """Scores of every head's attention pattern.

    Attributes:
        scores: per score name ("previous_token", "duplicate_token", "induction" …) an array
            [n_layers, n_heads] of mean attention weights, between 0 and 1.
        expected: per score name, what a head that attends evenly would have.
    """

    kind: ClassVar[str] = "head_scores"
    scores: Mapping[str, Floats]
    expected: Mapping[str, float] = field(default_factory=dict)

    def _check(self) -> None:
        shapes = {values.shape for values in self.scores.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ResultError(
                f"scores of shapes {sorted(shapes)}. Give one [n_layers, n_heads] array per score name."
            )

    @property
    def title(self) -> str:
        return f"Attention scores of heads: {', '.join(map(_spaced, self.scores))}"

    def score(self, name: str) -> Floats:
        """[n_layers, n_heads] of one score; an unknown name raises ResultError, listing the names."""
        if name not in self.scores:
            raise ResultError(f"no score {name!r}. There are: {', '.join(self.scores)}.")
        return self.scores[name]

    def top_heads(self, name: str, k: int = 5) -> list[Component]:
        """The k heads with the highest score of this name."""
        heads = [c for c in self._heads(name, suffix="") if math.isfinite(c.effect)]
        return sorted(heads, key=lambda c: -c.effect)[:k]

    def components(self) -> tuple[Component, ...]:
        """Every head once per score; with several scores the label says which: `L1.H3 induction`."""
        several = len(self.scores) > 1
        return tuple(
            c for name in self.scores for c in self._heads(name, f" {_spaced(name)}" if several else "")
        )

    def _heads(self, name: str, suffix: str) -> list[Component]:
        values = self.score(name)
        return [
            Component(f"{_name(layer, head)}{suffix}", float(value), name="pattern", layer=layer, head=head)
            for (layer, head), value in np.ndenumerate(values)
        ]

    def summary(self) -> str:
        lines = [f"{self._headline()}."]
        for name in self.scores:
            even = f"; an even head has {number(self.expected[name])}" if name in self.expected else ""
            lines.append(
                f"{_spaced(name)} ({_SCORES.get(name, 'as named')}), of {self.scores[name].size} heads: "
                f"{listed(self.top_heads(name, 3))}{even}."
            )
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        drawn: list[Show] = []
        for name, values in self.scores.items():
            even = f" An even head has {number(self.expected[name])}." if name in self.expected else ""
            n_layers, n_heads = values.shape
            drawn.append(
                heatmap(
                    values.T,
                    title=f"{_spaced(name).capitalize()} score of each head",
                    rows=("head", numbered("H", n_heads)),
                    columns=("layer", numbered("L", n_layers)),
                    unit="attention",
                    reading=f"{_SCORES.get(name, name).capitalize()}, 0 to 1.{even}",
                    diverging=False,
                )
            )
        rows = tuple(
            (_spaced(name), c.label, c.effect) for name in self.scores for c in self.top_heads(name, 3)
        )
        drawn.append(Table(title="Highest scores", columns=("score", "head", "mean attention"), rows=rows))
        return tuple(drawn)


def _spaced(name: str) -> str:
    return name.replace("_", " ")
