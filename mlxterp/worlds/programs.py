"""Programs, what they compute, and pairs of prompts on which each edge of their circuits matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mlxterp.causal.prompts.pair import PromptPair
from mlxterp.metrics import Floats, Tokens
from mlxterp.worlds.rasp import Compiled, Program

LENGTH = 7  # with the beginning of sequence
TOKENS = 5


@dataclass(frozen=True)
class Case:
    """A compiled program and what it should answer at the last position for tokens without the beginning."""

    compiled: Compiled
    answer: Callable[[Tokens], float]
    draw: Callable[[np.random.Generator], Tokens]
    number: bool = False  # the answer is the first logit, and not the place of the highest

    def prompts(self, n: int, seed: int = 0) -> list[Tokens]:
        rng = np.random.default_rng(seed)
        return [self.draw(rng) for _ in range(n)]

    def pairs(self, n: int = 8, seed: int = 0) -> list[PromptPair]:
        """Random prompts against random prompts."""
        drawn = self.prompts(2 * n, seed)
        both = [(TOKENS, *d.tolist()) for d in drawn]
        return [PromptPair(c, x) for c, x in zip(both[:n], both[n:], strict=True) if c != x]


def program(n_layers: int = 2) -> Program:
    """An empty program of this many layers."""
    return Program(TOKENS, LENGTH, n_layers)


def any_tokens(rng: np.random.Generator) -> Tokens:
    """A prompt without the beginning."""
    return rng.integers(TOKENS, size=LENGTH - 1)


def back(distance: int) -> Floats:
    """Selects the position so many places before."""
    return np.eye(LENGTH, k=-distance)


def everywhere() -> Floats:
    """Selects every position."""
    return np.zeros((1, LENGTH))


def shift() -> Case:
    """The token two places before."""
    p = program()
    out = p.head("L0.H1", p.pos, p.pos, back(2), p.tok)
    return Case(p.compile(out), lambda t: t[-3], any_tokens)


def shift_twice() -> Case:
    """The token three places before, by way of the token before."""
    p = program()
    before = p.head("L0.H0", p.pos, p.pos, back(1), p.tok)
    out = p.head("L1.H2", p.pos, p.pos, back(2), before)
    return Case(p.compile(out), lambda t: t[-4], any_tokens)


def frac_prevs() -> Case:
    """The fraction of positions, the beginning included, whose token is 2."""
    p = program()
    is_two = p.map("L0.mlp", p.tok, np.eye(TOKENS)[:, 2:3])
    out = p.head("L1.H1", p.one, p.pos, everywhere(), is_two, beginning=0.0)
    return Case(p.compile(out), lambda t: np.mean(np.append(t, -1) == 2), any_tokens, number=True)


def histogram() -> Case:
    """How often the last token has occurred, itself included, minus one."""
    p = program(1)
    p.head("L0.H2", p.tok, p.tok, np.eye(TOKENS), p.bos, beginning=1.0)  # 1 / (count + 1)
    counts = np.arange(1, LENGTH)
    values = 1 / (counts[::-1] + 1)
    bounds = (values[1:] + values[:-1]) / 2
    out = p.table("L0.mlp", {"L0.H2": 1.0}, bounds.tolist())
    return Case(p.compile(out), lambda t: LENGTH - 1 - np.sum(t == t[-1]), any_tokens)


def sort() -> Case:
    """The largest token so far: the last one of the sorted sequence."""
    p = program()
    larger = np.linspace(0.6, 3.0, TOKENS)[None]
    out = p.head("L1.H0", p.one, p.tok, larger, p.tok)
    return Case(p.compile(out), lambda t: t.max(), any_tokens)


def pair_balance() -> Case:
    """0: more of token 1 than of token 0; 1: as many; 2: more of token 0."""
    p = program(1)
    for node, token in (("L0.H0", 0), ("L0.H1", 1)):
        p.head(node, p.one, p.pos, everywhere(), p.tok, np.eye(TOKENS)[:, token : token + 1], beginning=0.0)
    half = 0.5 / LENGTH
    out = p.table("L0.mlp", {"L0.H0": 1.0, "L0.H1": -1.0}, [-half, half])
    return Case(p.compile(out), lambda t: 1 + np.sign(np.sum(t == 0) - np.sum(t == 1)), any_tokens)


def reverse() -> Case:
    """The first token of the reversed sequence: the last one before the padding (token 4) at its end."""
    p = program()
    padding = np.eye(TOKENS)[:, 4:5]
    p.head("L0.H0", p.one, p.pos, everywhere(), p.tok, padding, beginning=0.0)
    bounds = (np.arange(LENGTH - 2) + 0.5) / LENGTH
    n_padded = p.table("L0.mlp", {"L0.H0": 1.0}, bounds.tolist())
    at = np.zeros((LENGTH - 1, LENGTH))
    at[np.arange(LENGTH - 1), LENGTH - 1 - np.arange(LENGTH - 1)] = 1
    out = p.head("L1.H1", n_padded, p.pos, at, p.tok, beginning=0.0)  # something always matches

    def draw(rng: np.random.Generator) -> Tokens:
        tokens = rng.integers(4, size=LENGTH - 1)
        tokens[rng.integers(2, LENGTH) :] = 4
        return tokens

    return Case(p.compile(out), lambda t: t[t < 4][-1], draw)


def backup() -> Case:
    """The token two places before, carried by two heads of which either is enough."""
    p = program(1)
    heads = [p.head(node, p.pos, p.pos, back(2), p.tok) for node in ("L0.H0", "L0.H2")]
    return Case(p.compile(p.either("L0.mlp", heads)), lambda t: t[-3], any_tokens)


PROGRAMS = {
    each.__name__: each for each in (shift, shift_twice, frac_prevs, histogram, sort, pair_balance, reverse)
}
