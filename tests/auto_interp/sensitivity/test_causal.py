"""The causal part of `sensitivity_test`: a model whose logits read known directions, and features that write
along them, beside them, or not at all."""

from __future__ import annotations

import dataclasses

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.auto_interp import FeatureLabel, sensitivity_test
from mlxterp.auto_interp.promoted_tokens import promoted_ids, promotion
from mlxterp.auto_interp.sensitivity import causal
from mlxterp.core.interventions import add
from mlxterp.errors import LabelingError
from mlxterp.metrics import kl, log_softmax
from mlxterp.sae.feature_store.build import build_store
from mlxterp.sae.sae import SAE, JumpRelu
from tests.auto_interp import planted as words
from tests.sae.planted import LOWER, NOTHING, ONLY_A, ONLY_C, READ, ROTATION, YES, D, planted_model

PROMOTES, UNREAD, NOTHING_WRITTEN, SILENT = range(4)
N_RANDOM = 26
YES_TEXTS = [[NOTHING, NOTHING, ONLY_A]] * 6 + [[NOTHING, ONLY_A]] * 6
NO_TEXTS = [[NOTHING, NOTHING, ONLY_C]] * 10


@pytest.fixture(scope="module")
def known():
    return planted_model()


def planted_sae(*, scale: float = 1.0) -> SAE:
    """All features but one fire where a' is. The first writes what the logit of YES reads, the second what
    nothing reads, the third nothing; the fourth never fires; others write in random directions."""
    reads_a = ROTATION[:, LOWER.start]
    random = np.random.default_rng(5).normal(size=(N_RANDOM, D))
    rows = np.concatenate(
        [reads_a[None], ROTATION[:, LOWER.start + 2][None], np.zeros((1, D)), reads_a[None], random]
    )
    n = len(rows)
    bias = np.zeros(n)
    bias[SILENT] = -100.0
    return SAE(
        W_enc=mx.array(np.tile(scale * reads_a[:, None], (1, n)).astype(np.float32)),
        b_enc=mx.array((scale * bias).astype(np.float32)),
        W_dec=mx.array((rows / scale).astype(np.float32)),
        b_dec=mx.zeros(D),
        activation=JumpRelu(mx.full(n, 1e-3 * scale)),
        hook_point="L1.resid_post",
        model="planted",
    )


def outcome(known, feature: int, *, sae: SAE | None = None, yes=YES_TEXTS, no=NO_TEXTS, **options):
    label = FeatureLabel(feature_id=feature, label="a'")
    options = {"causal": True} | options
    return sensitivity_test(known, sae or planted_sae(), label, positives=yes, negatives=no, **options)


def close(found, expected, rel: float) -> bool:
    numbers = [name for name, value in expected.items() if isinstance(value, float)]
    others = set(expected) - set(numbers)
    return all(found[name] == pytest.approx(expected[name], rel=rel, abs=1e-9) for name in numbers) and all(
        found[name] == expected[name] for name in others
    )


def test_a_feature_that_writes_what_a_token_reads_is_causal(known):
    label = outcome(known, PROMOTES)
    found = label.sensitivity["causal"]

    assert label.sensitivity_passed is True
    assert found["passed"] is True
    assert found["promoted_tokens"] == ["<4>"]
    assert found["promoted_removed"] < 0 < found["promoted_added"]
    assert min(found["promoted_removed_percentile"], found["promoted_added_percentile"]) >= 0.95
    assert found["kl_removed_percentile"] >= 0.95
    assert (found["n"], found["controls"]) == (12, 20)
    assert "Causal: yes. On 12 positives, beside 20 random features" in label.sensitivity_details


@pytest.mark.parametrize("feature", [UNREAD, NOTHING_WRITTEN])
def test_a_feature_whose_direction_nothing_reads_is_not_though_it_fires_as_its_label_says(known, feature):
    label = outcome(known, feature)
    found = label.sensitivity["causal"]

    assert label.sensitivity_passed is True
    assert found["passed"] is False
    assert found["kl_removed"] == pytest.approx(0, abs=1e-9)
    assert found.get("promoted_added", 0.0) == pytest.approx(0, abs=1e-6)
    assert "Causal: not shown." in label.sensitivity_details


def test_the_numbers_are_those_of_runs_with_the_feature_taken_out_and_added(known):
    found = outcome(known, PROMOTES).sensitivity["causal"]
    sae, tokens = planted_sae(), np.array([[NOTHING, ONLY_A]])
    logits, seen = known.run(tokens, capture=sae.point)
    amount = float(sae.encode(seen[sae.point])[0, -1, PROMOTES])

    for name, sign in (("removed", -1), ("added", 1)):
        vector = sign * amount * sae.W_dec[PROMOTES]
        edited, _ = known.run(tokens, interventions=[add(sae.point, vector, positions=-1)])
        before, after = (np.array(each)[:, -1] for each in (logits, edited))
        rise = (log_softmax(after) - log_softmax(before))[0, YES]
        assert found[f"promoted_{name}"] == pytest.approx(rise, rel=1e-4)
        assert found[f"kl_{name}"] == pytest.approx(kl(after, before)[0], rel=1e-4)
    assert amount * READ[0] > 1  # not all of it is rounding


