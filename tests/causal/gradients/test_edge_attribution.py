"""Edge attribution is the slope of an edge mask: compared with a forward written by hand in which every edge
has a mask, with nodes, and with the planted edges of the toy."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlxterp import causal
from mlxterp.causal import PromptPair, edge_attribution, graph_of
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import LengthMismatch, MetricError, ResultError, SweepError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import PAIR, PAIRS
from tests.small_models import small_module
from tests.tiny_models import FAMILIES, ByteTokenizer, tiny_module

# Of one gradient, as the edges' scores are.
attribution_patchings = partial(causal.attribution_patchings, steps=1, verify=0)


def masked_llama(model, tokens, differences, masks, metric):
    """A llama written out, in which each edge adds its mask times its sender's difference to what is read."""
    module, args = model.model.model, model.model.args
    n_heads, n_kv, d_head = args.num_attention_heads, args.num_key_value_heads, args.head_dim
    h = module.embed_tokens(tokens)
    length = tokens.shape[1]
    hidden = mx.where(mx.arange(length)[:, None] >= mx.arange(length)[None], 0.0, -1e9)

    def read(name):
        return h + sum(
            masks[edge] * differences[edge.split("→")[0]] for edge in masks if edge.split("→")[1] == name
        )

    for i, block in enumerate(module.layers):
        attn = block.self_attn
        project = {"q": attn.q_proj, "k": attn.k_proj, "v": attn.v_proj}

        def one(kind, index, node, block=block, project=project, i=i):
            x = project[kind](block.input_layernorm(read(f"L{i}.{node}{index}.{kind}")))
            return x[..., index * d_head : (index + 1) * d_head]

        rope = lambda x, attn=attn: attn.rope(x[:, None])[:, 0]  # noqa: E731
        keys = [rope(one("k", g, "KV")) for g in range(n_kv)]
        values = [one("v", g, "KV") for g in range(n_kv)]
        zs = []
        for head in range(n_heads):
            g = head * n_kv // n_heads
            scores = rope(one("q", head, "H")) @ keys[g].swapaxes(1, 2) * d_head**-0.5 + hidden
            zs.append(mx.softmax(scores, axis=-1) @ values[g])
        h = h + attn.o_proj(mx.concatenate(zs, axis=-1))
        h = h + block.mlp(block.post_attention_layernorm(read(f"L{i}.mlp")))
    return metric(model.model.lm_head(module.norm(read("logits")))[0, -1])


