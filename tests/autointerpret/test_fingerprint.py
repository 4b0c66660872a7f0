"""A claim has one fingerprint however it is worded, and another measurement has another."""

from __future__ import annotations

import pytest

from mlxterp.autointerpret import Hypothesis, InterventionClaim
from mlxterp.autointerpret.fingerprint import claim_fingerprint


def _declared(op="patch", site=("L9.H6@-1",), more=None, **intervention):
    return Hypothesis(
        **{
            "id": "H1",
            "claim": "Head 9.6 moves the answer.",
            "site": list(site),
            "intervention": InterventionClaim(op, **intervention),
            "metric": "logit_diff",
            "direction": "increase",
            "sesoi": 0.1,
            "forecast": {"supported": 0.5, "refuted": 0.2, "ruled_out": 0.3},
            "rivals": ["Any head does."],
            "falsified_if": "below 0.1",
            **(more or {}),
        }
    ).to_dict()


def _of(declared, *, mirrored=False, setup="s", n_tokens=None):
    return claim_fingerprint(declared, setup, mirrored=mirrored, n_tokens=n_tokens)


BASE = _declared()
OTHER_WORDS = {
    "id": "H99",
    "claim": "Something else.",
    "direction": "either",
    "sesoi": 0.5,
    "forecast": {"supported": 0.1, "refuted": 0.1, "ruled_out": 0.8},
    "rivals": ["None."],
    "falsified_if": "never",
    "builds_on": ["0001"],
    "replicates": "0002",
}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BASE, _declared(more=OTHER_WORDS)),
        (BASE, _declared(site=["L9.z.h6@-1"])),
        (BASE, _declared("replace")),
        (_declared(source="corrupted"), _declared("resample")),
        (_declared(site=["L3.mlp"]), _declared(site=["L3.mlp_out"])),
        (_declared(site=["L3.resid_post@-1"]), _declared(site=["L4.resid_pre@-1"])),
        (_declared(site=["embed"]), _declared(site=["L0.resid_pre"])),
        (_declared(site=["L1.H1", "L2.H2"]), _declared(site=["L2.z.h2", "L1.z.h1"])),
        (_declared("zero"), _declared("zero", source="corrupted")),
        (_declared("zero"), _declared("scale", value=0.0)),
        (_declared("scale", value=0.5), _declared("scale", value=0.50004)),
        (
            _declared("path_patch", receivers=["L10.H1.q", "L10.H2.q"], site=["L9.H6"]),
            _declared("path_patch", receivers=["L10.z.h2.q", "L10.H1.q"], site=["L9.z.h6"]),
        ),
        (_declared(more={"slices": ["a", "b"]}), _declared(more={"slices": ["b", "a"]})),
    ],
)
def test_rewordings_of_one_claim_are_found(one, other):
    assert _of(one) == _of(other)


@pytest.mark.parametrize(
    "other",
    [
        _declared(site=["L9.H7@-1"]),
        _declared(site=["L9.H6@-2"]),
        _declared(site=["L9.H6"]),
        _declared(site=["L8.H6@-1"]),
        _declared(site=["L9.H6@-1", "L9.H7@-1"]),
        _declared(site=["L9.q.h6@-1"]),
        _declared("zero"),
        _declared("mean"),
        _declared("scale", value=0.5),
        _declared(source="corrupted"),
        _declared(align="auto"),
        _declared(more={"metric": "log_prob"}),
        _declared(more={"slices": ["long"]}),
        _declared(more={"more_than": "other heads of the layer"}),
        _declared(site=["L9.H6"], more={"role": "name mover", "intervention": None}),
    ],
)
def test_another_measurement_has_another_fingerprint(other):
    assert _of(other) != _of(BASE)


def test_two_values_two_steering_vectors_and_two_setups_are_kept_apart():
    steer = _declared("steer", value=1.0)

    assert len({_of(steer), _of(_declared("steer", value=1.01)), _of(_declared("steer", value=-1.0))}) == 3
    assert _of(steer) != _of(_declared("steer", value=1.0, vector="truth"))
    assert _of(BASE, setup="s") != _of(BASE, setup="t")


def test_on_mirrored_pairs_noising_is_denoising_and_ablation_is_not():
    noising = _declared(source="corrupted")

    assert _of(noising, mirrored=True) == _of(BASE, mirrored=True)
    assert _of(_declared("resample"), mirrored=True) == _of(BASE, mirrored=True)
    assert _of(_declared("zero"), mirrored=True) != _of(BASE, mirrored=True)


def test_positions_count_from_the_end_where_the_length_is_known():
    first, last = _declared(site=["L9.H6@11"]), _declared(site=["L9.H6@-1"])

    assert _of(first, n_tokens=12) == _of(last, n_tokens=12)
    assert _of(first, n_tokens=13) != _of(last, n_tokens=13)
    assert _of(first) != _of(last)
