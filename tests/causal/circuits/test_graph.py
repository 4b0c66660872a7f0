"""The graph of a model: its edges are counted by hand, and their names are read back."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from mlxterp.causal.circuits.graph import (
    Graph,
    all_edges,
    graph_of,
    head,
    input_name,
    mlp,
    parse_edge,
    parse_node,
)
from mlxterp.errors import SweepError


def test_the_published_number_of_edges_of_gpt2_small_and_that_of_smollm2():
    assert Graph(n_layers=12, n_heads=12, n_kv_heads=12).n_edges == 32_491
    assert Graph(n_layers=30, n_heads=9, n_kv_heads=3).n_edges == 70_651
    assert Graph(n_layers=30, n_heads=9, n_kv_heads=9).n_edges == 123_211


def test_edges_of_a_model_are_as_many_as_counted_and_read_back_from_their_names(tiny_llama):
    edges = all_edges(tiny_llama)

    assert len(edges) == len(set(edges)) == graph_of(tiny_llama).n_edges
    assert [parse_edge(str(edge)) for edge in edges] == list(edges)


def test_the_planted_edges_of_the_toy_are_edges_of_its_graph(toy_model):
    truth = json.loads((files("mlxterp") / "weights" / "toy_induction.json").read_text())
    planted = {f"{e['from'].replace('embed', 'input')}→{e['to']}" for e in truth["edges"]}

    assert planted <= {str(edge) for edge in all_edges(toy_model)}
    assert not graph_of(toy_model).has_mlp


def test_heads_of_a_parallel_block_do_not_reach_its_mlp(any_family):
    graph = graph_of(any_family)
    names = {str(edge) for edge in graph.edges()}

    assert (f"{head(1, 0)}→{mlp(1)}" in names) is not graph.parallel
    assert f"{head(0, 0)}→{mlp(1)}" in names
    assert f"{mlp(1)}→{head(1, 0)}.q" not in names
    assert f"{mlp(0)}→{head(1, 0)}.q" in names


def test_a_shared_key_feeds_all_heads_of_its_group():
    graph = Graph(n_layers=2, n_heads=6, n_kv_heads=2)

    assert graph.readers(graph.kv_node(1, 1)) == (head(1, 3), head(1, 4), head(1, 5))
    assert [input_name(*at) for at in graph.inputs_of(head(1, 4))] == ["L1.H4.q", "L1.KV1.k", "L1.KV1.v"]
    assert graph.readers(mlp(1)) == (mlp(1),)


@pytest.mark.parametrize("name", ["L1.H", "H3", "L0.attn", "output", "L-1.mlp"])
def test_a_node_that_does_not_exist_says_how_nodes_are_written(name):
    with pytest.raises(SweepError, match=r"L3\.H2"):
        parse_node(name)


@pytest.mark.parametrize("name", ["L0.H1", "L0.H1→L1.H0", "L0.H1→L1.mlp.q", "L0.H1→L1.KV0.q", "input→input"])
def test_an_edge_that_does_not_exist_says_how_edges_are_written(name):
    with pytest.raises(SweepError):
        parse_edge(name)