def test_random_features_have_the_norm_of_the_one_that_is_tested(known):
    """Decoder rows of the others a thousand times as long change nothing."""
    sae = planted_sae()
    longer = mx.where(mx.arange(sae.d_sae) == PROMOTES, 1.0, 1000.0)[:, None]

    found = outcome(known, PROMOTES, sae=dataclasses.replace(sae, W_dec=sae.W_dec * longer))

    assert close(found.sensitivity["causal"], outcome(known, PROMOTES).sensitivity["causal"], 1e-4)


@pytest.mark.parametrize("scale", [1e-2, 50.0])
def test_the_scale_of_the_sae_does_not_matter(known, scale):
    found = outcome(known, PROMOTES, sae=planted_sae(scale=scale)).sensitivity["causal"]

    assert close(found, outcome(known, PROMOTES).sensitivity["causal"], 1e-3)


def test_with_too_few_positives_at_which_it_fires_there_is_no_outcome(known):
    few = outcome(known, PROMOTES, yes=YES_TEXTS[:5])
    silent = outcome(known, SILENT)

    assert few.sensitivity_passed is None
    assert few.sensitivity["causal"]["passed"] is None
    assert "Causal: not tested, it fires on 5 positives, 8 are needed." in few.sensitivity_details
    assert silent.sensitivity["causal"]["passed"] is None
    assert silent.sensitivity["causal"]["n"] == 0


def test_beside_too_few_random_features_there_is_no_outcome(known):
    label = outcome(known, PROMOTES, controls=18)

    assert label.sensitivity["causal"]["promoted_added_percentile"] == 1.0
    assert label.sensitivity["causal"]["passed"] is None
    assert "Causal: undecided, for 19 random features are needed. On 12" in label.sensitivity_details
    assert outcome(known, PROMOTES, controls=19).sensitivity["causal"]["passed"] is True


def test_it_stands_beside_the_outcome_and_is_left_out_unless_asked_for(known):
    with_it, without = (outcome(known, UNREAD, causal=causal) for causal in (True, False))

    assert with_it.sensitivity_passed is without.sensitivity_passed is True
    assert "causal" not in without.sensitivity
    assert with_it.sensitivity_details.startswith(without.sensitivity_details)
    with pytest.raises(LabelingError, match="controls=0"):
        outcome(known, UNREAD, controls=0)


def test_it_can_be_kept_and_read_again(known):
    import json

    label = outcome(known, PROMOTES, controls=5)

    assert FeatureLabel.from_dict(json.loads(json.dumps(label.to_dict()))) == label
    assert label.sensitivity["causal"]["controls"] == 5


def test_where_the_label_is_a_rule_the_tokens_at_which_it_holds_are_looked_at(known, labels, held_out):
    toy, sae = words.toy(), words.planted_sae()
    for label in [each for each in labels if each.label is not None][:3]:
        found = sensitivity_test(toy, sae, label, store=held_out, causal=True, controls=6)

        assert found.sensitivity["causal"]["n"] == 24
        assert found.sensitivity_passed is True


def test_promoted_ids_are_the_tokens_that_promotion_names():
    toy, sae = words.toy(), words.planted_sae()
    rows = np.random.default_rng(0).normal(size=sae.W_dec.shape).astype(np.float32)
    random = dataclasses.replace(sae, W_dec=mx.array(rows))
    for feature in (0, 41, 120):
        names = [token for token, _ in promotion(toy, random, [feature], k=5).promoted[feature]]

        assert [toy.to_str_tokens([int(i)])[0] for i in promoted_ids(toy, random, feature, k=5)] == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::mlxterp.errors.TrainingTexts")  # effects are asked for, not a fair test
def test_on_smollm2_features_of_the_sae_that_ships():
    from mlxterp.auto_interp import auto_label_features
    from mlxterp.core.model import InterpretableModel
    from mlxterp.datasets import sample_texts
    from mlxterp.sae import bundled_sae

    smol, sae, texts = InterpretableModel("smollm2-135m"), bundled_sae(), sample_texts(60)
    store = build_store(smol, sae, texts)
    labels = auto_label_features(smol, sae, store=store, top_k_features=40, llm=None)
    named = [label for label in labels if label.label is not None][:3]

    for label in named:
        found = sensitivity_test(smol, sae, label, store=store, causal=True).sensitivity["causal"]

        assert found["n"] >= 8
        assert found["kl_removed"] > 1e-6
        assert found["kl_added"] > 1e-6


@pytest.mark.parametrize(
    ("percentile", "removed", "passes"),
    [(0.95, -0.1, True), (np.nextafter(0.95, 0), -0.1, False), (0.95, 0.1, False), (0.95, 0.0, False)],
    ids=["at the bar", "below the bar", "the wrong way", "no change"],
)
def test_a_feature_is_causal_from_the_95th_percentile_on_and_in_the_right_direction(
    percentile, removed, passes
):
    found = {
        "promoted_removed": removed,
        "promoted_added": 0.1,
        "promoted_removed_percentile": percentile,
        "promoted_added_percentile": 1.0,
    }

    assert causal._passed(found) is passes
