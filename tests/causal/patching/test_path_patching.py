"""Path patching is its four runs: the receiver matters, and what comes after it does not."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.causal import PromptPair, activation_patching
from mlxterp.causal.circuits.edge_patching import EdgeRun
from mlxterp.causal.circuits.graph import parse_edge
from mlxterp.causal.patching.path_patching import path_patching
from mlxterp.core.hook_points import HookPoint
from mlxterp.core.interventions import add, replace
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.results import AnalysisResult
from tests.causal.conftest import CLEAN, CORRUPTED, PAIR, PAIRS, logit_difference, random_token_pairs
from tests.tiny_models import ByteTokenizer, tiny_module


@pytest.fixture(scope="module", params=["llama", "gpt2", "gpt_neox"])
def model(request) -> InterpretableModel:
    return InterpretableModel(tiny_module(request.param), ByteTokenizer())


def four_runs(model, sender, receiver, into, *, freeze_mlps, positions=None) -> float:
    """Appendix B of the paper, each step a plain run with plain edits."""
    names = ["z", "mlp_out", "resid_pre", "q", "k", "v"]
    a = model.trace(CORRUPTED, capture=names)
    b = model.trace(CLEAN, capture=names)
    sent = {sender} if isinstance(sender, str) else set(sender)
    rest = [p for p in range(len(CLEAN)) if p not in (positions or range(len(CLEAN)))]
    edits = []
    for layer in range(model.n_layers):
        z = f"L{layer}.z"
        heads = [h for h in range(4) if f"L{layer}.H{h}" in sent]
        if len(heads) < 4:
            edits += [replace(z, b[z], heads=[h for h in range(4) if h not in heads])]
        if heads:
            edits += [replace(z, a[z], heads=heads, positions=positions)]
        if heads and rest:
            edits += [replace(z, b[z], heads=heads, positions=rest)]
        out = f"L{layer}.mlp_out"
        if f"L{layer}.mlp" in sent:
            edits += [replace(out, a[out], positions=positions)]
        elif freeze_mlps:
            edits += [replace(out, b[out])]
    at, layer = ("resid_post", model.n_layers - 1) if into == "logits" else ("resid_pre", int(receiver[1]))
    middle = "resid_mid" if into == "mlp" and model.capabilities["resid_mid"].available else at
    noted = model.trace(CLEAN, capture=[f"L{layer}.{middle}"], interventions=edits)[f"L{layer}.{middle}"]
    if into == "logits":
        final = replace(f"L{layer}.resid_post", noted)
    else:
        point = "mlp_out" if into == "mlp" else into
        there = replace(f"L{layer}.{middle}", noted)
        read = model.trace(CLEAN, capture=[f"L{layer}.{point}"], interventions=[there])[f"L{layer}.{point}"]
        heads = None if into == "mlp" else int(receiver.partition(".")[2].strip("HKV"))
        final = replace(f"L{layer}.{point}", read, heads=heads)
    clean, corrupted = logit_difference(model, CLEAN), logit_difference(model, CORRUPTED)
    return (logit_difference(model, CLEAN, final) - clean) / (corrupted - clean)


@pytest.mark.parametrize("freeze_mlps", [False, True])
@pytest.mark.parametrize("into", ["q", "k", "v", "mlp", "logits"])
def test_the_effect_is_that_of_the_four_runs(model, into, freeze_mlps):
    shared = model.n_kv_heads != model.n_heads
    attention = "L2.KV1" if shared and into != "q" else "L2.H1"
    receiver = {"mlp": "L2.mlp", "logits": "logits"}.get(into, attention)
    name = receiver if into in ("mlp", "logits") else f"{receiver}.{into}"
    senders = ["L0.H2", "L1.H0", "L0.mlp"]

    result = path_patching(model, PAIR, receivers=name, senders=senders, freeze_mlps=freeze_mlps)

    for sender, effect in zip(senders, result.effects, strict=True):
        expected = four_runs(model, sender, receiver, into, freeze_mlps=freeze_mlps)
        assert effect == pytest.approx(expected, abs=1e-4)
    assert np.abs(result.effects).max() > 1e-3


def test_senders_of_a_set_take_their_corrupted_value_whatever_they_hear_of_each_other(model):
    together = ("L0.H2", "L0.mlp", "L1.mlp")

    result = path_patching(model, PAIR, receivers="L2.mlp", senders=[together, "L0.H2", "L1.mlp"])

    expected = four_runs(model, together, "L2.mlp", "mlp", freeze_mlps=False)
    assert result.effects[0] == pytest.approx(expected, abs=1e-4)
    assert result.senders[0] == "L0.H2 + L0.mlp + L1.mlp"


def test_only_the_positions_named_are_sent(model):
    receiver = "L2.H1" if model.n_kv_heads == model.n_heads else "L2.KV1"

    result = path_patching(model, PAIR, receivers=f"{receiver}.v", senders=["L0.H2"], positions=[5, -1])

    expected = four_runs(model, "L0.H2", receiver, "v", freeze_mlps=False, positions=[5, 10])
    everywhere = path_patching(model, PAIR, receivers=f"{receiver}.v", senders=["L0.H2"])
    assert result.effects == pytest.approx([expected], abs=1e-4)
    assert result.effects != pytest.approx(everywhere.effects, abs=1e-4)


def test_with_mlps_frozen_it_is_the_direct_edge(model):
    tokens = [np.array([list(text.encode())]) for text in (CLEAN, CORRUPTED)]
    run = EdgeRun(model, *tokens)
    x, y = (model.to_single_token(t) for t in (PAIR.answer, PAIR.foil))
    senders = [str(node) for node in run.graph.senders if node.layer < 2]

    result = path_patching(model, PAIR, receivers="L2.H3.q", senders=senders, freeze_mlps=True)

    rows = run.logits([{parse_edge(f"{s}→L2.H3.q")} for s in senders])[:, 0].astype(np.float64)
    gap = result.corrupted_metric - result.clean_metric
    edges = (rows[:, x] - rows[:, y] - result.clean_metric) / gap
    assert result.effects == pytest.approx(edges, abs=1e-4)


def test_a_sender_that_comes_after_the_receiver_does_exactly_nothing(model):
    result = path_patching(model, PAIR, receivers="L1.H0.q", senders=["L1.H0", "L1.mlp", "L2.H3", "L0.H0"])

    assert result.effects[:3].tolist() == [0, 0, 0]
    assert result.effects[3] != 0


def test_the_receiver_matters(model):
    receivers = ["L2.H0.q", "L2.H1.q", "L2.mlp", "logits"]

    effects = [float(path_patching(model, PAIR, receivers=r, senders="L0.H1").effects[0]) for r in receivers]

    assert len({round(e, 5) for e in effects}) == 4


def test_into_every_input_of_the_last_stream_it_is_the_direct_effect(model):
    """Sender → logits with MLPs frozen adds the sender's change to the last residual stream, nothing else."""
    traces = [model.trace(text, capture="z") for text in (CLEAN, CORRUPTED)]
    z = [model.architecture.head_outputs(1, t["L1.z"])[0][:, :, 2] for t in traces]
    edit = add(HookPoint("resid_post", 2), mx.subtract(z[1], z[0]))

    result = path_patching(model, PAIR, receivers="logits", senders="L1.H2", freeze_mlps=True)

    got = result.clean_metric + result.effects[0] * (result.corrupted_metric - result.clean_metric)
    assert got == pytest.approx(logit_difference(model, CLEAN, edit), abs=1e-4)


