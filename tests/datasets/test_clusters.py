"""Which pairs are independent: by their own word, else by the prompts they share."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest

from mlxterp.causal import PromptPair
from mlxterp.statistics.clusters import clusters

FRANCE, ITALY, SPAIN, JAPAN, CHINA = "France is", "Italy is", "Spain is", "Japan is", "China is"


def test_a_couple_in_both_directions_is_one_cluster_and_pairs_without_a_common_prompt_are_two():
    found = clusters([PromptPair(FRANCE, ITALY), PromptPair(ITALY, FRANCE), PromptPair(JAPAN, CHINA)])

    assert len(found) == 2
    assert list(found.members.values()) == [[0, 1], [2]]
    assert found.summary() == "3 pairs in 2 independent clusters"


@pytest.mark.parametrize(
    "second", [PromptPair(FRANCE, SPAIN), PromptPair(SPAIN, ITALY), PromptPair(ITALY, SPAIN)]
)
def test_a_shared_prompt_joins_pairs_whichever_its_role(second):
    assert len(clusters([PromptPair(FRANCE, ITALY), second])) == 1


def test_a_chain_is_one_cluster_in_whatever_order_it_is_given():
    chain = [PromptPair(FRANCE, ITALY), PromptPair(SPAIN, JAPAN), PromptPair(ITALY, SPAIN)]

    for order in permutations(chain):
        assert clusters(order).of_pair == (FRANCE,) * 3


def test_a_pairs_own_cluster_decides_and_joins_what_shares_no_prompt():
    pairs = [
        PromptPair(FRANCE, ITALY, cluster="a"),
        PromptPair(JAPAN, CHINA, cluster="a"),
        PromptPair(FRANCE, SPAIN, cluster="b"),
    ]

    assert clusters(pairs).of_pair == ("a", "a", "b")


def test_lines_of_json_and_token_ids_are_read_as_pairs_are():
    lines = [{"clean": [1, 2], "corrupted": [3, 4]}, {"clean": (3, 4), "corrupted": (1, 2), "cluster": None}]

    assert clusters(lines) == clusters([PromptPair((1, 2), (3, 4)), PromptPair((3, 4), (1, 2))])
    assert len(clusters(lines)) == 1


def test_a_line_without_a_prompt_is_refused():
    with pytest.raises(TypeError, match="a pair without corrupted; it has clean"):
        clusters([{"clean": FRANCE}])


def test_counting_clusters_needs_no_mlx():
    code = (
        "import sys, mlxterp.statistics.clusters; print([m for m in sys.modules if m.split('.')[0] == 'mlx'])"
    )

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert loaded.strip() == "[]"
