"""Means over clusters, and splits by them; `tests/datasets/test_clusters.py` has which pairs are one."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp.statistics.clusters import (
    all_mirrored,
    cluster_ids,
    clusters,
    halves,
    hashed_order,
    mean_by_cluster,
    one_direction,
)


def test_each_cluster_counts_once_however_many_members_it_has():
    values = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 80.0]])

    assert mean_by_cluster(values, [5, 5, 2]).tolist() == [[8.0, 80.0], [2.0, 20.0]]
    assert mean_by_cluster([1.0, 2.0, 6.0], [0, 1, 1]).tolist() == [1.0, 4.0]
    assert mean_by_cluster([1.0, 2.0], [1, 0]).tolist() == [2.0, 1.0]
    assert mean_by_cluster([1.0, 2.0, 6.0], ["b", "a", "b"]).tolist() == [2.0, 3.5]


def test_the_summary_counts_pairs_and_clusters():
    def pair(cluster):
        return {"clean": f"clean {cluster}", "corrupted": f"corrupted {cluster}"}

    assert clusters([pair(0)]).summary() == "1 pair in 1 independent cluster"
    assert clusters([pair(0), pair(0)]).summary() == "2 pairs in 1 independent cluster"
    assert clusters([pair(0), pair(1)]).summary() == "2 pairs in 2 independent clusters"


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


@pytest.mark.parametrize("salt", ["a", "b", "c", "d", "e", "f"])
def test_one_direction_of_a_couple_is_kept_which_the_salts_hash_decides(salt):
    couple = [("Oslo", "Lima"), ("Lima", "Oslo"), ("Bern", "Doha"), ("Cairo", "Cairo")]
    pairs = [{"clean": clean, "corrupted": corrupted} for clean, corrupted in couple]
    of = clusters(pairs).of_pair

    kept = one_direction(pairs, of, salt)

    forwards = hashlib.sha256((salt + of[0]).encode()).digest()[0] % 2 == 0
    assert kept == ((1, 2, 3) if forwards else (0, 2, 3))  # forwards: from Lima, first in the alphabet


def test_both_directions_are_kept_where_clusters_tell_them_apart():
    pairs = [{"clean": "a", "corrupted": "b"}, {"clean": "b", "corrupted": "a"}]

    assert one_direction(pairs, ("one", "two"), "salt") == (0, 1)


def test_only_pairs_of_which_each_comes_in_both_directions_are_mirrored():
    def pairs(*both):
        return [{"clean": clean, "corrupted": corrupted} for clean, corrupted in both]

    assert all_mirrored(pairs(("a", "b"), ("b", "a"))) is True
    assert all_mirrored(pairs(("a", "b"), ("b", "a"), ("c", "d"))) is False
    assert all_mirrored([]) is False


def test_the_name_of_a_cluster_is_written_as_16_digits_of_its_hash():
    pairs = [{"clean": "a", "corrupted": "b"}, {"clean": "b", "corrupted": "c"}]

    assert cluster_ids(pairs) == (hashlib.sha256(b"a").hexdigest()[:16],) * 2
