"""A run with patched edges is the run in which each input reads its own sum of senders, on every family."""

from __future__ import annotations

import itertools

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import (
    INPUT,
    Edge,
    Node,
    graph_of,
    head,
    mlp,
    parse_edge,
)
from mlxterp.causal.circuits.node_outputs import NodeOutputs
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import add, replace
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import CapabilityUnavailable, SweepError
from tests.causal.conftest import TOKENS
from tests.tiny_models import ByteTokenizer, tiny_module

OTHERS = np.array([list(b"the cow ran"), list(b"the pig ran")])


def plain(model: InterpretableModel, tokens, *edits) -> np.ndarray:
    return np.array(model.run(np.atleast_2d(tokens), interventions=edits)[0])[:, -1]


def edge_run(model: InterpretableModel) -> EdgeRun:
    return EdgeRun(model, TOKENS[:1], TOKENS[1:])


def close(got, expected) -> bool:
    return np.allclose(got, expected, atol=2e-5 * max(1.0, np.abs(expected).max()))


class OneByOne:
    """The oracle: senders in order, each input summed by itself, each node read from a forward of the model
    in which that sum stands in the residual stream."""

    def __init__(self, model: InterpretableModel) -> None:
        self.model, self.graph = model, graph_of(model)
        self.corrupted = self._outputs(TOKENS[1:])

    def _outputs(self, tokens) -> dict[Node, mx.array]:
        _, seen = self.model.run(tokens, capture=["z", "embed", *(["mlp_out"] if self.graph.has_mlp else [])])
        outputs = {INPUT: seen[HookPoint("embed")]}
        for layer in range(self.graph.n_layers):
            outputs |= self._written(layer, seen[HookPoint("z", layer)])
            if self.graph.has_mlp:
                outputs[mlp(layer)] = seen[HookPoint("mlp_out", layer)]
        return outputs

    def _written(self, layer: int, z: mx.array) -> dict[Node, mx.array]:
        heads, bias = self.model.architecture.head_outputs(layer, z)
        n = self.graph.n_heads
        return {head(layer, i): heads[..., i, :] + bias / n for i in range(n)}

    def logits(self, patched: set[Edge]) -> np.ndarray:
        graph = self.graph
        now = {INPUT: self.model.run(TOKENS[:1], capture="embed")[1][HookPoint("embed")]}

        def total(receiver, into):
            senders = graph.senders[: graph.n_senders_to(receiver)]
            return sum((self.corrupted if Edge(s, receiver, into) in patched else now)[s] for s in senders)

        def at(point, layer, value, wanted):
            edit = replace(HookPoint(point, layer), value)
            return self.model.run(TOKENS[:1], interventions=[edit], capture=wanted)[1]

        for layer in range(graph.n_layers):
            parts = {}
            for receiver, into in graph.receivers:
                if receiver.layer == layer and into in ("q", "k", "v"):
                    point = HookPoint(into, layer)
                    found = at("resid_pre", layer, total(receiver, into), point)[point]
                    parts.setdefault(into, []).append(found[:, :, receiver.index])
            edits = [replace(HookPoint(n, layer), mx.stack(p, axis=2)) for n, p in parts.items()]
            z = HookPoint("z", layer)
            _, seen = self.model.run(TOKENS[:1], interventions=edits, capture=z)
            now |= self._written(layer, seen[z])
            if graph.has_mlp:
                point = "resid_pre" if graph.parallel else "resid_mid"
                out = HookPoint("mlp_out", layer)
                now[mlp(layer)] = at(point, layer, total(mlp(layer), "mlp"), out)[out]
        receiver, into = graph.receivers[-1]
        last = HookPoint("resid_post", graph.n_layers - 1)
        return plain(self.model, TOKENS[:1], replace(last, total(receiver, into)))


def random_sets(graph, *, seed=0) -> list[set[Edge]]:
    edges, rng = list(graph.edges()), np.random.default_rng(seed)
    return [{e for e in edges if rng.random() < share} for share in (0.01, 0.1, 0.5, 0.9)]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "olmo2", "gemma3", "qwen3", "cohere"])
