"""SmolLM2-135M as TransformerLens measures it: activations, patching sweeps and logit attribution.

`tests/data/golden_smollm2.npz` holds what transformer-lens (its `versions`) gives on the same dequantised
float32 weights, for three pairs. NaN: not computed there. Only arrays are kept, none of its code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlxterp.causal import activation_patching, direct_logit_attribution
from mlxterp.core.model import InterpretableModel
from tests.rounding import UNIT

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "golden_smollm2.npz")
DOT_PRODUCTS = 30 * (4 * 576 + 2 * 576 + 1536 + 64 + 14) + 576
"""The lengths of all dot products that a logit runs through: q, k, v, o, gate, up, down, scores and pattern
of 30 layers, and the unembedding. Independent rounding errors of such a chain grow as its square root (Higham
and Mary 2019), in relative terms; twice, because the reference is float32 too."""
LAYERS = (0, 7, 15, 23, 29)
ROUNDING = UNIT * 2 * DOT_PRODUCTS**0.5
EVERY = 48  # of the logits, one in so many is kept


@pytest.fixture(scope="module")
def smollm2() -> InterpretableModel:
    return InterpretableModel("smollm2-135m")


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    prefix = f"{request.param}/"
    return {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN.files if key.startswith(prefix)}


def prompts(pair: dict[str, np.ndarray]) -> dict[str, object]:
    answer, foil = (int(token) for token in pair["targets"])
    return {
        "clean": pair["clean"].tolist(),
        "corrupted": pair["corrupted"].tolist(),
        "answer": answer,
        "foil": foil,
    }


every_pair = pytest.mark.parametrize("pair", ["tower", "ioi", "capital"], indirect=True)
slow_pairs = pytest.mark.parametrize(
    "pair",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("tower", "ioi")), "capital"],
    indirect=True,
)


@every_pair
def test_logits_residual_stream_heads_and_patterns_are_those_of_transformer_lens(smollm2, pair):
    names = ("resid_pre", "z", "pattern")
    trace = smollm2.trace(
        pair["clean"].tolist(), capture=[f"L{la}.{name}" for la in LAYERS for name in names]
    )

    logits = np.array(trace.logits)[0, -1]
    seen = {"logits_centred": (logits - logits.mean())[::EVERY]}
    for la in LAYERS:
        seen[f"resid_pre{la}"] = np.array(trace[f"L{la}.resid_pre"])[0, -1]
        seen[f"z{la}"] = np.array(trace[f"L{la}.z"])[0, -1]
        seen[f"pattern{la}"] = np.array(trace[f"L{la}.pattern"])[0]
    for name, found in seen.items():
        # Two float32 runs of one network: their difference is small as a vector, not in each small element.
        error = np.linalg.norm(found - pair[name]) / np.linalg.norm(pair[name])
        assert error <= ROUNDING, (name, error)


@slow_pairs
@pytest.mark.parametrize(
    ("component", "by", "golden"),
    [("resid_pre", "layer_pos", "resid_sweep"), ("z", "layer_head", "head_sweep")],
)
def test_sweeps_are_those_of_transformer_lens(smollm2, pair, component, by, golden):
    computed = ~np.isnan(pair[golden]).any(axis=1)
    layers = np.flatnonzero(computed).tolist()

    result = activation_patching(smollm2, component=component, by=by, layers=layers, **prompts(pair))

    expected = pair[golden][computed]
    assert (result.clean_metric, result.corrupted_metric) == pytest.approx(tuple(pair["baselines"]), abs=5e-4)
    assert result.effects == pytest.approx(expected, abs=1e-4)
    assert np.abs(expected).max() > 0.05


@every_pair
def test_the_heads_direct_contributions_are_those_of_transformer_lens(smollm2, pair):
    answer, foil = (int(token) for token in pair["targets"])

    result = direct_logit_attribution(smollm2, pair["clean"].tolist(), answer=answer, foil=foil)

    assert result.head_contributions == pytest.approx(pair["dla_heads"], abs=1e-4)
