"""Circuits as figures: nodes in rows, links between them, text that stays text."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from mlxterp import plots
from mlxterp.results import AnalysisResult, CircuitEdge, CircuitResult
from mlxterp.results.views import Link, Network


def circuit(*edges: tuple[str, str, str, float]) -> CircuitResult:
    return CircuitResult(
        edges=tuple(CircuitEdge(sender=s, receiver=r, into=i, effect=e) for s, r, i, e in edges),
        method="acdc",
        threshold=0.1,
        metric="kl",
        clean_metric=0.0,
        corrupted_metric=4.0,
        circuit_metric=0.2,
        n_edges=500,
        n_tested=90,
    )


INDUCTION = circuit(
    ("input", "L0.H2", "v", 2.0),
    ("L0.H2", "L1.H11", "k", 1.5),
    ("input", "L1.mlp", "mlp", 0.2),
    ("L1.H11", "L1.mlp", "mlp", math.nan),
    ("L1.mlp", "logits", "logits", -0.4),
)


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text")]


def test_nodes_stand_in_forward_order_heads_before_their_mlp():
    network = INDUCTION.network()

    assert INDUCTION.nodes == ("input", "L0.H2", "L1.H11", "L1.mlp", "logits")
    assert network.rows == ("input", "L0", "L1", "L1 MLP", "logits")
    assert network.labels == ("input", "H2", "H11", "mlp", "logits")
    assert [(link.start, link.end) for link in network.links] == [(0, 1), (1, 2), (0, 3), (2, 3), (3, 4)]
    assert [link.label for link in network.links] == ["v", "k", "", "", ""]


def test_the_figure_names_every_node_and_says_how_many_edges_meet_there():
    svg = plots.svg(INDUCTION.network())

    assert {"input", "H2", "H11", "mlp", "logits", "v", "k"} <= set(texts(svg))
    titles = [e.text for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("title")]
    assert "L1 MLP mlp: 2 edges in, 1 out" in titles
    assert len(titles) == 5


def test_a_result_is_drawn_and_described_by_its_strongest_edges():
    figure = INDUCTION.plot()

    assert figure.get_figheight() > 1
    assert "input to L0 H2 (v) 2" in plots.alt_text(INDUCTION.network())
    assert "L0.H2" in INDUCTION._repr_html_()
    assert plots.png(INDUCTION.network()).startswith(b"\x89PNG")


@pytest.mark.parametrize("label", ["<script>", "$x^2$", "a\x00b\u202e", "漢字"])
def test_hostile_labels_are_shown_as_text(label):
    network = Network("t", (label, "b"), ("r", label), (Link(0, 1, 1.0, label),), "loss")

    svg = plots.svg(network)

    assert "<script>" not in svg
    ElementTree.fromstring(svg)


def test_a_large_circuit_is_drawn_by_its_strongest_edges():
    many = circuit(
        *(
            (f"L{i}.H{j}", f"L{i + 1}.H{k}", "q", float(i + j + k))
            for i in range(8)
            for j in range(6)
            for k in range(6)
        )
    )

    svg = plots.svg(many.network())

    assert "the strongest 150 of 288 edges" in plots.figure([many.network()], "x").texts[-1].get_text()
    assert len(svg) < 200_000


@pytest.mark.parametrize("edges", [(), (("input", "logits", "logits", math.nan),)])
def test_a_circuit_without_edges_or_without_effects_is_drawn(edges):
    result = circuit(*edges)

    assert plots.svg(result.network())
    assert AnalysisResult.from_json(result.to_json()) == result
    assert result.to_markdown()
