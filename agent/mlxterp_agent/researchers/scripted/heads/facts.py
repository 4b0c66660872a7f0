"""Reading the numbers that the steps of a scripted investigation leave in the log.

Here live the readings that several decisions share: the model's shape, the positions that carry the answer,
    the layer that moves it, the heads that were found. What follows from them is in `steps.py` and
    `conclude.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxterp_agent.researchers.scripted.plan import Known

Head = tuple[int, int]

MOST_POSITIONS = 4
_HEAD = re.compile(r"L(\d+)\.H(\d+)")


@dataclass(frozen=True)
class Facts:
    """What the baseline says about model and prompts.

    Attributes:
        accuracy: share of pairs on which the model prefers answer and foil where it should.
        clean, corrupted: mean logit differences.
        varied: positions at which clean and corrupted prompts differ.
        fixed: positions that hold the same token in every clean prompt.
        tokens: those of the first clean prompt.
        capabilities: which hook points and parts the model has.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_tokens: int
    n_pairs: int
    accuracy: float
    clean: float
    corrupted: float
    varied: tuple[int, ...]
    fixed: tuple[int, ...]
    tokens: tuple[str, ...]
    capabilities: Mapping[str, bool]

    @property
    def last(self) -> int:
        """The answer position."""
        return self.n_tokens - 1

    @property
    def explore(self) -> int:
        """How many pairs, from the first, are for searching; an even number, so that no couple is split."""
        return self.n_pairs if self.n_pairs < 4 else 2 * -(-self.n_pairs // 4)

    @property
    def held_out(self) -> bool:
        """Whether pairs are left to test on that the search does not use."""
        return self.n_pairs > self.explore

    def has(self, name: str) -> bool:
        """Whether the model has this hook point or part."""
        return self.capabilities.get(name, False)

    def shows_behaviour(self, accuracy: float) -> bool:
        """Whether there is something to investigate: enough pairs work, both means have the right sign."""
        return self.accuracy >= accuracy and self.clean > 0 > self.corrupted

    def place(self, pos: int) -> str:
        """A position for people: `4 (' is')`, `9 (' of', the last)`, `2 ('iffel', changed token 2 of 3)`."""
        note = ""
        if pos == self.last:
            note = ", the last"
        elif pos in self.varied:
            note = f", changed token {self.varied.index(pos) + 1} of {len(self.varied)}"
        return f"{pos} ({self.token(pos)}{note})"

    def token(self, pos: int) -> str:
        """The first clean prompt's token at a position, in quotes."""
        return repr(self.tokens[pos]) if pos < len(self.tokens) else "?"


def facts_of(known: Known) -> Facts | None:
    """The baseline's numbers; None before it is measured."""
    numbers = known.numbers("baseline")
    if numbers is None:
        return None
    return Facts(
        n_layers=int(numbers["n_layers"]),
        n_heads=int(numbers["n_heads"]),
        d_model=int(numbers["d_model"]),
        n_tokens=int(numbers["n_tokens"]),
        n_pairs=int(numbers["n_pairs"]),
        accuracy=float(numbers["accuracy"]),
        clean=float(numbers["clean"]),
        corrupted=float(numbers["corrupted"]),
        varied=tuple(int(pos) for pos in numbers["varied"]),
        fixed=tuple(int(pos) for pos in numbers["fixed"]),
        tokens=tuple(str(token) for token in numbers["tokens"]),
        capabilities={str(name): bool(there) for name, there in numbers["capabilities"].items()},
    )


def label(head: Head) -> str:
    """`L9.H6`."""
    return f"L{head[0]}.H{head[1]}"


def heads_of(labels: Iterable[str]) -> list[Head]:
    """Heads from their labels, in the same order."""
    matches = (_HEAD.fullmatch(each) for each in labels)
    return [(int(match[1]), int(match[2])) for match in matches if match]


def head_effects(known: Known, which: str) -> dict[str, float]:
    """The recoveries of the heads that were "found", or are "opposing", strongest first."""
    effects: dict[str, float] = {}
    for step in ("heads", "more_heads"):
        effects |= (known.numbers(step) or {}).get(which, {})
    return {name: effects[name] for name in sorted(effects, key=lambda name: -abs(effects[name]))}


def found_heads(known: Known) -> list[Head]:
    """The heads that recover enough by themselves, strongest first; empty if none, or not measured."""
    return heads_of(head_effects(known, "found"))


def sites(known: Known, step: str) -> list[Mapping[str, Any]]:
    """The layers and positions whose attention or MLP output recovers enough, strongest first."""
    return sorted((known.numbers(step) or {}).get("sites", []), key=lambda site: -float(site["recovery"]))


def carriers(known: Known) -> list[int]:
    """The positions that carry the answer somewhere, strongest first."""
    carried = (known.numbers("residual") or {}).get("carried", {})
    return sorted(map(int, carried), key=lambda pos: (-round(float(carried[str(pos)]["recovery"]), 3), pos))


def critical_positions(known: Known, facts: Facts) -> list[int] | None:
    """Where to look closer: the strongest carriers and the last position; None if nothing was swept."""
    if known.numbers("residual") is None:
        return None
    strongest = carriers(known)[:MOST_POSITIONS]
    return sorted({*strongest, facts.last}) if strongest else []


def moving_layer(known: Known, facts: Facts) -> int | None:
    """The layer in which the answer reaches the last position; None if it is not known.

    The sweep is of what enters a layer: where the last position leads from layer l on, layer l − 1 brought
    it there. Where it never leads, only the last layer is left to do so.
    """
    numbers = known.numbers("residual")
    if numbers is None or not numbers["carried"]:
        return None
    arrives = numbers["arrives"]
    return facts.n_layers - 1 if arrives is None else max(0, int(arrives) - 1)
