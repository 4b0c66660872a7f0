"""From measured numbers to what is decided: planted effects, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mlxterp.errors import StatisticsError
from mlxterp_agent.judge.decision import (
    decide_rows,
    gate_of,
    joined,
    placebo_effects,
    rows_of,
    same_rows,
)
from mlxterp_agent.judge.judge import ClaimEvidence

RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.2, 48)
PLACEBOS = {f"L0.z.h{i}": 0.005 * i for i in range(8)}


def _declared(**more):
    return {"direction": "increase", "sesoi": 0.1, "site": ["L1.H1"], **more}


def _result(effect, n=24, *, first=0, gap=4.0, slices=None, noise=None, **claim):
    """A result of n pairs, each a cluster, whose patched metric recovers this share of the gap."""
    noise = NOISE[first : first + n] if noise is None else noise
    zero = np.linspace(-1, 1, n)
    yes = [True] * n
    measurement = {
        "zero": zero.tolist(),
        "one": (zero + gap).tolist(),
        "patched": (zero + gap * (effect + noise * effect)).tolist(),
        "fired": yes,
        "changed": yes,
        "identity_holds": yes,
    }
    return {
        "clusters": [f"c{first + i}" for i in range(n)],
        "pairs": [{"slice": None if slices is None else slices[i % len(slices)]} for i in range(n)],
        "claims": [
            {
                "measurement": measurement,
                "placebos": None,
                "other_heads": None,
                "drop_one": None,
                "role": None,
                **claim,
            }
        ],
    }


def _rows(*arguments, **more):
    return rows_of(_result(*arguments, **more), "increase", 0)


@pytest.mark.parametrize(
    ("effect", "gap", "direction", "outcome"),
    [
        (0.4, 4.0, "increase", "supported"),
        (-0.4, 4.0, "increase", "refuted"),
        (0.0, 4.0, "increase", "ruled_out"),
        (0.4, 4.0, "decrease", "refuted"),
        # In noising the other run is lower: moving towards it is a decrease.
        (0.4, -4.0, "decrease", "supported"),
        (0.4, -4.0, "increase", "refuted"),
        (0.4, -4.0, "either", "supported"),
        (0.0, -4.0, "none", "supported"),
        (0.4, -4.0, "none", "refuted"),
    ],
)
def test_a_direction_is_read_by_where_the_other_run_lies(effect, gap, direction, outcome):
    decision = decide_rows(_rows(effect, gap=gap), _declared(direction=direction), PLACEBOS, 0.005)

    assert decision.measured.outcome == outcome
    assert decision.look == 1


def test_pairs_without_a_gap_have_no_direction():
    with pytest.raises(StatisticsError, match="the gaps add up to 0"):
        decide_rows(_rows(0.4, gap=0.0), _declared(), PLACEBOS, 0.005)


def test_a_slice_in_which_the_sign_turns_keeps_the_claim_open():
    turned = np.where(np.arange(24) % 4 == 0, -1.2, 0.4)
    rows = _rows(0.4, slices=["turned", "a", "b", "c"], noise=turned)

    decision = decide_rows(rows, _declared(sesoi=0.05), PLACEBOS, 0.005)

    assert decision.measured.outcome == "inconclusive"
    assert decision.found.missing[0] == "slice: the sign does not hold in turned"


def test_two_looks_are_joined_and_the_second_decides_with_all_clusters():
    wide = np.concatenate([np.full(12, -1.0), np.full(12, 1.0)])
    first, second = _rows(0.12, noise=wide), _rows(0.12, first=24, noise=np.zeros(24))

    open_ = decide_rows(first, _declared(), PLACEBOS, 0.005)
    last = decide_rows(joined([first, second]), _declared(), PLACEBOS, 0.005, last=True)

    assert (open_.measured.outcome, open_.found.n) == ("inconclusive", 24)
    assert (last.measured.outcome, last.found.n, last.look) == ("supported", 48, 2)


def test_how_many_more_clusters_it_takes_is_told_in_coarse_steps():
    noisy = decide_rows(_rows(0.1, noise=NOISE[:24] * 20), _declared(), PLACEBOS, 0.005).measured
    exact = decide_rows(_rows(0.1, noise=NOISE[:24] * 0), _declared(), PLACEBOS, 0.005).measured

    assert noisy.more_clusters in (96, 192, 384, 768)
    assert exact.more_clusters is None


def test_a_head_must_exceed_each_other_head_of_its_layer():
    own = _result(0.4)
    zero = np.array(own["claims"][0]["measurement"]["zero"])

    def others(*effects):
        heads = {
            "sets": [{"sites": [f"L1.z.h{i}"]} for i in range(len(effects))],
            "patched": [(zero + 4.0 * e).tolist() for e in effects],
        }
        return rows_of(_result(0.4, other_heads=heads), "increase", 0)

    more = decide_rows(others(0.1, 0.0, -0.5), _declared(), PLACEBOS, 0.005)
    not_all = decide_rows(others(0.1, 0.4, -0.5), _declared(), PLACEBOS, 0.005)

    assert (more.measured.outcome, more.not_exceeded) == ("supported", ())
    assert (not_all.measured.outcome, not_all.not_exceeded) == ("inconclusive", (1,))


def test_a_member_that_adds_nothing_to_a_set_is_a_passenger():
    whole = _result(0.4)["claims"][0]["measurement"]
    zero = np.array(whole["zero"])
    without = {"patched": [(zero + 0.2).tolist(), whole["patched"]]}

    decision = decide_rows(_rows(0.4, drop_one=without), _declared(), PLACEBOS, 0.005)

    assert decision.passengers == (1,)


def test_pairs_that_are_not_finite_are_left_out_and_placebos_that_are_not_do_not_count():
    result = _result(0.4)
    result["claims"][0]["measurement"]["patched"][3] = "NaN"
    rows = rows_of(result, "increase", 0)
    zero = np.array(result["claims"][0]["measurement"]["zero"])
    placebos = {
        "sets": [{"sites": [f"L0.z.h{i}"], "direction_seed": seed} for i, seed in enumerate((None, 4, None))],
        "patched": [(zero + 1.0).tolist(), (zero + 2.0).tolist(), ["NaN"] * 24],
        "fired": [[True] * 24] * 3,
        "zero": zero.tolist(),
        "one": result["claims"][0]["measurement"]["one"],
    }

    assert (~rows.finite).sum() == 1
    assert len(rows.finite_only().cells()) == 23
    assert placebo_effects(_result(0.4, placebos=placebos)) == pytest.approx(
        {"L0.z.h0": 0.25, "L0.z.h1, direction 4": 0.5}
    )


def test_a_second_measurement_agrees_up_to_what_a_run_repeats_to():
    assert same_rows(_rows(0.4), _rows(0.4))
    assert same_rows(_rows(0.4), _rows(0.4 + 1e-5))
    assert not same_rows(_rows(0.4), _rows(0.4 + 1e-2))
    assert not same_rows(_rows(0.4), _rows(0.4, n=23))


@pytest.mark.parametrize(("direction", "outcome"), [("increase", "ruled_out"), ("none", "refuted")])
def test_of_several_heads_with_a_role_the_weakest_decides_and_for_a_null_the_strongest(direction, outcome):
    masses = np.stack([np.full(24, 0.9), np.full(24, 0.02)], axis=1).tolist()
    role = {"masses": masses, "others": [[0.0] * 8] * 24, "other_heads": [f"L0.H{i}" for i in range(8)]}
    rows = rows_of({"clusters": [], "pairs": [], "claims": [{"role": role}]}, direction, 0)

    decision = decide_rows(rows, _declared(direction=direction), PLACEBOS, 0.005)

    assert decision.measured.outcome == outcome


def _behaviour(gap, preferred=True):
    n = 24
    return {
        "clean": (gap + NOISE[:n]).tolist(),
        "corrupted": [0.0] * n,
        "answer_preferred": [preferred] * n,
        "foil_preferred": [preferred] * n,
        "answer_rank": [1] * n,
        "foil_rank": [1] * n,
    }


def test_the_gate_takes_a_distance_with_its_own_sign_and_names_what_is_lacking():
    def result(pairs, prefixed=None):
        cells = {"pairs": pairs, "candidates": None, "prefixed": prefixed, "d_vocab": 128}
        return {"clusters": [f"c{i}" for i in range(24)], "gate": cells, "twin_gate": cells}

    assert gate_of(result(_behaviour(4.0), _behaviour(3.0))).passed
    assert gate_of(result(_behaviour(-4.0))).passed
    assert gate_of(result(_behaviour(0.0)), twin=True).lacking == ("gap",)
    assert gate_of(result(_behaviour(4.0, preferred=False))).lacking == ("preference",)
    assert gate_of(result(_behaviour(4.0), _behaviour(3.0, preferred=False))).lacking == (
        "preference behind a prefix",
    )


def test_what_the_keep_rule_saw_can_be_read_back_from_the_journal():
    decision = decide_rows(_rows(0.4, slices=["a", "b"]), _declared(), PLACEBOS, 0.005)
    evidence = ClaimEvidence(confirm=decision.measured, instrument=("x",), items=24, sha256="0" * 64)

    assert ClaimEvidence.from_dict(evidence.to_dict()) == evidence
