"""Means over clusters, and splits by them; `tests/datasets/test_clusters.py` has which pairs are one."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.clusters import halves, hashed_order, mean_by_cluster


def test_each_cluster_counts_once_however_many_members_it_has():
    values = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]])

    assert mean_by_cluster(values, [5, 5, 2]).tolist() == [[8.0, 80.0], [2.0, 20.0]]
    assert mean_by_cluster([1.0, 2.0, 6.0], [0, 1, 1]).tolist() == [1.0, 4.0]
    assert mean_by_cluster([1.0, 2.0], [1, 0]).tolist() == [2.0, 1.0]
    assert mean_by_cluster([1.0, 2.0, 6.0], ["b", "a", "b"]).tolist() == [2.0, 3.5]


def test_a_missing_cluster_label_and_an_empty_dataset_are_refused():
    with pytest.raises(StatisticsError, match="Give one cluster per value"):
        mean_by_cluster([1.0, 2.0], [0])
    with pytest.raises(StatisticsError, match="Give one cluster per value"):
        mean_by_cluster(np.zeros((0, 3)), [])


def test_the_order_of_clusters_follows_the_salt_and_nothing_else():
    names = [f"c{i}" for i in range(20)]

    assert hashed_order(names, "s") == hashed_order([*names[::-1], "c3"], "s")
    assert set(hashed_order(names, "s")) == set(names)
    assert hashed_order(names, "s") != hashed_order(names, "t")


def test_the_order_of_clusters_is_that_of_sha256_of_salt_and_name():
    assert hashed_order(["a", "b", "c"], "salt") == ("b", "a", "c")


def test_halves_share_no_cluster_and_the_larger_half_measures():
    clusters = np.repeat(np.arange(5), 2)

    search, confirm = halves(clusters, seed=0)

    assert len(set(clusters[search])) == 2
    assert len(set(clusters[confirm])) == 3
    assert sorted([*search, *confirm]) == list(range(10))
    assert not set(clusters[search]) & set(clusters[confirm])


def test_another_seed_gives_another_half():
    found = {tuple(halves(np.arange(8), seed=s)[0]) for s in range(10)}

    assert len(found) > 5


def test_one_cluster_cannot_be_split_and_two_can():
    with pytest.raises(StatisticsError, match="1 cluster cannot be split"):
        halves([3, 3, 3], seed=0)
    search, confirm = halves([3, 4], seed=0)
    assert len(search) == len(confirm) == 1