def test_a_run_with_patched_edges_equals_one_that_sums_every_input_by_itself(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    oracle, run = OneByOne(model), edge_run(model)
    sets = random_sets(run.graph)

    fast = run.logits(sets)

    for got, patched in zip(fast, sets, strict=True):
        assert close(got, oracle.logits(patched))


def test_the_toy_without_mlps_too(toy_model):
    run = EdgeRun(toy_model, TOKENS[:1] % 40, TOKENS[1:] % 40)
    edge = parse_edge("input→L0.H2.v")

    moved = run.logits([set(), {edge}, set(run.graph.edges())])

    assert close(moved[0], plain(toy_model, TOKENS[:1] % 40))
    assert close(moved[2], plain(toy_model, TOKENS[1:] % 40))


def test_no_edge_patched_is_the_clean_run_and_every_edge_the_corrupted_one(any_family):
    run = edge_run(any_family)

    none, every = run.logits([set(), set(run.graph.edges())])

    assert close(none, plain(any_family, TOKENS[:1]))
    assert close(every, plain(any_family, TOKENS[1:]))


def test_every_edge_out_of_a_node_is_noising_that_node(any_family):
    """Where a norm stands behind attention, a head is what it adds, not its z."""
    run, model = edge_run(any_family), any_family
    _, seen = model.run(TOKENS, capture=["z", "mlp_out"])
    edits = {INPUT: None}
    for layer in range(model.n_layers):
        written, _ = model.architecture.head_outputs(layer, seen[HookPoint("z", layer)])
        out = HookPoint("mlp_out", layer)
        edits[mlp(layer)] = replace(out, seen[out][1:])
        for i in range(model.n_heads):
            change = written[1:, :, i] - written[:1, :, i]
            edits[head(layer, i)] = add(HookPoint("attn_out", layer), change)
    nodes = list(edits)

    got = run.logits([{e for e in run.graph.edges() if e.sender == node} for node in nodes])

    assert len(nodes) == 16
    for node, logits in zip(nodes, got, strict=True):
        edit = edits[node]
        expected = plain(model, TOKENS[1:]) if edit is None else plain(model, TOKENS[:1], edit)
        assert close(logits, expected), node


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_every_edge_out_of_a_node_at_zero_or_its_mean_is_that_node_ablated(family, ablation):
    """Three different prompts among four: the mean counts each once."""
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    clean, corrupted = TOKENS, np.stack([OTHERS[0], TOKENS[0]])
    run = EdgeRun(model, clean, corrupted, ablation=ablation)
    _, seen = model.run(np.stack([*TOKENS, OTHERS[0]]), capture=["z", "mlp_out", "embed"])
    edits = {INPUT: (HookPoint("embed"), None)}
    for layer in range(model.n_layers):
        edits[mlp(layer)] = (HookPoint("mlp_out", layer), None)
        edits |= {head(layer, i): (HookPoint("z", layer), i) for i in range(model.n_heads)}

    got = run.logits([{e for e in run.graph.edges() if e.sender == node} for node in edits])

    for (node, (point, i)), logits in zip(edits.items(), got, strict=True):
        if node == INPUT and ablation == "zero":
            continue  # in a sum, the first norm then reads rounding, and scales it up
        stand_in = seen[point].mean(axis=0, keepdims=True) if ablation == "mean" else seen[point][:1] * 0
        expected = plain(model, clean, replace(point, stand_in, heads=i))
        assert close(logits, expected), node


def test_positions_that_the_prompts_share_need_not_be_computed(any_family):
    clean, corrupted = np.stack([TOKENS[0], OTHERS[0]]), np.stack([TOKENS[1], OTHERS[1]])
    whole = EdgeRun(any_family, clean, corrupted)
    few, many, edges = 0.05, 0.9, np.random.default_rng(0).random((2, whole.n_edges))
    masks = np.stack([edges[0] < few, edges[1] < many, edges[0] < 2])

    suffix = EdgeRun(any_family, clean, corrupted, suffix_only=True)

    assert (suffix.start, suffix.length, whole.start, whole.length) == (4, 7, 0, 11)
    assert close(suffix.logits(masks), whole.logits(masks))


def test_all_positions_are_computed_where_the_ablation_changes_them_or_the_first_differs(tiny_llama):
    first = TOKENS[1:] + (np.arange(11) == 0)
    zeroed = EdgeRun(tiny_llama, TOKENS[:1], TOKENS[1:], ablation="zero", suffix_only=True)
    last = EdgeRun(tiny_llama, TOKENS[:1], TOKENS[:1] + (np.arange(11) == 10), suffix_only=True)

    assert EdgeRun(tiny_llama, TOKENS[:1], first, suffix_only=True).start == zeroed.start == 0
    assert (last.start, last.length) == (10, 1)
    everything = np.ones((1, last.n_edges), dtype=bool)
    assert close(last.logits(everything)[0], plain(tiny_llama, TOKENS[:1] + (np.arange(11) == 10)))


def test_an_ablation_that_means_nothing_is_refused(tiny_llama):
    with pytest.raises(SweepError, match="corrupted, zero, mean"):
        EdgeRun(tiny_llama, TOKENS[:1], TOKENS[1:], ablation="resample")
    with pytest.raises(SweepError, match="single prompt"):
        EdgeRun(tiny_llama, TOKENS[:1], TOKENS[:1], ablation="mean")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_rows_and_prompts_of_a_batch_do_not_touch_each_other(family):
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    run = EdgeRun(model, np.stack([TOKENS[0], OTHERS[0]]), np.stack([TOKENS[1], OTHERS[1]]))
    sets = random_sets(run.graph)

    together = run.logits(sets)

    singles = [
        EdgeRun(model, c[None], x[None], token_budget=11)
        for c, x in zip((TOKENS[0], OTHERS[0]), (TOKENS[1], OTHERS[1]), strict=True)
    ]
    for (i, single), (j, patched) in itertools.product(enumerate(singles), enumerate(sets)):
        assert close(together[j, i], single.logits([patched])[0, 0])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "olmo2", "gpt2"])