def test_without_mlps_and_heads_between_it_is_activation_patching(toy_model):
    """A head of the last layer reaches the logits only directly."""
    pairs = random_token_pairs()

    paths = path_patching(toy_model, pairs, receivers="logits")

    noised = activation_patching(toy_model, pairs, component="z", direction="noising").effects
    heads = [paths.find(f"L1.H{i}").effect for i in range(4)]
    assert heads == pytest.approx(noised[1], abs=1e-4)
    assert paths.top_components(1)[0].label == "L1.H1"
    assert len(paths.senders) == 9


def test_the_planted_heads_are_joined_through_the_keys(toy_model):
    pairs = random_token_pairs()
    effects = {
        into: path_patching(toy_model, pairs, receivers=f"L1.H1.{into}").find("L0.H2").effect
        for into in ("q", "k", "v")
    }

    assert effects["k"] > 0.5
    assert abs(effects["q"]) < 0.02
    assert abs(effects["v"]) < 0.02


def test_a_dataset_gives_effects_per_example_and_an_interval(tiny_llama):
    result = path_patching(tiny_llama, PAIRS, receivers=["L2.H1", "L2.mlp"], senders=[["L0.H1", "L0.mlp"]])

    single = path_patching(tiny_llama, PAIRS[1], receivers=["L2.H1", "L2.mlp"], senders=[["L0.H1", "L0.mlp"]])
    assert result.receivers == ("L2.H1.q", "L2.KV0.k", "L2.KV0.v", "L2.mlp")
    assert result.senders == ("L0.H1 + L0.mlp",)
    assert result.per_example[1] == pytest.approx(single.effects, abs=1e-4)
    assert result.ci_low is None
    assert result.measured_on["clusters"] == len(PAIRS)
    assert AnalysisResult.from_json(result.to_json()) == result


