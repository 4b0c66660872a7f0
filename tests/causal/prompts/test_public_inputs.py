"""Every public function and workflow takes wrong or unusual inputs as a clear error, or simply works."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxterp import InterpretableModel, causal, sae, workflows
from mlxterp.causal import PromptPair, TracedPrompt
from mlxterp.errors import MlxterpError

CLEAN, CORRUPTED = "Mary went", "John went"
TARGETS = {"answer": "h", "foil": "m"}
CIRCUIT = ["input→L0.H0.q", "input→L0.KV0.k", "L0.H0→logits", "input→logits"]


def sae_of(width: int) -> sae.SAE:
    keys = mx.random.split(mx.random.key(0), 2)
    return sae.SAE(
        W_enc=mx.random.normal((width, 16), key=keys[0]),
        b_enc=mx.zeros(16),
        W_dec=mx.random.normal((16, width), key=keys[1]),
        b_dec=mx.zeros(width),
        activation=sae.Relu(),
        hook_point="L1.resid_pre",
        model="tiny",
    )


SAE = sae_of(32)

ON_TWO_PROMPTS: dict[str, Callable[..., Any]] = {
    "activation_patching": lambda m, c, x, **o: causal.activation_patching(m, c, x, component="z", **o),
    "activation_patchings": lambda m, c, x, **o: causal.activation_patchings(
        m, c, x, sweeps=[("z", None)], **o
    )[0],
    "attribution_patching": lambda m, c, x, **o: causal.attribution_patching(m, c, x, component="z", **o),
    "attribution_patchings": lambda m, c, x, **o: causal.attribution_patchings(m, c, x, **o)[0],
    "edge_attribution": causal.edge_attribution,
    "path_patching": lambda m, c, x, **o: causal.path_patching(
        m, c, x, receivers="logits", senders=["L1.H0"], **o
    ),
    "acdc": lambda m, c, x, **o: causal.acdc(m, c, x, threshold=10.0, **o),
    "behavior_localization": lambda m, c, x, **o: workflows.behavior_localization(
        m, c, x, steps=["patch_mlp"], **o
    ),
    "circuit_discovery": lambda m, c, x, **o: workflows.circuit_discovery(
        m, c, x, steps=["attribution"], **o
    ),
}
"""Functions of a clean and a corrupted prompt."""

ON_PAIRS: dict[str, Callable[..., Any]] = {
    "behaviour": causal.behaviour,
    "ablate": lambda m, p, **o: causal.ablate(m, p, ["L1.H1"], kind="resample", **o),
    "faithfulness": lambda m, p, **o: causal.faithfulness(m, p, CIRCUIT, **o),
    "faithfulnesses": lambda m, p, **o: causal.faithfulnesses(m, p, [CIRCUIT], **o),
    "completeness": lambda m, p, **o: causal.completeness(m, p, CIRCUIT, samples=1, greedy=1, **o),
    "minimality": lambda m, p, **o: causal.minimality(m, p, CIRCUIT, samples=1, **o),
    "faithfulness_curve": lambda m, p, **o: causal.faithfulness_curve(
        m, p, np.arange(float(causal.graph_of(m).n_edges)), sizes=[0.5, 1.0], **o
    ),
    "feature_effects": lambda m, p, **o: sae.feature_effects(m, SAE, p, controls=1, **o),
    "feature_attribution": lambda m, p, **o: sae.feature_attribution(m, SAE, p, **o),
    "feature_circuit": lambda m, p, **o: sae.feature_circuit(m, [SAE], p, **o),
}
"""Functions of PromptPair values."""

ON_A_TEXT: dict[str, Callable[..., Any]] = {
    "direct_logit_attribution": causal.direct_logit_attribution,
    "direct_logit_neurons": lambda m, c: causal.direct_logit_neurons(m, c, layer=1),
    "logit_lens": causal.logit_lens,
    "tuned_lens": lambda m, c: causal.tuned_lens(
        m, c, causal.identity_lens(m) if isinstance(m, InterpretableModel) else None
    ),
    "attention_patterns": causal.attention_patterns,
    "causal_tracing": lambda m, c: causal.causal_tracing(m, c, [2], samples=2, metric="logit"),
}
"""Functions of one text."""

ON_TEXTS: dict[str, Callable[..., Any]] = {
    "train_tuned_lens": lambda m, c: causal.train_tuned_lens(m, [c, c], steps=1),
    "ablate prompts": lambda m, c: causal.ablate(m, c, ["L1.H1"], kind="zero", metric="prob", answer="h"),
    "active_features": lambda m, c: sae.active_features(m, SAE, c),
    "feature_investigation": lambda m, c: workflows.feature_investigation(m, SAE, c, controls=1),
}
"""Functions of a text that also take several."""

ON_A_MODEL: dict[str, Callable[..., Any]] = {
    "attention_scores": causal.attention_scores,
    "random_head_sets": lambda m: causal.random_head_sets(m, 1, 1),
    "graph_of": causal.graph_of,
    "all_edges": causal.all_edges,
    "identity_lens": causal.identity_lens,
    "check_prompts": lambda m: workflows.check_prompts(m, "prompts.csv"),
}

NO_PROMPTS = ["", 123, 4.5, None, {"text": "a"}, []]


def of_two(run: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, c, x, **o: run(m, PromptPair(c, x, **TARGETS), **o)


PAIRED: dict[str, Callable[..., Any]] = {
    **{
        name: lambda m, c, x, run=run, **o: run(m, c, x, **{**TARGETS, **o})
        for name, run in ON_TWO_PROMPTS.items()
    },
    **{name: of_two(run) for name, run in ON_PAIRS.items()},
}


def test_every_public_function_of_a_model_is_among_them():
    known = {*ON_TWO_PROMPTS, *ON_PAIRS, *ON_A_TEXT, *ON_TEXTS, *ON_A_MODEL}

    for package in (causal, workflows):
        for name in package.__all__:
            function = getattr(package, name)
            if inspect.isfunction(function) and next(iter(inspect.signature(function).parameters)) == "model":
                assert name in known, f"{name} is public, and no test gives it wrong inputs"


@pytest.mark.parametrize("name", sorted({*PAIRED, *ON_A_TEXT, *ON_TEXTS, *ON_A_MODEL}))
def test_a_name_in_place_of_a_model_is_refused_with_the_call_that_loads_it(name):
    run = PAIRED.get(name) or {**ON_A_TEXT, **ON_TEXTS}.get(name) or ON_A_MODEL[name]
    prompts = (CLEAN, CORRUPTED) if name in PAIRED else () if name in ON_A_MODEL else (CLEAN,)

    with pytest.raises(MlxterpError, match=r"InterpretableModel\('toy-induction'\)"):
        run("toy-induction", *prompts)


@pytest.mark.parametrize("given", NO_PROMPTS, ids=repr)
@pytest.mark.parametrize("name", sorted(PAIRED))
def test_what_is_no_prompt_of_a_pair_is_refused(tiny_llama, name, given):
    for prompts in ((given, CORRUPTED), *(((CLEAN, given),) if given is not None else ())):
        with pytest.raises(MlxterpError):
            PAIRED[name](tiny_llama, *prompts)


@pytest.mark.parametrize("given", [*NO_PROMPTS, "no-such-file.csv"], ids=repr)
def test_what_is_no_file_of_prompts_is_refused(tiny_llama, given):
    with pytest.raises(MlxterpError):
        workflows.check_prompts(tiny_llama, given)


@pytest.mark.parametrize("given", NO_PROMPTS, ids=repr)
@pytest.mark.parametrize("name", sorted({**ON_A_TEXT, **ON_TEXTS}))
def test_what_is_no_text_is_refused(tiny_llama, name, given):
    with pytest.raises(MlxterpError):
        {**ON_A_TEXT, **ON_TEXTS}[name](tiny_llama, given)


@pytest.mark.parametrize("name", sorted(ON_TWO_PROMPTS))
def test_lists_of_prompts_are_pairs_in_their_order(tiny_llama, name):
    several = ON_TWO_PROMPTS[name](tiny_llama, [CLEAN, CLEAN], [CORRUPTED, CORRUPTED], **TARGETS)
    one = ON_TWO_PROMPTS[name](tiny_llama, CLEAN, CORRUPTED, **TARGETS)

    assert len(several.measured_on["prompts"]) == 2
    for a, b in zip(several.components()[:20], one.components()[:20], strict=True):
        assert a.effect == pytest.approx(b.effect, abs=1e-4)


@pytest.mark.parametrize("prepend_bos", [False, "a"], ids=["without", "with"])
@pytest.mark.parametrize("name", sorted({*PAIRED, *ON_A_TEXT, *ON_TEXTS} - {"train_tuned_lens"}))
def test_every_result_records_whether_a_token_stands_in_front_of_the_prompts(tiny_llama, name, prepend_bos):
    model = InterpretableModel(tiny_llama.model, tiny_llama.tokenizer, prepend_bos=prepend_bos, verify=False)
    prompts = (CLEAN, CORRUPTED) if name in PAIRED else (CLEAN,)
    run = PAIRED.get(name) or {**ON_A_TEXT, **ON_TEXTS}[name]

    result = run(model, *prompts)

    if hasattr(result, "measured_on"):
        assert result.measured_on["prepend_bos"] is bool(prepend_bos)


@pytest.mark.parametrize("given", [[CLEAN, CLEAN], [[1, 2], [3, 4]]], ids=["texts", "ids"])
@pytest.mark.parametrize("name", sorted(ON_A_TEXT))
def test_several_texts_where_one_is_taken_are_refused_and_never_joined(tiny_llama, name, given):
    with pytest.raises(MlxterpError, match=r"one prompt is expected|as an array|nothing but TracedPrompt"):
        ON_A_TEXT[name](tiny_llama, given)


def test_several_traced_prompts_are_what_tracing_takes(tiny_llama):
    several = [TracedPrompt(CLEAN, (1,)), TracedPrompt(CORRUPTED, (2,))]

    assert causal.causal_tracing(tiny_llama, several, samples=2, metric="logit").n_prompts == 2


@pytest.mark.parametrize(
    "run",
    [
        lambda m: causal.activation_patching(m, CLEAN, CORRUPTED, component="z", layers=1, **TARGETS),
        lambda m: causal.activation_patching(m, CLEAN, CORRUPTED, component="z", positions=1, **TARGETS),
        lambda m: causal.attribution_patching(m, CLEAN, CORRUPTED, component="z", layers=1, **TARGETS),
        lambda m: causal.attention_patterns(m, CLEAN, layers=1),
        lambda m: causal.attention_patterns(m, CLEAN, heads=1),
        lambda m: causal.causal_tracing(m, CLEAN, [2], layers=1, metric="logit"),
        lambda m: causal.logit_lens(m, CLEAN, positions=1),
    ],
)
def test_one_number_where_a_list_is_taken_is_refused_with_the_list(tiny_llama, run):
    with pytest.raises(
        MlxterpError, match=r"is one number. Pass a list, as in (layers|positions|heads)=\[1\]"
    ):
        run(tiny_llama)


def surprise_in_mlx(logits):
    return mx.logsumexp(logits, axis=-1) - logits[:, 104]


def surprise_in_numpy(logits):
    return np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[:, 104]


@pytest.mark.parametrize("name", sorted(set(PAIRED) - {"behaviour"}))
def test_a_metric_may_be_written_with_mlx(tiny_llama, name):
    """Gradient methods need one that is; every other function takes either."""
    by_mlx = PAIRED[name](tiny_llama, CLEAN, CORRUPTED, metric=surprise_in_mlx)
    if any(word in name for word in ("attribution", "circuit")):
        return
    by_numpy = PAIRED[name](tiny_llama, CLEAN, CORRUPTED, metric=surprise_in_numpy)

    if hasattr(by_mlx, "components"):
        for a, b in zip(by_mlx.components(), by_numpy.components(), strict=True):
            assert a.effect == pytest.approx(b.effect, abs=1e-3)


def test_a_metric_that_takes_neither_kind_of_array_is_refused_by_its_own_error(tiny_llama):
    def broken(logits):
        return logits.no_such_thing

    with pytest.raises(MlxterpError, match=r"broken: called with float32 logits of shape \(1, 128\)"):
        causal.activation_patching(tiny_llama, CLEAN, CORRUPTED, component="z", metric=broken)


def test_metrics_get_float32_numpy_logits(tiny_llama):
    seen = []

    def look(logits):
        seen.append((type(logits), logits.dtype, logits.shape[1]))
        return logits[:, 104] - logits[:, 109]

    causal.activation_patching(tiny_llama, CLEAN, CORRUPTED, component="z", layers=[1], metric=look)

    assert set(seen) == {(np.ndarray, np.dtype(np.float32), 128)}
