"""One example of every kind of result, and ways to fill all of its fields: with words, with numbers.

A new kind needs one line in `EXAMPLES`; then it is read back, checked against the schema, drawn and set in
pages with hostile text in every field, without a test of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mlxterp import results as r
from mlxterp.errors import ResultError

TOKENS = ("<s>", "The", " Tower", " is")
ON = {"model": "tiny", "prompts": [{"text": "The Tower is"}], "blas": "reference BLAS"}
Path = tuple[Any, ...]


def _matrix(*shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).round(3)


def patching(**changes: Any) -> r.PatchingResult:
    effects = _matrix(3, 4)
    given = {
        "effects": effects,
        "axes": ("layer", "pos"),
        "component": "resid_pre",
        "by": "layer_pos",
        "direction": "denoising",
        "metric": "logit_diff",
        "clean_metric": 4.0,
        "corrupted_metric": -2.0,
        "labels": {"pos": TOKENS},
        "per_example": np.stack([effects, effects]),
        "ci_low": effects - 0.1,
        "ci_high": effects + 0.1,
        "cautions": ("The gap is small.",),
        "measured_on": ON,
    }
    return r.PatchingResult(**(given | changes))


def _ablation() -> r.AblationResult:
    measured = {"value": 1.0, "share": 0.2, "ci": (0.1, 0.3)}
    row = r.AblationRow(label="found heads", components=("L1.H0", "L0.H1"), **measured)
    random = r.AblationRow(label="random 1", components=("L0.H0",), value=3.0, share=0.9, group="random")
    return r.AblationResult(rows=[row, random], ablation="mean", metric="logit_diff", clean_metric=4.0)


def _attention() -> r.AttentionPatternResult:
    weights = np.tril(np.random.default_rng(0).random((2, 4, 4)))
    patterns = weights / weights.sum(-1, keepdims=True)
    heads = ((0, 1), (2, 3))
    return r.AttentionPatternResult(heads=heads, patterns=patterns, tokens=TOKENS, measured_on=ON)


def _circuit() -> r.CircuitResult:
    ends = [("input", "L0.H2", "q"), ("L0.H2", "L1.H1", "k"), ("L1.H1", "logits", "logits")]
    edges = [r.CircuitEdge(sender=a, receiver=b, into=c, effect=0.5) for a, b, c in ends]
    return r.CircuitResult(
        edges=edges,
        method="acdc",
        threshold=0.01,
        metric="kl",
        clean_metric=0.0,
        corrupted_metric=3.0,
        circuit_metric=0.2,
        n_edges=40,
        n_tested=40,
        measured_on=ON,
    )


def _edge_scores() -> r.EdgeScoresResult:
    return r.EdgeScoresResult(
        edges=("input→L0.mlp", "input→logits", "L0.mlp→logits"),
        scores=[0.5, -0.2, 0.1],
        method="eap-ig",
        steps=5,
        metric="logit_diff",
        clean_metric=4.0,
        corrupted_metric=-2.0,
        per_example=_matrix(2, 3),
        ci_low=[0.4, -0.3, 0.0],
        ci_high=[0.6, -0.1, 0.2],
    )


def _lens() -> r.LogitLensResult:
    return r.LogitLensResult(
        answer_probs=_matrix(2, 1) ** 2,
        answer_logits=_matrix(2, 1),
        answer_ranks=[[3.0], [1.0]],
        top_tokens=(((" a", " b"),), ((" Paris", " b"),)),
        top_probs=[[[0.5, 0.1]], [[0.9, 0.05]]],
        answer_token=7,
        answer_token_str=" Paris",
        positions=(3,),
        tokens=TOKENS,
        measured_on=ON,
    )


def attribution(**changes: Any) -> r.LogitAttributionResult:
    heads = _matrix(2, 3)
    given = {
        "head_contributions": heads,
        "attn_contributions": heads.sum(axis=1),
        "mlp_contributions": [2.0, -1.5],
        "embed_contribution": 0.25,
        "bias_contribution": 0.1,
        "total": float(heads.sum()) + 0.85,
        "logit": float(heads.sum()) + 0.85,
        "target_token": 7,
        "target_token_str": " Paris",
        "foil_token": 9,
        "foil_token_str": " Rome",
        "tokens": TOKENS,
    }
    return r.LogitAttributionResult(**(given | changes))


def _neurons() -> r.NeuronAttributionResult:
    return r.NeuronAttributionResult(
        layer=1,
        neurons=(5, 2),
        contributions=[0.5, -0.25],
        activations=[1.5, 2.5],
        n_neurons=16,
        rest=0.1,
        bias=0.0,
        total=0.35,
        target_token=7,
        target_token_str=" Paris",
        foil_token=9,
        foil_token_str=" Rome",
        position=3,
        tokens=TOKENS,
    )


def _paths() -> r.PathPatchingResult:
    return r.PathPatchingResult(
        senders=("L0.H2", "L0.H1 + L1.H0"),
        effects=[0.5, 0.1],
        receivers=("L2.H0.q", "logits"),
        through="mlps",
        metric="logit_diff",
        clean_metric=4.0,
        corrupted_metric=-2.0,
        per_example=_matrix(3, 2),
        ci_low=[0.4, 0.0],
        ci_high=[0.6, 0.2],
    )


def _scores() -> r.HeadScoresResult:
    return r.HeadScoresResult(
        scores={"previous_token": _matrix(2, 3) ** 2, "induction": _matrix(2, 3) ** 2},
        expected={"induction": 0.1},
    )


def _metrics() -> r.MetricsResult:
    row = {"prompt": "The Tower is in", "answer": " Paris", "prob": 0.5, "rank": 1}
    more = {"foil": " Rome", "logit_diff": -2.0, "top_token": " Paris"}
    rows = [r.MetricsRow(**row, **more), r.MetricsRow(**row, run="corrupted")]
    return r.MetricsResult(rows=rows, totals={"gap": 3.5})


def _active_features() -> r.ActiveFeaturesResult:
    return r.ActiveFeaturesResult(
        features=(3, 8),
        maxima=[2.0, 1.0],
        means=[0.5, 0.2],
        sizes=[2.0, 1.0],
        fired=(2, 1),
        at_token=(" Tower", " is"),
        at_text=(0, 0),
        at_position=(2, 3),
        activations=_matrix(2, 4) ** 2,
        tokens=TOKENS,
        n_active=2,
        d_sae=16,
        n_counted=3,
        l0=1.5,
        fvu=0.2,
        hook_point="L1.resid_post",
        measured_on=ON,
    )


def _feature_examples() -> r.FeatureExamplesResult:
    example = r.FeatureExample(feature=3, activation=2.0, tokens=TOKENS, peak=2, document=0, position=2)
    return r.FeatureExamplesResult(
        features=(3, 8),
        examples=[example],
        densities=[0.01, 0.0],
        maxima=[2.0, 0.0],
        n_tokens=100,
        n_documents=4,
        forwards=1,
        hook_point="L1.resid_post",
    )


def _faithfulness() -> r.AnalysisResult:
    rows = [
        {"label": "the circuit", "n_edges": 8, "value": 3.0, "faithfulness": 0.8, "ci": (0.7, 0.9)},
        {"label": "random 1", "n_edges": 8, "value": 0.2, "faithfulness": 0.1, "group": "random"},
    ]
    numbers = {"clean_metric": 4.0, "corrupted_metric": -2.0, "n_edges": 40}
    return r.FaithfulnessResult(rows=rows, metric="logit_diff", **numbers)


def _feature_circuit() -> r.FeatureCircuitResult:
    nodes = [
        r.FeatureNode(hook_point="L0.resid_post", feature=3, effect=0.5, ci=(0.4, 0.6)),
        r.FeatureNode(hook_point="L1.resid_post", feature=None, effect=-0.2),
    ]
    edges = [
        r.FeatureEdge(sender="L0.resid_post/f3", receiver="L1.resid_post/error", weight=0.3),
        r.FeatureEdge(sender="L1.resid_post/error", receiver="metric", weight=-0.2),
    ]
    return r.FeatureCircuitResult(
        nodes=nodes,
        edges=edges,
        hook_points=("L0.resid_post", "L1.resid_post"),
        method="ig",
        node_threshold=0.1,
        edge_threshold=0.01,
        metric="logit_diff",
        clean_metric=4.0,
        circuit_metric=3.0,
        empty_metric=0.5,
        rest_metric=1.0,
        n_nodes=12,
        n_left_out=1,
        ablation="zero",
    )


def _feature_effects() -> r.FeatureEffectsResult:
    return r.FeatureEffectsResult(
        features=(3, 8),
        effects=[0.5, 0.0],
        fired=(2, 0),
        maxima=[2.0, 0.0],
        controls=_matrix(2, 4) / 10,
        percentiles=[1.0, math.nan],
        ablation="zero",
        metric="kl",
        clean_metric=0.0,
        hook_point="L1.resid_post",
        inactive_controls=True,
        per_example=_matrix(2, 2),
        ci_low=[0.4, 0.0],
        ci_high=[0.6, 0.0],
    )


def _feature_attribution() -> r.FeatureAttributionResult:
    return r.FeatureAttributionResult(
        features=(3, 8),
        scores=[0.5, -0.1],
        error_score=0.05,
        method="ig",
        steps=8,
        ablation="zero",
        metric="logit_diff",
        clean_metric=4.0,
        ablated_metric=4.4,
        hook_point="L1.resid_post",
        per_example=_matrix(2, 2),
        ci_low=[0.4, -0.2],
        ci_high=[0.6, 0.0],
    )


def _feature_labels() -> r.AnalysisResult:
    score = {"balanced_accuracy": 0.9, "interval": [0.8, 0.95], "auroc": None}
    label = {
        "feature_id": 3,
        "label": 'token " Tower"',
        "description": "fires at landmarks",
        "status": "ok",
        "confidence": 0.97,
        "density": 0.01,
        "sensitivity_passed": True,
        "sensitivity_details": "19 of 20",
        "scores": {"rule": score},
        "error": None,
    }
    dead = {"feature_id": 8, "label": None, "status": "dead", "confidence": 0.0}
    return r.FeatureLabelsResult(labels=(label, dead), measured_on=ON)


def _generation() -> r.AnalysisResult:
    words = {"prompt": "The Tower is", "text": " in Paris", "token_texts": (" in", " Paris")}
    ids = {"prompt_tokens": (1, 2, 3), "tokens": (4, 5)}
    return r.GenerationResult(**words, **ids, logprobs=[-0.5, -1.25], stopped="length")


def _sae_quality() -> r.AnalysisResult:
    measured = {"fvu": 0.2, "l0": 32.0, "dead": 0.1, "ce_recovered_zero": 0.95, "ce_recovered_mean": 0.9}
    rows = [{"name": name, "value": v, "low": v - 0.01, "high": v + 0.01} for name, v in measured.items()]
    density = [0.0, 0.01, 0.2, 0.001]
    return r.SAEQualityResult(rows=rows, density=density, tokens=1000, documents=10, measured_on=ON)


def _turn_patching() -> r.AnalysisResult:
    return r.TurnPatchingResult(
        effects=_matrix(3, 2),
        roles=("user", "assistant"),
        texts=("Where is the Tower?", "In Paris."),
        spans=((2, 7), (9, 12)),
        layers=(0, 1, 2),
        component="resid_pre",
        direction="noising",
        metric="logit_diff",
        clean_metric=4.0,
        corrupted_metric=-2.0,
    )


def _causal_tracing() -> r.CausalTracingResult:
    effects = _matrix(3, 4)
    return r.CausalTracingResult(
        effects=effects,
        layers=(0, 1, 2),
        columns=TOKENS,
        positions=(0, 1, 2, 3),
        subject=(1, 2),
        component="mlp_out",
        window=3,
        metric="prob",
        clean_metric=0.9,
        corrupted_metric=0.1,
        noise_std=0.3,
        n_samples=10,
        ci_low=effects - 0.1,
        ci_high=effects + 0.1,
    )


def _workflow() -> r.WorkflowResult:
    steps = [
        r.Step("dla", attribution(), "MLPs write most. They are late.", ("One prompt.",)),
        r.Step("patch_mlp", patching()),
    ]
    return r.WorkflowResult(
        name="behavior_localization",
        question="Where is it?",
        steps=steps,
        conclusion="It is in layer 1.",
        cautions=("Two prompts.",),
        components_from=("dla",),
        measured_on=ON,
    )


EXAMPLES: dict[str, Callable[[], r.AnalysisResult]] = {
    "ablation": _ablation,
    "active_features": _active_features,
    "attention_pattern": _attention,
    "causal_tracing": _causal_tracing,
    "circuit": _circuit,
    "edge_scores": _edge_scores,
    "faithfulness": _faithfulness,
    "feature_attribution": _feature_attribution,
    "feature_circuit": _feature_circuit,
    "feature_effects": _feature_effects,
    "feature_examples": _feature_examples,
    "feature_labels": _feature_labels,
    "generation": _generation,
    "head_scores": _scores,
    "logit_attribution": attribution,
    "logit_lens": _lens,
    "metrics": _metrics,
    "neuron_attribution": _neurons,
    "patching": patching,
    "path_patching": _paths,
    "sae_quality": _sae_quality,
    "turn_patching": _turn_patching,
    "workflow": _workflow,
}


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value inside plain values, with the way to it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from leaves(item, (*path, i))
    else:
        yield path, value


def replaced(value: Any, path: Path, new: Any) -> Any:
    """Plain values with another one at the end of this way."""
    if not path:
        return new
    first, *rest = path
    if isinstance(value, Mapping):
        return {k: replaced(item, tuple(rest), new) if k == first else item for k, item in value.items()}
    return [replaced(item, tuple(rest), new) if i == first else item for i, item in enumerate(value)]


def with_words(result: r.AnalysisResult, words: Iterator[str], *, shown: bool = True) -> r.AnalysisResult:
    """The result with a new word in every field that takes any word, and in what it was measured on.

    A field that takes only some words (a direction, a method, the name of an edge) refuses by ResultError and
    keeps its own. Any other error is one of the kind's.
    """
    for path, value in list(leaves(result.to_dict())):
        if isinstance(value, str) and path[-1] not in ("kind", "schema"):
            word = next(words)
            for new in (word, f"{word} {len(path)}{path[-1]}"):  # some fields hold each word once
                try:
                    changed = r.AnalysisResult.from_dict(replaced(result.to_dict(), path, new))
                    if shown:
                        changed.section()
                except ResultError:
                    continue
                result = changed
                break
    word = next(words)
    data = result.to_dict()
    more = {word: next(words), "prompts": [next(words)], "model": next(words)}
    return r.AnalysisResult.from_dict(data | {"measured_on": data["measured_on"] | more})


def with_numbers(result: r.AnalysisResult, numbers: Iterator[float]) -> r.AnalysisResult:
    """The result with a new number wherever there is one that is no count; refusals as in `with_words`."""
    for name, value in result.to_dict().items():
        changed = value
        for path, leaf in leaves(value):
            if isinstance(leaf, float):
                changed = replaced(changed, path, next(numbers))
        try:
            result = r.AnalysisResult.from_dict(result.to_dict() | {name: changed})
        except ResultError:
            continue
    return result


def rotated(words: list[str], by: int) -> Iterator[str]:
    """The words again and again, beginning with the one at `by`."""
    return itertools.cycle(words[by % len(words) :] + words[: by % len(words)])