def test_batches_do_not_change_the_effects(tiny_llama):
    told = []
    whole = path_patching(tiny_llama, PAIR, receivers="L2.H1.q")

    parts = path_patching(
        tiny_llama, PAIR, receivers="L2.H1.q", token_budget=33, progress=lambda *p: told.append(p)
    )

    assert parts.effects == pytest.approx(whole.effects, abs=1e-5)
    assert told == [(3, 11), (6, 11), (9, 11), (11, 11)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"receivers": "L2.H9.q"}, "no receiver 'L2.H9.q'"),
        ({"receivers": "L2.H1.k"}, "no receiver 'L2.H1.k'.*KV"),
        ({"receivers": "L7.mlp"}, "no receiver 'L7.mlp'"),
        ({"receivers": "input"}, "no receiver 'input'"),
        ({"receivers": "nonsense"}, "no node"),
        ({"receivers": []}, "no receivers"),
        ({"receivers": "logits", "senders": "nonsense"}, "no node"),
        ({"receivers": "logits", "senders": "L3.H0"}, "no sender L3.H0"),
        ({"receivers": "logits", "senders": "logits"}, "no sender logits"),
        ({"receivers": "logits", "senders": []}, "no senders"),
        ({"receivers": "logits", "positions": 11}, "positions=11"),
        ({"receivers": "logits", "positions": []}, "positions"),
    ],
)
def test_what_does_not_exist_is_refused(tiny_llama, arguments, message):
    with pytest.raises(SweepError, match=message):
        path_patching(tiny_llama, PAIR, **arguments)


def test_prompts_of_different_lengths_are_refused(tiny_llama):
    with pytest.raises(Exception, match="tokens"):
        path_patching(tiny_llama, PromptPair("the cat", "the", "a", "b"), receivers="logits")


def test_the_first_position_counted_from_the_end_is_position_0(model):
    options = {"receivers": "logits", "senders": ["L0.H2"]}
    length = len(model.to_tokens(PAIR.clean)[0])

    from_end = path_patching(model, PAIR, positions=[-length, 5], **options)

    assert from_end.effects == pytest.approx(path_patching(model, PAIR, positions=[0, 5], **options).effects)
    assert from_end.measured_on["positions"] == [0, 5]
