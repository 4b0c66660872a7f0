"""Which prompt pairs are independent of each other: the unit that every test counts.

Two pairs that share a prompt share its run, so their effects are one piece of evidence and not two. Plain
values only: a pair is an object with `clean`, `corrupted` and `cluster`, or the dict of a JSON line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Prompt = str | Sequence[int]


class Pair(Protocol):
    """What is read of a pair; `cluster` None stands for the default."""

    @property
    def clean(self) -> Prompt: ...
    @property
    def corrupted(self) -> Prompt: ...
    @property
    def cluster(self) -> str | None: ...


@dataclass(frozen=True)
class Clusters:
    """Independent clusters of pairs. `len()` is how many there are.

    Attributes:
        of_pair: the cluster of each pair, in the order of the pairs.
    """

    of_pair: tuple[str, ...]

    @property
    def members(self) -> dict[str, list[int]]:
        """The indices of the pairs of each cluster, in the order in which clusters appear."""
        found: dict[str, list[int]] = {}
        for i, name in enumerate(self.of_pair):
            found.setdefault(name, []).append(i)
        return found

    def __len__(self) -> int:
        return len(set(self.of_pair))

    def summary(self) -> str:
        """`46 pairs in 23 independent clusters`."""
        pairs, n = len(self.of_pair), len(self)
        return f"{pairs} pair{'s' * (pairs != 1)} in {n} independent cluster{'s' * (n != 1)}"


def clusters(pairs: Sequence[Pair | Mapping[str, object]]) -> Clusters:
    """The independent clusters of these pairs.

    A pair's own `cluster` decides, where it has one. The others are connected where they share a prompt, in
    either role: a couple in both directions is one cluster, and so is a chain of pairs each of which shares a
    prompt with the next. Such a cluster is named after the first of its prompts in alphabetical order, so its
    name depends neither on the order of the pairs nor on the process.

    Raises:
        TypeError: a dict without clean or corrupted prompt.
    """
    parent: dict[object, object] = {}

    def root(node: object) -> object:
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    plain = [_read(pair) for pair in pairs]
    for clean, corrupted, own in plain:
        if own is None:
            parent[root(clean)] = root(corrupted)
    names: dict[object, str] = {}
    for clean, corrupted, own in plain:
        if own is None:
            both = min(_text(clean), _text(corrupted))
            names[root(clean)] = min(both, names.get(root(clean), both))
    return Clusters(tuple(names[root(clean)] if own is None else own for clean, _, own in plain))


def _read(pair: Pair | Mapping[str, object]) -> tuple[object, object, str | None]:
    """Clean and corrupted prompt as hashable values, and the pair's own cluster."""
    if isinstance(pair, Mapping):
        missing = [name for name in ("clean", "corrupted") if name not in pair]
        if missing:
            raise TypeError(
                f"a pair without {' and '.join(missing)}; it has {', '.join(map(str, pair))}. "
                "Give both prompts."
            )
        clean, corrupted, own = pair["clean"], pair["corrupted"], pair.get("cluster")
        return _hashable(clean), _hashable(corrupted), None if own is None else str(own)
    return _hashable(pair.clean), _hashable(pair.corrupted), pair.cluster


def _hashable(prompt: object) -> object:
    return tuple(prompt) if isinstance(prompt, Sequence) and not isinstance(prompt, str) else prompt


def _text(prompt: object) -> str:
    return prompt if isinstance(prompt, str) else repr(prompt)