def differences_of(model, ablation="corrupted"):
    """What every sender's ablated edges carry, minus what it writes in the clean run."""
    names = ["embed", *(f"L{i}.{part}" for i in range(model.n_layers) for part in ("z", "mlp_out"))]
    clean, corrupted = (
        dict(model.trace(text, capture=names).activations) for text in (PAIR.clean, PAIR.corrupted)
    )
    if ablation == "zero":
        corrupted = {name: mx.zeros_like(x) for name, x in clean.items()}
    if ablation == "mean":
        corrupted = {name: (x + corrupted[name]) / 2 for name, x in clean.items()}
    found = {"input": corrupted["embed"] - clean["embed"]}
    for i in range(model.n_layers):
        change = corrupted[f"L{i}.z"] - clean[f"L{i}.z"]
        weights = model.architecture.w_o(i)
        found |= {f"L{i}.H{head}": change[:, :, head] @ weights[head] for head in range(model.n_heads)}
        found[f"L{i}.mlp"] = corrupted[f"L{i}.mlp_out"] - clean[f"L{i}.mlp_out"]
    return found


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_every_score_is_the_slope_of_its_edges_mask(tiny_llama, ablation):
    result = edge_attribution(tiny_llama, PAIR, ablation=ablation)
    differences = differences_of(tiny_llama, ablation)
    answer, foil = (tiny_llama.to_single_token(token) for token in (PAIR.answer, PAIR.foil))
    tokens = mx.array(tiny_llama.to_tokens(PAIR.clean))

    def of_masks(masks):
        return masked_llama(tiny_llama, tokens, differences, masks, lambda row: row[answer] - row[foil])

    masks = {edge: mx.array(0.0) for edge in result.edges}
    value, slopes = mx.value_and_grad(of_masks)(masks)

    expected = np.array([float(slopes[edge]) for edge in result.edges])
    assert float(value) == pytest.approx(result.clean_metric, abs=1e-4)
    assert len(expected) == graph_of(tiny_llama).n_edges == 190
    assert result.metric_changes == pytest.approx(expected, abs=2e-4 * np.abs(expected).max())
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_the_edges_that_leave_a_node_add_up_to_the_nodes_own_estimate(any_family, method):
    """The stream is a sum, so a node's gradient is the sum of those of the inputs that read it."""
    options = {"method": method} | ({"steps": 1} if method == "eap-ig" else {})
    edges = edge_attribution(any_family, PAIR, **options)
    heads, mlps = attribution_patchings(
        any_family, PAIR, sweeps=[("z", "layer_head"), ("mlp_out", "layer")], direction="noising"
    )
    leaving = {}
    for edge, score in zip(edges.edges, edges.scores, strict=True):
        sender = edge.split("→")[0]
        leaving[sender] = leaving.get(sender, 0.0) + score

    for layer in range(any_family.n_layers):
        part = any_family.architecture.layers[layer]
        assert leaving[f"L{layer}.mlp"] == pytest.approx(mlps.effects[layer], abs=1e-3, rel=1e-3)
        if part.attn_adds is part.attn:  # else a norm stands between the heads and the stream
            summed = [leaving[f"L{layer}.H{head}"] for head in range(any_family.n_heads)]
            assert summed == pytest.approx(heads.effects[layer], abs=1e-3, rel=1e-3)
    whole = heads.measured_on["estimate_of_patching_the_whole_input"]
    assert edges.whole_input == pytest.approx(whole, abs=1e-3, rel=1e-3)


def test_quantised_weights_are_differentiated_through_as_they_are():
    module = tiny_module("llama", hidden_size=64, intermediate_size=64, num_attention_heads=8)
    nn.quantize(module, group_size=32, bits=4)
    model = InterpretableModel(module, ByteTokenizer())

    edges = edge_attribution(model, PAIR)
    (heads,) = attribution_patchings(model, PAIR, sweeps=[("z", "layer_head")], direction="noising")

    leaving = [s for edge, s in zip(edges.edges, edges.scores, strict=True) if edge.startswith("L0.H3→")]
    assert sum(leaving) == pytest.approx(heads.effects[0, 3], rel=1e-3, abs=1e-3)


def test_through_its_own_block_a_model_gives_the_gradients_that_its_weights_give(tiny_llama, monkeypatch):
    by_weights = edge_attribution(tiny_llama, PAIRS)
    monkeypatch.setattr("mlxterp.causal.gradients.edge_attribution._separate", lambda *_: False)

    by_block = edge_attribution(tiny_llama, PAIRS)

    assert by_block.scores == pytest.approx(by_weights.scores, abs=1e-4)
    assert by_block.per_example == pytest.approx(by_weights.per_example, abs=1e-4)


def test_each_pair_of_a_dataset_is_scored_as_it_is_alone(tiny_llama):
    together = edge_attribution(tiny_llama, PAIRS, method="eap-ig", steps=3)
    alone = [edge_attribution(tiny_llama, pair, method="eap-ig", steps=3) for pair in PAIRS]
    gaps = np.array([one.clean_metric - one.corrupted_metric for one in alone])
    scores = np.array([one.scores for one in alone])

    assert together.per_example == pytest.approx(scores, abs=1e-4, rel=1e-3)
    assert together.scores == pytest.approx(gaps @ scores / gaps.sum(), abs=1e-4, rel=1e-3)
    assert together.ci_low is None
    assert together.measured_on["intervals"].startswith(f"No interval: {len(PAIRS)} independent clusters")