def test_runs_computed_from_one_with_patched_edges_are_those_computed_from_the_clean_run(family):
    """Edges are patched in the order of a search: what each new run leaves out adds up."""
    model = InterpretableModel(tiny_module(family), ByteTokenizer())
    stepwise, rng = edge_run(model), np.random.default_rng(0)
    patched = rng.random(stepwise.n_edges) < 0.5
    for _ in range(4):
        stepwise.start_from(patched)
        rows = patched | (rng.random((3, stepwise.n_edges)) < 0.03)

        assert close(stepwise.logits(rows), edge_run(model).logits(rows))
        assert close(stepwise.logits(patched[None]), edge_run(model).logits(patched[None]))
        patched = rows[0]


def test_a_run_without_edges_that_the_others_start_from_is_right_too(tiny_llama):
    run, rng = edge_run(tiny_llama), np.random.default_rng(0)
    rows = rng.random((2, run.n_edges)) < 0.5

    run.start_from(~rows[0])

    assert close(run.logits(rows), edge_run(tiny_llama).logits(rows))
    run.start_from(rows[1])
    run.start_from(rows[0])
    assert close(run.logits(rows[:1]), edge_run(tiny_llama).logits(rows[:1]))


def test_only_what_differs_from_the_run_that_others_start_from_is_computed(tiny_llama, monkeypatch):
    run = edge_run(tiny_llama)
    removed = np.random.default_rng(0).random(run.n_edges) < 0.5
    removed[-1] = False  # the last MLP into the logits
    one_more = removed.copy()
    one_more[-1] = True
    computed = []
    monkeypatch.setattr(
        NodeOutputs, "head", lambda self, *a, of=NodeOutputs.head: (computed.append(a[:2]), of(self, *a))[1]
    )

    run.logits(one_more[None])
    assert len(computed) > 4
    run.start_from(removed)
    computed.clear()
    run.logits(one_more[None])

    assert computed == []


def test_a_head_alone_is_the_same_as_among_all_of_its_layer(tiny_llama):
    nodes = NodeOutputs(tiny_llama, 11)
    h = mx.random.normal((2, 11, 32), key=mx.random.key(0))

    alone = nodes.head(1, 3, h, h[:1], h)

    assert nodes._one_head
    assert close(np.array(alone), np.array(nodes._heads(1, (h, h[:1], h), None))[..., 3, :])


def test_an_edge_between_nodes_that_do_not_follow_each_other_is_refused(tiny_llama):
    run = edge_run(tiny_llama)

    for text in ("L1.H0→L1.H1.q", "L2.mlp→L1.mlp", "L1.mlp→L3.mlp", "L0.H9→logits", "input→L0.H1.k"):
        with pytest.raises(SweepError, match="has no edge"):
            run.mask([parse_edge(text)])


def test_prompts_of_different_lengths_are_refused(tiny_llama):
    with pytest.raises(SweepError, match="same length"):
        EdgeRun(tiny_llama, TOKENS[:1], TOKENS[1:, :5])


def test_attention_whose_projections_cannot_be_told_apart_is_refused(tiny_llama):
    model = InterpretableModel(tiny_module("gpt2"), ByteTokenizer())
    layers = model.architecture.layers
    object.__setattr__(layers[1], "namespace", {})

    with pytest.raises(CapabilityUnavailable, match="layer 1 neither has q_proj"):
        edge_run(model)


@pytest.mark.usefixtures("pinned_threads")
def test_the_model_is_as_it_was(tiny_llama):
    before = plain(tiny_llama, TOKENS)
    classes = [type(m) for _, m in tiny_llama.model.named_modules()]

    edge_run(tiny_llama).logits(random_sets(graph_of(tiny_llama)))

    assert [type(m) for _, m in tiny_llama.model.named_modules()] == classes
    assert np.array_equal(plain(tiny_llama, TOKENS), before)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_models_too(bits):
    module = tiny_module("llama", intermediate_size=64)
    nn.quantize(module, group_size=32, bits=bits)
    model = InterpretableModel(module, ByteTokenizer())
    run = edge_run(model)
    oracle, sets = OneByOne(model), random_sets(run.graph)

    none, every, *some = run.logits([set(), set(run.graph.edges()), *sets])

    assert close(none, plain(model, TOKENS[:1]))
    assert close(every, plain(model, TOKENS[1:]))
    for got, patched in zip(some, sets, strict=True):
        assert np.abs(got - oracle.logits(patched)).max() < 1e-3


def test_half_precision_stays_near_the_model():
    module = tiny_module("llama")
    module.set_dtype(mx.bfloat16)
    model = InterpretableModel(module, ByteTokenizer())
    run = edge_run(model)

    none, every = run.logits([set(), set(run.graph.edges())])

    scale = np.abs(np.array(model.run(TOKENS)[0].astype(mx.float32))).max()
    expected = np.array(model.run(TOKENS)[0].astype(mx.float32))[:, -1]
    assert np.abs(np.stack([none[0], every[0]]) - expected).max() < 0.03 * scale
