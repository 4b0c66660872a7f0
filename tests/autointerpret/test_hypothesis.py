"""A declaration is data: read without running anything, complete, and the same claim has the same digest."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxterp.autointerpret import Hypothesis, InterventionClaim, read_hypothesis
from mlxterp.errors import DeclarationError

FIELDS = {
    "id": '"H017"',
    "claim": '"Head 9.6 moves the answer " "to the last position."',
    "site": '["L9.z.h6"]',
    "intervention": 'InterventionClaim("patch", source="clean")',
    "metric": '"logit_diff"',
    "direction": '"increase"',
    "sesoi": "0.1",
    "forecast": '{"supported": 0.7, "refuted": 0.05, "ruled_out": 0.25}',
    "rivals": '["Any head of layer 9 does as well."]',
    "falsified_if": '"the held-out effect is below 0.1"',
}


def _source(before: str = "", **changes: str | None) -> bytes:
    """An experiment.py that declares FIELDS with some of them changed, or left out (None)."""
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    body = "".join(f"    {name}={value},\n" for name, value in fields.items())
    return f"{before}HYPOTHESIS = Hypothesis(\n{body})\nimport setup\nsetup.run()\n".encode()


def _hypothesis(**changes) -> Hypothesis:
    values = {
        "id": "H017",
        "claim": "Head 9.6 moves the answer to the last position.",
        "site": ["L9.z.h6"],
        "intervention": InterventionClaim("patch", source="clean"),
        "metric": "logit_diff",
        "direction": "increase",
        "sesoi": 0.1,
        "forecast": {"supported": 0.7, "refuted": 0.05, "ruled_out": 0.25},
        "rivals": ["Any head of layer 9 does as well."],
        "falsified_if": "the held-out effect is below 0.1",
    }
    return Hypothesis(**{**values, **changes})


def test_what_is_read_equals_what_the_program_would_construct():
    assert read_hypothesis(_source()) == _hypothesis()


def test_nothing_of_the_module_runs():
    bomb = "import nothing_of_this_name\nraise SystemExit\n"

    assert read_hypothesis(_source(bomb)) == _hypothesis()


@pytest.mark.parametrize(
    "source",
    [b"", b"print(1)\n", b"HYPOTHESIS = None\n", b"x = HYPOTHESIS\n", b"# HYPOTHESIS = Hypothesis()\n"],
)
def test_a_module_that_declares_nothing_is_a_plain_experiment(source):
    assert read_hypothesis(source) is None


@pytest.mark.parametrize(
    "spelling",
    [
        _source().replace(b"HYPOTHESIS =", b"HYPOTHESIS: object ="),
        _source().replace(b"= Hypothesis(", b"= autointerpret.Hypothesis("),
        b"\xef\xbb\xbf" + _source(),
        _source().replace(b"\n", b"\r\n"),
    ],
)
def test_other_spellings_of_the_same_declaration_are_read(spelling):
    assert read_hypothesis(spelling) == _hypothesis()


def test_two_spellings_of_one_claim_have_one_digest_and_another_claim_has_another():
    digest = _hypothesis().sha256

    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert (
        _hypothesis(site=("L9.z.h6",), forecast=dict(reversed(_hypothesis().forecast.items()))).sha256
        == digest
    )
    assert _hypothesis(sesoi=0.2).sha256 != digest
    assert _hypothesis(intervention=InterventionClaim("zero")).sha256 != digest


def test_the_record_of_a_declaration_is_read_back():
    declared = _hypothesis(slices=["long"], replicates="0003").declared()

    assert declared["intervention"] == {"op": "patch", "source": "clean", "value": None, "align": "strict"}
    assert Hypothesis.from_dict(declared) == _hypothesis(slices=["long"], replicates="0003")
    with pytest.raises(DeclarationError, match="unknown fields \\['extra'\\] and without \\['claim'\\]"):
        Hypothesis.from_dict({**{k: v for k, v in declared.items() if k != "claim"}, "extra": 1})


@pytest.mark.parametrize(
    ("changes", "line", "says"),
    [
        ({"sesoi": "1 / 10"}, 8, "sesoi is `1 / 10`, which would have to be run"),
        ({"claim": "make_claim()"}, 3, "claim is `make_claim()`, which would have to be run"),
        ({"claim": 'f"layer {9}"'}, 3, "which would have to be run"),
        ({"claim": '""'}, 3, "claim is ''. Write a text that is not empty"),
        ({"sesoi": "0"}, 8, "sesoi is 0. Write one of 0.05, 0.1, 0.2, 0.3, 0.5"),
        ({"sesoi": "0.12"}, 8, "sesoi is 0.12. Write one of 0.05, 0.1, 0.2, 0.3, 0.5"),
        ({"sesoi": "1e999"}, 8, "sesoi is 'Infinity'"),
        ({"sesoi": "True"}, 8, "sesoi is True"),
        ({"sesoi": "0x" + "f" * 5000}, 8, "sesoi is '0xffff"),
        ({"direction": '"up"'}, 7, "direction is 'up'. Write 'increase' or 'decrease'"),
        ({"site": '["L9.mlp.h3"]'}, 4, "'L9.mlp.h3' names no site: mlp_out has no heads"),
        ({"site": '["z"]'}, 4, "z is in every layer: say which"),
        ({"site": '["L9.zz"]'}, 4, "there is no 'zz'"),
        ({"site": '["L9.H6", "L9.z.h6"]'}, 4, "'L9.z.h6' twice, in one spelling or in two"),
        (
            {"site": '["L3.resid_post", "L4.resid_pre"]'},
            4,
            "'L4.resid_pre' twice, in one spelling or in two",
        ),
        ({"more_than": '"the rest"'}, 12, "Write 'other heads of the layer'"),
        ({"more_than": '"other heads of the layer"', "site": '["L9.mlp"]'}, 4, "Write ['L9.H6']"),
        (
            {"more_than": '"other heads of the layer"', "site": '["L9.H6", "L9.H7"]'},
            4,
            "more_than compares one head, and site names 2",
        ),
        ({"role": '"boss head"'}, 12, "role is 'boss head'. Write 'previous-token head' or"),
        ({"role": '"name mover"'}, 5, "nothing is intervened on. Leave intervention out"),
        ({"role": '"name mover"', "intervention": None, "site": '["L9.z"]'}, 4, "the role of a head"),
        ({"intervention": 'InterventionClaim("path_patch")'}, 5, "path_patch needs receivers. Write Inter"),
        ({"intervention": 'InterventionClaim("steer")'}, 5, "steer needs value. Write InterventionClaim("),
        ({"intervention": 'InterventionClaim("clamp_feature", value=1)'}, 5, "needs features. Write Inter"),
        (
            {"intervention": 'InterventionClaim("clamp_feature", features=["a"], value=1)'},
            5,
            "features of the intervention is ['a']. Write a list: features=[12]",
        ),
        (
            {"intervention": 'InterventionClaim("zero", receivers=["logits"])'},
            5,
            "receivers is for path_patch, and the operation is zero",
        ),
        (
            {"intervention": 'InterventionClaim("attention_knockout", from_positions=[0])'},
            4,
            "Write ['L9.pattern.h6@-1']",
        ),
        (
            {
                "site": '["L9.resid_pre"]',
                "intervention": 'InterventionClaim("path_patch", receivers=["logits"])',
            },
            4,
            "path_patch sends from heads and MLPs",
        ),
        ({"rivals": "[]"}, 10, "rivals is empty. Write at least one"),
        ({"rivals": '"only one"'}, 10, "rivals is 'only one'. Write a list of texts"),
        ({"site": "5"}, 4, "site is 5. Write a list of texts"),
        ({"site": '["layer nine"]'}, 4, "'layer nine' names no site"),
        ({"forecast": '{"supported": 1.0}'}, 9, "forecast is {'supported': 1.0}"),
        ({"forecast": '{"supported": 0.7, "refuted": 0.2, "ruled_out": 0.2}'}, 9, "forecast sums to 1.1"),
        ({"forecast": '{"supported": 0.5, "refuted": 0.2, "ruled_out": 0.2}'}, 9, "forecast sums to 0.9"),
        (
            {"forecast": '{"supported": 1.5, "refuted": -0.5, "ruled_out": 0}'},
            9,
            "a probability is from 0 to 1",
        ),
        ({"intervention": '"patch"'}, 5, "Write InterventionClaim('patch', source='clean')"),
        ({"intervention": 'InterventionClaim("explode")'}, 5, "op of the intervention is 'explode'"),
        ({"intervention": 'InterventionClaim("patch", mode=1)'}, 5, "InterventionClaim has no field 'mode'"),
        (
            {"intervention": 'InterventionClaim("patch", op="zero")'},
            5,
            "op of InterventionClaim is given twice",
        ),
        ({"intervention": "InterventionClaim()"}, 5, "does not say what is done"),
        ({"hunch": "1"}, 12, "Hypothesis has no field 'hunch'. Its fields are: id, claim, site"),
        (
            {"rivals": None, "sesoi": None},
            1,
            "does not say sesoi, rivals. Add, for instance, sesoi=0.1, rivals=[",
        ),
    ],
)
def test_what_cannot_stand_is_named_with_its_line_and_what_to_write(changes, line, says):
    with pytest.raises(DeclarationError) as refused:
        read_hypothesis(_source(**changes))

    assert str(refused.value).startswith(f"experiment.py, line {line}: ")
    assert says in str(refused.value)


EVERY_KIND = {
    "path": {
        "intervention": InterventionClaim("path_patch", source="corrupted", receivers=["L9.H6.q", "logits"]),
        "site": ["L5.H5", "L3.mlp"],
    },
    "steering": {"intervention": InterventionClaim("steer", value=2.0), "site": ["L5.resid_post@-1"]},
    "feature": {
        "intervention": InterventionClaim("clamp_feature", features=[12], value=0.0),
        "site": ["L5.resid_post"],
    },
    "knockout": {
        "intervention": InterventionClaim("attention_knockout", source="corrupted", from_positions=[-3]),
        "site": ["L5.pattern@-1"],
    },
    "no effect": {"direction": "none", "intervention": InterventionClaim("mean")},
    "either": {"direction": "either"},
    "more": {"more_than": "other heads of the layer"},
    "role": {"role": "induction head", "intervention": None, "metric": ""},
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_kind_of_claim_is_kept_and_read_back(kind):
    claim = _hypothesis(**EVERY_KIND[kind])

    assert Hypothesis.from_dict(claim.declared()) == claim
    assert claim.sha256 != _hypothesis().sha256


def test_a_role_is_declared_without_intervention_and_metric():
    source = _source(role='"induction head"', intervention=None, metric=None)

    assert read_hypothesis(source) == _hypothesis(role="induction head", intervention=None, metric="")


def test_a_declaration_of_before_these_fields_keeps_its_digest():
    assert set(_hypothesis().to_dict()).isdisjoint({"role", "more_than"})
    assert set(_hypothesis().to_dict()["intervention"]) == {"op", "source", "value", "align"}


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"if True:\n    HYPOTHESIS = 1\n", "line 2: HYPOTHESIS is bound here"),
        (b"from elsewhere import HYPOTHESIS\n", "line 1: HYPOTHESIS is bound here"),
        (b"a = HYPOTHESIS = None\n", "line 1: HYPOTHESIS is bound here"),
        (b"def f():\n    global HYPOTHESIS\n", "line 2: HYPOTHESIS is bound here"),
        (_source() + b"HYPOTHESIS = None\n", "a second time; line 1 did so"),
        (_source() + b"HYPOTHESIS += 1\n", "line 15: HYPOTHESIS is bound here"),
        (b"HYPOTHESIS = {'id': 'H1'}\n", "HYPOTHESIS is `{'id': 'H1'}`. Write HYPOTHESIS = Hypothesis("),
        (b"HYPOTHESIS = Hypothesis('H1')\n", "is given `'H1'` without a name"),
        (b"HYPOTHESIS = Hypothesis(**FIELDS)\n", "is given **`FIELDS`. Write each field=value out"),
        (b"x = 1\ndef (:\n", "line 2: experiment.py does not parse"),
        (b"x = '\x00'\n", "does not parse"),
        (b"x = '\xff'\n", "does not parse"),
        (b"x = " + b"(" * 5000 + b")" * 5000, "does not parse"),
        (b"HYPOTHESIS = " + b"+".join([b"a"] * 3000), "line 1: "),
    ],
)
def test_a_declaration_that_can_be_read_in_two_ways_is_refused(source, says):
    with pytest.raises(DeclarationError) as refused:
        read_hypothesis(source)

    assert says in str(refused.value)


@given(source=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused_in_words(source):
    with contextlib.suppress(DeclarationError):
        assert read_hypothesis(source) is None
