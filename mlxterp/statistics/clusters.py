"""Which pairs of a dataset are independent of each other, and values joined so that each cluster counts once.

The unit of every interval is a cluster: pairs that share a prompt are one observation, however often they are
measured. (A couple in both directions gives the same number twice: noising (B, A) equals denoising (A, B)
within 2e-6.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats, Ints


def clusters_of_pairs(
    clean: Sequence[Hashable], corrupted: Sequence[Hashable], given: Sequence[str | None] | None = None
) -> Ints:
    """The cluster of each pair, numbered in order of appearance.

    Clusters are the connected components of pairs that share the clean prompt, the corrupted prompt, or the
    two prompts in either order.

    Args:
        clean, corrupted: what identifies each pair's prompts: text, or a tuple of token ids.
        given: clusters stated by the dataset's author; pairs with the same one are joined too, and a stated
            cluster takes the place of the prompts.

    Raises:
        StatisticsError: not as many of one as of the other.
    """
    stated: Sequence[str | None] = [None] * len(clean) if given is None else given
    if not len(clean) == len(corrupted) == len(stated):
        raise StatisticsError(
            f"{len(clean)} clean prompts, {len(corrupted)} corrupted ones and {len(stated)} clusters. "
            "Give one of each per pair."
        )
    root = list(range(len(clean)))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    first: dict[Hashable, int] = {}
    for i, (one, other, name) in enumerate(zip(clean, corrupted, stated, strict=True)):
        keys: tuple[Hashable, ...] = (("given", name),)
        if name is None:
            keys = (("clean", one), ("corrupted", other), ("couple", frozenset((one, other))))
        for key in keys:
            earlier, own = find(first.setdefault(key, i)), find(i)
            root[max(earlier, own)] = min(earlier, own)
    roots = [find(i) for i in range(len(root))]
    number = {each: k for k, each in enumerate(dict.fromkeys(roots))}
    return np.array([number[each] for each in roots], dtype=np.int64)


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
