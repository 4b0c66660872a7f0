"""The guide's own example on a real model: identities, and a head that another library finds too."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.causal import activation_patching, direct_logit_attribution
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import PromptPairError

CLEAN, CORRUPTED = "The Eiffel Tower is located in the city of", "The Colosseum is located in the city of"
TARGETS = {"answer": " Paris", "foil": " Rome"}


@pytest.fixture(scope="module")
def smollm2() -> InterpretableModel:
    return InterpretableModel("smollm2-135m")


def test_the_last_residual_recovers_the_city_at_the_last_token_and_nothing_before(smollm2):
    result = activation_patching(
        smollm2, CLEAN, CORRUPTED, component="resid_post", by="layer_pos", layers=[-1], **TARGETS
    )

    assert result.clean_metric > 0 > result.corrupted_metric
    assert result.effects[0] == pytest.approx(np.eye(10)[9], abs=1e-4)


def test_the_head_that_carries_the_city_recovers_what_transformer_lens_measures(smollm2):
    """0.565 for L23.H4: TransformerLens 4.3.0 on the same dequantised weights, float32."""
    result = activation_patching(smollm2, CLEAN, CORRUPTED, component="z", layers=[23], **TARGETS)

    assert result.top_components(1)[0].label == "L23.H4"
    assert result.effects[0, 4] == pytest.approx(0.565, abs=1e-3)


def test_the_attribution_adds_up_to_the_logits(smollm2):
    difference = direct_logit_attribution(smollm2, CLEAN, **TARGETS)
    single = direct_logit_attribution(smollm2, CLEAN, answer=" Paris")

    assert difference.total == pytest.approx(difference.logit, abs=1e-4)
    assert single.total == pytest.approx(12.84, abs=0.01)
    assert difference.head_contributions.sum(axis=1) == pytest.approx(difference.attn_contributions, abs=1e-4)


def test_the_tower_patched_into_itself_is_refused(smollm2):
    with pytest.raises(PromptPairError, match="the same 10 tokens"):
        activation_patching(smollm2, CLEAN, CLEAN, **TARGETS)
