"""Metrics against hand computed values and the identities they must satisfy."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from mlxterp import metrics
from mlxterp.errors import MetricError
from mlxterp.metrics import METRICS, Targets, from_callable, recovered, resolve

# Probabilities of two small distributions, so that every expected value can be written down.
P = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], dtype=np.float32))
Q = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]], dtype=np.float32))
TARGETS = Targets(answers=np.array([0, 2]), foils=np.array([1, 1]), clean_logits=P)


def test_logit_diff_is_the_answers_logit_minus_the_foils():
    assert metrics.logit_diff(P, [0, 2], [1, 1]) == pytest.approx([math.log(2), math.log(3.5)], abs=1e-6)


def test_prob_and_log_prob_are_the_softmax_at_the_answer_whatever_is_added_to_the_logits():
    assert metrics.prob(P + 7, [0, 2]) == pytest.approx([0.5, 0.7], abs=1e-6)
    assert metrics.log_prob(P - 3, [0, 2]) == pytest.approx([math.log(0.5), math.log(0.7)], abs=1e-6)


def test_rank_counts_from_one_for_the_models_first_choice():
    assert metrics.rank(P, [0, 0]).tolist() == [1, 3]


def test_kl_has_the_clean_distribution_as_reference_and_is_summed_over_the_vocabulary():
    reference_first = 0.5 * math.log(2) + 0.25 * math.log(0.5)

    assert metrics.kl(Q, P) == pytest.approx([reference_first, 0.0], abs=1e-6)


def test_kl_is_not_symmetric_so_its_direction_is_pinned_by_an_uneven_example():
    p, q = np.log([[0.9, 0.1]]), np.log([[0.5, 0.5]])

    assert metrics.kl(q, p)[0] == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-9)


def test_l2_is_the_smallest_distance_over_all_constants():
    x, y = np.array([[1.0, 5.0, 3.0]]), np.array([[0.0, 1.0, 2.0]])
    by_search = min(np.linalg.norm(x - y - c) for c in np.linspace(-5, 5, 10001))

    assert metrics.l2(x, y)[0] == pytest.approx(by_search, abs=1e-6)


def test_cosine_is_zero_for_the_same_direction_one_for_orthogonal_two_for_opposite():
    a = np.array([[1.0, -1.0, 0.0]])

    assert metrics.cosine(3 * a, a)[0] == pytest.approx(0.0, abs=1e-12)
    assert metrics.cosine(np.array([[1.0, 1.0, -2.0]]), a)[0] == pytest.approx(1.0)
    assert metrics.cosine(-a, a)[0] == pytest.approx(2.0)


def test_cosine_of_constant_logits_has_no_direction_and_says_so():
    with pytest.raises(MetricError, match="no direction"):
        metrics.cosine(np.ones((1, 3)), np.array([[1.0, 2.0, 3.0]]))


@pytest.mark.parametrize("name", [name for name in METRICS if name != "logit"])
def test_no_metric_changes_when_a_constant_is_added_to_the_logits(name):
    rng = np.random.default_rng(0)
    logits, clean = rng.normal(size=(2, 2, 50)).astype(np.float32) * 4
    shifted = Targets(TARGETS.answers, TARGETS.foils, clean - 3.0)

    plain = METRICS[name](logits, Targets(TARGETS.answers, TARGETS.foils, clean))

    assert METRICS[name](logits + 2.0, shifted) == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("name", ["kl", "l2", "cosine"])
def test_a_distance_from_itself_is_exactly_zero(name):
    assert METRICS[name](P, TARGETS).tolist() == [0.0, 0.0]


def test_logits_of_low_precision_are_differenced_in_float32_or_better():
    # At 20 a bfloat16 logit moves in steps of 0.125; the difference of the given values must not.
    logits = np.array([[20.0625, 20.0]], dtype=np.float32)

    assert METRICS["logit_diff"](logits, Targets(np.array([0]), np.array([1])))[0] == 0.0625


def test_recovered_is_zero_at_corrupted_and_one_at_clean():
    assert recovered([2.0, 6.0, 3.0, 8.0], clean=6.0, corrupted=2.0).tolist() == [0.0, 1.0, 0.25, 1.5]


def test_recovered_without_a_gap_is_not_a_number():
    assert np.isnan(recovered([1.0], clean=2.0, corrupted=2.0)).all()


def test_the_default_is_logit_diff_with_answer_and_foil_and_l2_without():
    assert resolve(None, answer=True, foil=True).name == "logit_diff"
    assert resolve(None, answer=True, foil=False).name == "l2"


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(MetricError, match=r"'logit_dif'.*logit_diff, log_prob, prob, logit, kl, l2, cosine"):
        resolve("logit_dif", answer=True, foil=True)


def test_logit_diff_without_a_foil_says_what_to_pass_and_what_needs_none():
    with pytest.raises(MetricError, match=r"needs foil.*foil=.*log_prob"):
        resolve("logit_diff", answer=True, foil=False)


def test_a_callable_gets_float32_rows_and_must_return_one_number_each():
    seen = []

    def top(logits):
        seen.append((logits.dtype, logits.shape))
        return logits.max(axis=-1)

    assert resolve(top, answer=False, foil=False)(P, Targets()) == pytest.approx(P.max(axis=-1))
    assert seen == [(np.float32, (2, 3))]
    with pytest.raises(MetricError, match="one number per row"):
        resolve(lambda x: x.max(), answer=False, foil=False)(P, Targets())


def test_a_callable_that_takes_two_arguments_gets_each_rows_own_targets():
    def margin(logits, targets):
        rows = np.arange(len(logits))
        return logits[rows, targets.answers] - logits[rows, targets.foils]

    def with_an_option(logits, token=1):
        return logits[:, token]

    own = resolve(margin, answer=True, foil=True)(P, TARGETS)

    assert own == pytest.approx(METRICS["logit_diff"](P, TARGETS))
    assert resolve(with_an_option, answer=False, foil=False)(P, TARGETS) == pytest.approx(P[:, 1])
    fixed = functools.partial(lambda logits, token: logits[:, token], token=2)
    assert from_callable(fixed)(P, TARGETS) == pytest.approx(P[:, 2])


def test_targets_are_taken_by_example_so_that_rows_of_one_example_share_them():
    taken = TARGETS.take([1, 1, 0])

    assert taken.answers.tolist() == [2, 2, 0]
    assert taken.clean_logits.shape == (3, 3)