def test_gradients_at_both_ends_are_the_mean_of_eap_from_either_run(tiny_llama):
    turned = PromptPair(PAIR.corrupted, PAIR.clean, answer=PAIR.answer, foil=PAIR.foil)
    both = edge_attribution(tiny_llama, PAIR, method="clean-corrupted")
    here = edge_attribution(tiny_llama, PAIR)
    there = edge_attribution(tiny_llama, turned)

    assert both.metric_changes == pytest.approx((here.metric_changes - there.metric_changes) / 2, abs=1e-3)


def test_with_many_steps_the_edges_from_the_input_add_up_to_the_whole_gap(tiny_llama):
    """Integrated gradients are complete (Sundararajan et al. 2017)."""
    few = edge_attribution(tiny_llama, PAIR)
    many = edge_attribution(tiny_llama, PAIR, method="eap-ig", steps=64)

    assert many.whole_input == pytest.approx(1, abs=0.03)
    assert abs(few.whole_input - 1) > 0.1


def planted():
    """The edges that carry the token; those that carry positions carry the same in both runs."""
    truth = json.loads((files("mlxterp") / "weights" / "toy_induction.json").read_text())
    return {
        f"{e['from'].replace('embed', 'input')}→{e['to']}" for e in truth["edges"] if e["carries"] == "token"
    }


def induction_pairs(n=8):
    """`A B C D E B` → C, against words among which B stands elsewhere: each planted edge carries something
    else."""
    rng = np.random.default_rng(0)
    pairs = []
    for _i in range(n):
        a, b, c, d, e, f, g = rng.choice(40, size=7, replace=False).tolist()
        pairs.append(PromptPair((a, b, c, d, e, b), (f, d, g, b, e, d), answer=c))
    return pairs


