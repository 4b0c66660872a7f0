"""Which prompt pairs are independent of each other: the unit that every test counts.

Two pairs that share a prompt share its run, so their effects are one piece of evidence and not two. Plain
values only: a pair is an object with `clean`, `corrupted` and `cluster`, or the dict of a JSON line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats, Ints

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


def mean_by_cluster(values: ArrayLike, clusters: ArrayLike) -> Floats:
    """The mean over the members of each cluster: `[n, …]` to `[clusters, …]`, in ascending order of the
    labels.

    NaN in a member makes its cluster NaN, which the estimators refuse.

    Raises:
        StatisticsError: not one cluster per value, or none at all.
    """
    rows, of = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if of.shape != rows.shape[:1] or not len(rows):
        raise StatisticsError(
            f"Values of shape {rows.shape} and clusters of shape {of.shape}. Give one cluster per value."
        )
    names, index, counts = np.unique(of, return_inverse=True, return_counts=True)
    if len(names) == len(rows) and np.array_equal(index, np.arange(len(rows))):
        return rows
    sums = np.zeros((len(names), *rows.shape[1:]))
    np.add.at(sums, index, rows)
    return sums / counts.reshape(-1, *[1] * (rows.ndim - 1))


@dataclass(frozen=True)
class Split:
    """Clusters to explore, clusters to confirm on, and clusters left over; `reason` where nothing can be
    confirmed."""

    explore: tuple[str, ...]
    confirm: tuple[str, ...]
    unused: tuple[str, ...] = ()
    reason: str | None = None


def hashed_order(clusters: Sequence[str], salt: str) -> tuple[str, ...]:
    """The distinct clusters in an order that only the salt decides: by sha256(salt + cluster)."""
    return tuple(sorted(set(clusters), key=lambda each: hashlib.sha256((salt + each).encode()).digest()))


def halves(clusters: ArrayLike, seed: int) -> tuple[Ints, Ints]:
    """Indices of the pairs to search on and of those to measure the winners on: half of the clusters each.

    With an odd number the larger half is the second. No cluster is in both.

    Raises:
        StatisticsError: fewer than two clusters.
    """
    of = np.asarray(clusters)
    names = hashed_order([str(each) for each in of.tolist()], f"{seed}:")
    if len(names) < 2:
        raise StatisticsError(f"{len(names)} cluster cannot be split. Give at least two independent ones.")
    chosen = set(names[: len(names) // 2])
    searched = np.array([str(each) in chosen for each in of.tolist()])
    return np.flatnonzero(searched), np.flatnonzero(~searched)


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


def cluster_ids(pairs: Sequence[Pair | Mapping[str, object]]) -> tuple[str, ...]:
    """The cluster of each pair by a short digest of its name: what may be written where the prompts may not
    be."""
    return tuple(hashlib.sha256(name.encode()).hexdigest()[:16] for name in clusters(pairs).of_pair)


def one_direction(
    pairs: Sequence[Pair | Mapping[str, object]], of_pair: Sequence[str], salt: str
) -> tuple[int, ...]:
    """The pairs without mirror images: of a couple in both directions one direction, which only the salt and
    the cluster decide.

    Noising (B, A) is the same measurement as denoising (A, B), so both would count one piece of evidence
    twice.
    """
    plain = [_read(pair)[:2] for pair in pairs]
    there = {(of, pair) for of, pair in zip(of_pair, plain, strict=True)}
    kept = []
    for i, (of, (clean, corrupted)) in enumerate(zip(of_pair, plain, strict=True)):
        first, second = _text(clean), _text(corrupted)
        if (of, (corrupted, clean)) not in there or first == second:
            kept.append(i)
            continue
        forwards = hashlib.sha256((salt + of).encode()).digest()[0] % 2 == 0
        if (first < second) == forwards:
            kept.append(i)
    return tuple(kept)


def all_mirrored(pairs: Sequence[Pair | Mapping[str, object]]) -> bool:
    """Whether every pair comes in both directions: noising is then the same measurement as denoising."""
    plain = {_read(pair)[:2] for pair in pairs}
    return bool(plain) and all((corrupted, clean) in plain for clean, corrupted in plain)
