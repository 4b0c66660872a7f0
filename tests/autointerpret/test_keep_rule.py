"""The keep rule: first match wins, NaN passes nothing, and only what was measured is kept."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxterp.autointerpret.keep_rule import (
    RULE,
    SAME_CLAIM,
    TABLE,
    EarlierVerdict,
    Evidence,
    Measured,
    decide,
    surprise,
)
from mlxterp.statistics.outcome import Comparison

LEAD = Evidence(numbers=10, informative=True, hook_fired=True, measured=True)
EFFECT = Comparison(effect=0.4, low=0.3, high=0.5, sesoi=0.1, bar=0.1, slices={"a": 0.3})
NULL = Comparison(effect=0.01, low=-0.04, high=0.06, sesoi=0.1, bar=0.1)
DECLARED = Evidence(
    numbers=10,
    declared=True,
    hook_fired=True,
    activation_changed=True,
    identity_holds=True,
    confirm=Measured(comparison=EFFECT, n=24, replays=True),
)


def _mirrored(e: Comparison) -> Comparison:
    slices = {name: None if part is None else -part for name, part in e.slices.items()}
    return replace(e, effect=-e.effect, low=-e.high, high=-e.low, slices=slices)


def _finding(comparison: Comparison = EFFECT, **changes) -> Evidence:
    return replace(DECLARED, confirm=replace(Measured(comparison=comparison, n=24, replays=True), **changes))


@pytest.mark.parametrize(
    ("evidence", "verdict", "tier", "kept"),
    [
        (replace(LEAD, violations=("setup.py changed",)), "invalid:contract", "invalid", False),
        (replace(LEAD, status="timeout"), "invalid:execution", "invalid", False),
        (replace(LEAD, nonfinite=1), "invalid:nonfinite", "invalid", False),
        (replace(LEAD, numbers=100, nonfinite=6), "invalid:nonfinite", "invalid", False),
        (replace(LEAD, numbers=100, nonfinite=5), "lead", "lead", True),
        (replace(LEAD, hook_fired=False), "invalid:no_op", "invalid", False),
        (replace(LEAD, activation_changed=False), "invalid:no_op", "invalid", False),
        (replace(LEAD, identity_holds=False), "invalid:no_op", "invalid", False),
        (replace(LEAD, identical_to="0003"), "invalid:no_op", "invalid", False),
        (replace(LEAD, instrument=("no gap",)), "invalid:instrument", "invalid", False),
        (LEAD, "lead", "lead", True),
        (replace(LEAD, measured=None), "lead", "lead", True),
        (replace(LEAD, measured=False), "note", "note", False),
        (replace(LEAD, informative=False), "note", "note", False),
        (replace(LEAD, prediction_held=False), "note", "note", False),
        (replace(LEAD, prediction_held=True), "lead", "lead", True),
        (replace(LEAD, numbers=0), "note", "note", False),
        (replace(LEAD, measured=True), "lead", "lead", True),
        (replace(LEAD, repeat_of="0002"), "note", "note", False),
        (replace(LEAD, declared=True), "inconclusive", "note", False),
        (DECLARED, "supported", "finding", True),
        (_finding(_mirrored(EFFECT)), "refuted", "finding", True),
        (_finding(NULL), "ruled_out", "finding", True),
        (replace(DECLARED, measured=False, informative=False), "supported", "finding", True),
        (replace(DECLARED, not_judged="too few"), "inconclusive", "note", False),
        (replace(DECLARED, judged_before=EarlierVerdict("refuted", "0002")), "refuted", "note", False),
    ],
)
def test_each_row_of_the_table(evidence, verdict, tier, kept):
    decided = decide(evidence)

    assert (decided.verdict, decided.tier, decided.kept, decided.rule) == (verdict, tier, kept, RULE)


UP = math.nextafter
LIMITS = [
    # what is compared, a value that passes, the next one that does not, what is then said to be missing:
    # nothing that depends on the effect
    ("low", UP(0.05, 1), 0.05, "interval"),
    ("effect", 0.1, UP(0.1, 0), "interval"),
    ("bar", UP(0.4, 0), 0.4, "interval"),
    ("bar", 0.0, None, "placebo"),
    ("slices", {"a": 5e-324}, {"a": 0.0}, "interval"),
    ("slices", {}, {"b": None}, "slice"),
]


@pytest.mark.parametrize(("name", "passes", "fails", "missing"), LIMITS)
@pytest.mark.parametrize("turn", [lambda e: e, _mirrored])
def test_both_sides_of_every_limit_of_an_effect(name, passes, fails, missing, turn):
    effect = replace(EFFECT, low=0.06, bar=0.01)
    at_the_limit = turn(replace(effect, **{name: passes}))
    beyond = turn(replace(effect, **{name: fails}))

    assert decide(_finding(at_the_limit)).verdict == ("supported" if at_the_limit.effect > 0 else "refuted")
    assert decide(_finding(beyond)).verdict == "inconclusive"
    assert decide(_finding(beyond)).reasons[0] == f"missing: {missing}"


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"low": UP(-0.1, 0)}, "ruled_out"),
        ({"low": -0.1}, "inconclusive"),
        ({"high": UP(0.1, 0)}, "ruled_out"),
        ({"high": 0.1}, "inconclusive"),
        ({"bar": None}, "ruled_out"),
        ({"direction": "none"}, "supported"),
        ({"direction": "either"}, "ruled_out"),
    ],
)
def test_both_sides_of_the_limits_of_a_null(changes, verdict):
    assert decide(_finding(replace(NULL, **changes))).verdict == verdict


@pytest.mark.parametrize(
    ("comparison", "verdict"),
    [
        (replace(EFFECT, direction="decrease"), "refuted"),
        (replace(_mirrored(EFFECT), direction="decrease"), "supported"),
        (replace(EFFECT, direction="either"), "supported"),
        (replace(_mirrored(EFFECT), direction="either"), "supported"),
        (replace(EFFECT, direction="none"), "refuted"),
        (replace(_mirrored(EFFECT), direction="none"), "refuted"),
    ],
)
def test_a_direction_decides_what_an_effect_on_either_side_says(comparison, verdict):
    assert decide(_finding(comparison)).verdict == verdict


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({"n": 16}, "supported", "16 independent clusters"),
        ({"n": 15}, "inconclusive", "15 independent clusters could be measured, and a verdict takes 16"),
        ({"replays": False}, "inconclusive", "missing: replay (a second measurement gave other numbers)"),
        ({"replays": None}, "inconclusive", "missing: replay (measured only once)"),
        ({"more_than_others": True}, "supported", "24 independent clusters"),
        ({"more_than_others": False}, "inconclusive", "missing: more than every other head of the layer"),
    ],
)
def test_what_withholds_a_verdict_whatever_the_numbers_say(changes, verdict, reason):
    decided = decide(_finding(**changes))

    assert decided.verdict == verdict
    assert reason in decided.reasons[0]


def test_a_null_that_is_not_more_than_other_heads_is_ruled_out_all_the_same():
    assert decide(_finding(NULL, more_than_others=False)).verdict == "ruled_out"


def test_what_an_open_claim_lacks_is_said_with_how_many_more_clusters_would_decide_it():
    wide = replace(EFFECT, effect=0.08, low=-0.2, high=0.4, bar=0.3)

    assert decide(_finding(wide, more_clusters=48)).reasons == (
        "missing: interval",
        "about 48 more independent clusters would decide an effect of 1.5 times the smallest one",
    )
    assert "unlikely to decide it" in decide(_finding(wide)).reasons[1]


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(0, 2), st.floats(0, 2), st.booleans())
def test_no_reason_tells_a_number_that_was_measured_on_held_out_pairs(effect, down, up, bar, replays):
    comparison = Comparison(
        effect=effect, low=effect - down, high=effect + up, sesoi=0.1, bar=bar, slices={"x": effect - 0.1}
    )

    told = " ".join(decide(_finding(comparison, replays=replays, more_clusters=24)).reasons)

    assert set(re.findall(r"\d[\d.]*", told)) <= {"24", "1.5"}


def test_surprise_ranks_by_the_forecast_and_is_finite():
    forecast = {"supported": 0.5, "refuted": 0.0, "ruled_out": 0.5}

    assert surprise("supported", forecast) == 1.0
    assert surprise("refuted", forecast) == 10.0
    assert surprise("lead", forecast) is None
    assert math.copysign(1, surprise("supported", {"supported": 1.0}) or 0.0) == 1


NUMBER = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 1)
COMPARISON = st.builds(
    Comparison,
    effect=NUMBER,
    low=NUMBER,
    high=NUMBER,
    sesoi=st.sampled_from([0.05, 0.1, 0.5]),
    direction=st.sampled_from(["increase", "decrease", "either", "none"]),
    bar=st.none() | NUMBER,
    slices=st.dictionaries(st.sampled_from(["a", "b"]), st.none() | NUMBER),
)
MAYBE = st.none() | st.booleans()
MEASURED = st.builds(
    Measured, comparison=COMPARISON, n=st.integers(0, 60), more_than_others=MAYBE, replays=MAYBE
)
EVIDENCE = st.builds(
    Evidence,
    violations=st.just(()) | st.just(("setup.py changed",)),
    status=st.sampled_from(["ok", "ok", "error", "timeout", "crashed", "oom", "interrupted"]),
    numbers=st.integers(0, 100),
    nonfinite=st.just(0) | st.integers(0, 100),
    hook_fired=MAYBE,
    activation_changed=MAYBE,
    identity_holds=MAYBE,
    identical_to=st.none() | st.just("0001"),
    instrument=st.just(()) | st.just(("no behaviour",)),
    informative=st.booleans(),
    measured=MAYBE,
    prediction_held=MAYBE,
    repeat_of=st.none() | st.just("0001"),
    declared=st.booleans(),
    judged_before=st.none() | st.just(EarlierVerdict("supported", "0001")),
    not_judged=st.just("") | st.just("too few"),
    confirm=st.none() | MEASURED,
)


@given(EVIDENCE)
def test_the_first_row_that_matches_decides(evidence):
    matching = [row.verdict for row in TABLE if row.condition(evidence) is not None]

    assert decide(evidence).verdict == matching[0].replace(SAME_CLAIM, "supported")


@given(
    EVIDENCE,
    st.sampled_from(["violations", "status", "hook_fired", "identical_to", "instrument", "identity_holds"]),
)
def test_nothing_is_kept_once_the_run_was_not_clean(evidence, spoiled):
    worst = {
        "violations": ("the log was edited",),
        "status": "crashed",
        "hook_fired": False,
        "identity_holds": False,
        "identical_to": "0001",
        "instrument": ("the twin shows it too",),
    }

    decided = decide(replace(evidence, **{spoiled: worst[spoiled]}))

    assert (decided.kept, decided.tier) == (False, "invalid")
    assert decided.reasons


KEPT = [
    _finding(turn(replace(e, direction=d)))
    for e in (EFFECT, NULL)
    for d in ("increase", "either", "none")
    for turn in (lambda x: x, _mirrored)
]


@given(st.sampled_from(KEPT), st.sampled_from(["effect", "low", "high", "bar", "slice"]))
def test_nan_passes_no_comparison(evidence, where):
    comparison = evidence.confirm.comparison
    spoiled = {"slices": {"a": math.nan}} if where == "slice" else {where: math.nan}

    assert decide(evidence).kept
    assert not decide(_finding(replace(comparison, **spoiled))).kept


@given(EVIDENCE)
def test_a_kept_finding_was_measured_twice_and_a_kept_lead_was_claimed(evidence):
    decided = decide(evidence)

    if decided.kept:
        assert evidence.status == "ok"
        if decided.tier == "finding":
            assert evidence.declared
            assert evidence.judged_before is None
            assert evidence.confirm is not None
            assert evidence.confirm.replays is True
            assert evidence.confirm.n >= 16
        else:
            assert evidence.informative
            assert evidence.measured is not False
            assert evidence.repeat_of is None
            assert evidence.numbers > evidence.nonfinite


@given(COMPARISON)
def test_turning_the_sign_around_swaps_supported_and_refuted(comparison):
    swapped = {"supported": "refuted", "refuted": "supported"}
    if comparison.direction in ("none", "either"):
        swapped = {}

    verdict = decide(_finding(comparison)).verdict

    assert decide(_finding(_mirrored(comparison))).verdict == swapped.get(verdict, verdict)