def auc(result, truth):
    size = np.abs(result.scores)
    true = np.array([edge in truth for edge in result.edges])
    above = size[true][:, None] - size[~true][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def sharpened(factor):
    from mlxterp.models import toy

    module, tokenizer = toy.load()
    for layer in module.model.layers:
        layer.self_attn.q_proj.weight = layer.self_attn.q_proj.weight * factor
    return InterpretableModel(module, tokenizer)


def test_the_planted_edges_lead(toy_model):
    for method in ("eap", "eap-ig"):
        result = edge_attribution(toy_model, induction_pairs(), method=method, metric="logit")
        assert auc(result, planted()) == 1.0, method
        assert {c.label for c in result.top_components(len(planted()))} == planted()


@pytest.mark.parametrize("factor", [4, 20])
def test_in_a_saturated_softmax_eap_misses_edges_and_integrated_gradients_do_not(factor):
    model = sharpened(factor)
    eap = edge_attribution(model, induction_pairs(), metric="logit")
    ig = edge_attribution(model, induction_pairs(), metric="logit", method="eap-ig", steps=8)

    assert auc(eap, planted()) == pytest.approx(0.7)
    assert auc(ig, planted()) == 1.0
    assert "saturated" in eap.summary()


def test_the_result_reads_back_and_names_its_edges(tiny_llama):
    result = edge_attribution(tiny_llama, PAIRS, method="eap-ig", steps=2)
    top = result.top_components(3)

    assert AnalysisResult.from_json(result.to_json()) == result
    assert [abs(c.effect) for c in top] == sorted((abs(s) for s in result.scores), reverse=True)[:3]
    assert result.score(top[0].label.replace("→", "->")) == top[0].effect
    assert top[0].label in result.summary()
    assert top[0].label.split("→")[1] in result.to_markdown()
    with pytest.raises(ResultError, match="no edge"):
        result.score("L9.H9→logits")


def test_what_cannot_be_scored_is_refused(tiny_llama):
    with pytest.raises(MetricError, match="eap-ig"):
        edge_attribution(tiny_llama, PAIR, metric="kl")
    with pytest.raises(SweepError, match="steps=3 belongs to"):
        edge_attribution(tiny_llama, PAIR, steps=3)
    with pytest.raises(SweepError, match="not known"):
        edge_attribution(tiny_llama, PAIR, method="eapig")
    with pytest.raises(SweepError, match="at least one step"):
        edge_attribution(tiny_llama, PAIR, method="eap-ig", steps=0)
    with pytest.raises(LengthMismatch):
        edge_attribution(tiny_llama, PromptPair("the cat sat", "the bird sat", answer="x", foil="y"))


POST_NORMS = ("gemma2", "gemma3", "olmo2", "olmo3", "glm4", "exaone4")
LONG_CLEAN = [3, 14, 15, 9, 2, 6, 5, 3, 5, 8, 9, 7]
LONG_CORRUPTED = [3, 14, 15, 9, 33, 6, 5, 3, 5, 8, 9, 7]


@pytest.mark.parametrize("family", [*FAMILIES, "olmo3", "glm4", "exaone4"])
def test_edges_out_of_a_node_add_up_to_its_score_as_the_documentation_says_for_every_family(family):
    model = InterpretableModel(tiny_module(family) if family in FAMILIES else small_module(family))
    pair = PromptPair(LONG_CLEAN, LONG_CORRUPTED, 5, 9)
    scores = edge_attribution(model, pair)
    sums: dict[str, float] = {}
    for edge, score in zip(scores.edges, scores.scores, strict=True):
        node = edge.split("→")[0]
        sums[node] = sums.get(node, 0.0) + float(score)

    heads, attn, mlps, stream = attribution_patchings(
        model,
        pair,
        direction="noising",
        sweeps=[("z", None), ("attn_out", None), ("mlp_out", None), ("resid_pre", None)],
    )

    assert sums["input"] == pytest.approx(stream.effects[0], abs=1e-4)
    of_heads = np.array(
        [[sums.get(f"L{i}.H{h}", 0.0) for h in range(model.n_heads)] for i in range(model.n_layers)]
    )
    for layer in range(model.n_layers):
        assert sums[f"L{layer}.mlp"] == pytest.approx(mlps.effects[layer], abs=1e-4)
        assert of_heads[layer].sum() == pytest.approx(attn.effects[layer], abs=1e-3)
    off = float(np.abs(of_heads - heads.effects).max())
    assert (off > 0.1) if family in POST_NORMS else (off < 1e-4)


def test_the_strongest_of_many_edges_are_estimated_again_on_pairs_that_did_not_choose_them(tiny_llama):
    pairs = [PromptPair(f"{c}bcdx", f"{c}bcdy", answer="x", foil="y") for c in "abcdefgh"]

    found, few = edge_attribution(tiny_llama, pairs), edge_attribution(tiny_llama, pairs[:7])

    others = [pair for i, pair in enumerate(pairs) if i not in found.chosen_on]
    alone, chosen = edge_attribution(tiny_llama, others), [pairs[i] for i in found.chosen_on]
    there = edge_attribution(tiny_llama, chosen)
    assert len(found.measured_again) == 5
    assert [each.label for each in found.measured_again] == [c.label for c in there.top_components(5)]
    for each in found.measured_again:
        assert each.effect == pytest.approx(alone.score(each.label), rel=1e-3, abs=1e-5)
        assert each.searched == pytest.approx(there.score(each.label), rel=1e-3, abs=1e-5)
        assert each.ci[0] <= each.effect <= each.ci[1]
    assert "The strongest on 4 pairs, estimated on 4 other pairs: " in found.summary()
    assert f"Strongest of {len(found.edges)}: " in found.summary()
    assert few.measured_again == ()
    assert "Scored on the same pairs that the search used" in few.summary()
    assert AnalysisResult.from_json(found.to_json()) == found
