"""Copies of numbers are found however they are dressed, and honest results never are."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.statistics.duplicates import fingerprint, is_copy, landmarks, result_numbers, same_numbers

RNG = np.random.default_rng(0)
NUMBERS = (RNG.normal(size=30) * 10.0 ** RNG.uniform(-3, 1, 30)).tolist()


def _copied(numbers):
    return same_numbers(fingerprint(NUMBERS), fingerprint(numbers))


@pytest.mark.parametrize(
    "dressed",
    [
        NUMBERS[::-1],
        [float(f"{x:.3g}") for x in NUMBERS],
        [x * (1 + 1e-12) for x in NUMBERS],
        [*NUMBERS, 0.0, 17.0, 1234.0, float("nan"), float("inf")],
        [*NUMBERS, *[0.0] * 30],
        [*NUMBERS, *NUMBERS],
    ],
    ids=["reordered", "rounded", "jittered", "seeds added", "padded", "doubled"],
)
def test_copies_are_found(dressed):
    assert _copied(dressed)


def test_honest_results_are_not_copies():
    assert not same_numbers(fingerprint([0.0] * 40), fingerprint([0.0] * 40))
    assert not same_numbers(fingerprint([1.0] * 40), fingerprint([1.0] * 40))
    assert not _copied(
        [x * (1 + 0.03 * e) for x, e in zip(NUMBERS, np.random.default_rng(1).normal(size=30), strict=True)]
    )
    assert not _copied([-x for x in NUMBERS])


def test_results_of_chance_never_agree():
    rng = np.random.default_rng(2)
    drawn = [fingerprint(rng.normal(size=int(rng.integers(8, 60))).tolist()) for _ in range(72)]

    assert not any(same_numbers(drawn[i], drawn[j]) for i in range(72) for j in range(i))


def test_zeros_whole_numbers_and_what_is_not_finite_are_left_out():
    assert fingerprint([0.0, -0.0, 3.0, -2.0, float("nan"), float("-inf"), 0.25, -0.5]) == (-0.5, 0.25)


def test_the_forty_largest_in_magnitude_are_kept_in_order_and_each_once():
    kept = fingerprint([*[i + 0.5 for i in range(45)], 44.5])

    assert len(kept) == 40
    assert kept == tuple(i + 0.5 for i in range(5, 45))
    assert fingerprint([-100.5, *[i + 0.5 for i in range(45)]])[0] == -100.5


def test_seven_numbers_are_too_few_and_eight_enough():
    eight = fingerprint(NUMBERS[:8])

    assert same_numbers(eight, eight)
    assert not same_numbers(eight[:7], eight[:7])
    assert not same_numbers(eight[:7], eight)
    assert not same_numbers(eight, eight[:7])


def test_nine_of_ten_must_agree_and_the_longer_one_counts():
    ten = tuple(float(2**i) + 0.5 for i in range(10))

    assert same_numbers(ten, (*ten[:9], 9999.5))
    assert not same_numbers(ten, (*ten[:8], 9998.5, 9999.5))
    assert not same_numbers(ten, ten[:8])
    assert not same_numbers(ten[:8], ten)
    assert same_numbers(ten, ten[:9])


def test_numbers_agree_within_half_a_percent_and_each_is_used_once():
    ten = tuple(float(2**i) + 0.5 for i in range(10))

    assert same_numbers(ten, tuple(x * 1.00505 for x in ten))
    assert not same_numbers(ten, tuple(x * 1.0053 for x in ten))
    assert same_numbers(ten, tuple(x * 0.99495 for x in ten))
    assert not same_numbers(ten, tuple(x * 0.9946 for x in ten))
    assert not same_numbers((1.5,) * 8 + (3.5, 4.5), (1.5, 2.5, 2.6, 2.7, 2.8, 2.9, 3.1, 3.2, 3.5, 4.5))
    assert same_numbers(tuple(-x for x in ten[::-1]), tuple(-x * 1.004 for x in ten[::-1]))


def test_one_number_in_ten_may_be_new_wherever_it_stands():
    ten = tuple(float(2**i) + 0.5 for i in range(10))

    for i in range(10):
        other = tuple(sorted((*ten[:i], *ten[i + 1 :], ten[i] * 1.2)))
        assert same_numbers(ten, other)
        assert same_numbers(other, ten)


@pytest.mark.parametrize(
    ("one", "other", "copy"),
    [
        ([0.25, 1.0, 0.0], [0.25, 1.0, 0.0], True),
        ([0.25, 1.0, 0.0], [0.25 * (1 + 1e-12), 1.0, 0.0], True),
        ([0.25, 1.0, 0.0], [0.25 * (1 + 1e-8), 1.0, 0.0], False),
        ([0.25, 1.0, 0.0], [1.0, 0.25, 0.0], False),
        ([0.25, 1.0], [0.25, 1.0], False),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], False),
        ([0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], False),
        ([0.25, float("nan"), 1.0], [0.25, float("nan"), 1.0], True),
        (NUMBERS, NUMBERS[::-1], True),
    ],
)
def test_short_results_are_copies_only_in_the_same_order_and_with_a_number_that_tells(one, other, copy):
    assert is_copy(result_numbers(one), result_numbers(other)) is copy


@pytest.mark.parametrize("number", [0.0123, 0.456, 7.89, -0.456])
def test_a_landmark_is_the_same_or_the_next_for_a_copy_and_further_for_what_differs_by_three_percent(number):
    def of(value):
        (only,) = landmarks(result_numbers([value]))
        return only

    assert abs(of(number * 1.005) - of(number)) <= 1
    assert 2 <= abs(of(number * 1.03) - of(number)) <= 4
    assert abs(of(-number) - of(number)) > 100_000


def test_landmarks_are_of_the_five_largest_in_magnitude():
    assert landmarks(result_numbers([0.25, -9.5, 1.5, 2.5, 3.5, 4.5])) == tuple(
        each for value in (-9.5, 4.5, 3.5, 2.5, 1.5) for each in landmarks(result_numbers([value]))
    )
