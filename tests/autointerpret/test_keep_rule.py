"""The keep rule: first match wins, NaN passes nothing, and only what was measured is kept."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxterp.autointerpret.keep_rule import (
    RULE,
    TABLE,
    Evidence,
    Interval,
    Measured,
    decide,
    surprise,
)

LEAD = Evidence(numbers=10, informative=True, hook_fired=True)
EFFECT = Measured(
    effect=0.4, ci=Interval(0.3, 0.5), n=96, mde=0.06, placebo_p95=0.1, slices={"a": 0.3}, replays=True
)
NULL = Measured(effect=0.01, ci=Interval(-0.04, 0.06), n=96, mde=0.08, placebo_p95=0.1, replays=True)
DECLARED = Evidence(numbers=10, declared=True, sesoi=0.1, confirm=EFFECT)


def _opposite(m: Measured) -> Measured:
    ci = Interval(-m.ci.high, -m.ci.low)
    return replace(m, effect=-m.effect, ci=ci, slices={k: -v for k, v in m.slices.items()})


@pytest.mark.parametrize(
    ("evidence", "verdict", "tier", "kept"),
    [
        (replace(LEAD, violations=("setup.py changed",)), "invalid:contract", "invalid", False),
        (replace(LEAD, status="timeout"), "invalid:execution", "invalid", False),
        (replace(LEAD, nonfinite=1), "invalid:nonfinite", "invalid", False),
        (replace(LEAD, numbers=100, nonfinite=5), "lead", "lead", True),
        (replace(LEAD, hook_fired=False), "invalid:no_op", "invalid", False),
        (replace(LEAD, activation_changed=False), "invalid:no_op", "invalid", False),
        (replace(LEAD, identity_effect=0.2), "invalid:no_op", "invalid", False),
        (replace(LEAD, identity_effect=0.0), "lead", "lead", True),
        (replace(LEAD, identical_to="0003"), "invalid:no_op", "invalid", False),
        (replace(LEAD, positive_control=False), "invalid:instrument", "invalid", False),
        (LEAD, "lead", "lead", True),
        (replace(LEAD, informative=False), "note", "note", False),
        (replace(LEAD, numbers=0), "note", "note", False),
        (replace(LEAD, measured=False), "note", "note", False),
        (replace(LEAD, measured=True), "lead", "lead", True),
        (replace(LEAD, repeat_of="0002"), "note", "note", False),
        (replace(LEAD, declared=True), "lead", "lead", True),
        (DECLARED, "supported", "finding", True),
        (replace(DECLARED, confirm=_opposite(EFFECT)), "refuted", "finding", True),
        (replace(DECLARED, confirm=NULL), "ruled_out", "finding", True),
        (replace(DECLARED, repeat_of="0002"), "supported", "finding", False),
        (replace(DECLARED, repeat_of="0002", replication=True), "supported", "finding", True),
    ],
)
def test_each_row_of_the_table(evidence, verdict, tier, kept):
    decided = decide(evidence)

    assert (decided.verdict, decided.tier, decided.kept, decided.rule) == (verdict, tier, kept, RULE)


@pytest.mark.parametrize(
    ("confirm", "reason"),
    [
        (replace(EFFECT, ci=Interval(-0.1, 0.9)), "the interval [-0.1, 0.9] includes 0"),
        (replace(EFFECT, effect=0.05, ci=Interval(0.01, 0.15)), "below the smallest effect of interest 0.1"),
        (replace(EFFECT, placebo_p95=0.45), "random sites reach 0.45"),
        (replace(EFFECT, placebo_p95=None), "no placebo was measured"),
        (replace(EFFECT, slices={"a": 0.3, "b": -0.1}), "the sign does not hold in b"),
        (replace(EFFECT, replays=False), "a cold replay did not give the same number"),
        (replace(NULL, mde=0.2), "includes 0"),
        (replace(NULL, replays=False), "replay"),
        (replace(_opposite(EFFECT), placebo_p95=0.45), "random sites reach"),
    ],
)
def test_an_effect_that_misses_one_condition_is_inconclusive_and_says_which(confirm, reason):
    decided = decide(replace(DECLARED, confirm=confirm))

    assert (decided.verdict, decided.kept) == ("inconclusive", False)
    assert reason in "; ".join(decided.reasons)


def test_a_declaration_that_no_judge_measured_is_treated_as_plain_and_says_so():
    assert decide(replace(LEAD, declared=True)).reasons == ("declared, not yet judged",)
    assert decide(replace(LEAD, declared=True, informative=False)).reasons[0] == "declared, not yet judged"


def test_surprise_ranks_by_the_forecast_and_is_finite():
    forecast = {"supported": 0.5, "refuted": 0.0, "ruled_out": 0.5}

    assert surprise("supported", forecast) == 1.0
    assert surprise("refuted", forecast) == 10.0
    assert surprise("lead", forecast) is None
    assert math.copysign(1, surprise("supported", {"supported": 1.0}) or 0.0) == 1


NUMBER = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1, 1)
MEASURED = st.builds(
    Measured,
    effect=NUMBER,
    ci=st.builds(Interval, NUMBER, NUMBER),
    n=st.integers(0, 200),
    mde=NUMBER,
    placebo_p95=st.none() | NUMBER,
    slices=st.dictionaries(st.sampled_from(["a", "b"]), NUMBER),
    replays=st.booleans(),
)
MAYBE = st.none() | st.booleans()
EVIDENCE = st.builds(
    Evidence,
    violations=st.just(()) | st.just(("setup.py changed",)),
    status=st.sampled_from(["ok", "ok", "error", "timeout", "crashed", "oom", "interrupted"]),
    numbers=st.integers(0, 100),
    nonfinite=st.just(0) | st.integers(0, 100),
    hook_fired=MAYBE,
    activation_changed=MAYBE,
    identity_effect=st.none() | NUMBER,
    identical_to=st.none() | st.just("0001"),
    positive_control=MAYBE,
    informative=st.booleans(),
    repeat_of=st.none() | st.just("0001"),
    replication=st.booleans(),
    declared=st.booleans(),
    sesoi=st.none() | NUMBER,
    confirm=st.none() | MEASURED,
)


@given(EVIDENCE)
def test_the_first_row_that_matches_decides(evidence):
    matching = [row.verdict for row in TABLE[:-1] if row.condition(evidence) is not None]

    assert decide(evidence).verdict == (matching[0] if matching else "inconclusive")


@given(EVIDENCE, st.sampled_from(["violations", "status", "hook_fired", "identical_to", "positive_control"]))
def test_nothing_is_kept_once_the_run_was_not_clean(evidence, spoiled):
    worst = {
        "violations": ("the log was edited",),
        "status": "crashed",
        "hook_fired": False,
        "identical_to": "0001",
        "positive_control": False,
    }

    decided = decide(replace(evidence, **{spoiled: worst[spoiled]}))

    assert (decided.kept, decided.tier) == (False, "invalid")
    assert decided.reasons


KEPT = (LEAD, DECLARED, replace(DECLARED, confirm=_opposite(EFFECT)), replace(DECLARED, confirm=NULL))
PLACES = ["effect", "mde", "placebo_p95", "low", "high", "slice", "sesoi", "identity_effect"]


@given(EVIDENCE | st.sampled_from(KEPT), st.sampled_from(PLACES))
def test_nan_passes_no_comparison(evidence, where):
    confirm = evidence.confirm or EFFECT
    spoiled = {
        "low": replace(confirm, ci=Interval(math.nan, confirm.ci.high)),
        "high": replace(confirm, ci=Interval(confirm.ci.low, math.nan)),
        "slice": replace(confirm, slices={"a": math.nan}),
    }
    if where in ("effect", "mde", "placebo_p95"):
        spoiled[where] = replace(confirm, **{where: math.nan})
    changes = {where: math.nan} if where in ("sesoi", "identity_effect") else {"confirm": spoiled[where]}
    if where != "identity_effect":
        evidence = replace(evidence, declared=True, sesoi=evidence.sesoi or 0.1, confirm=confirm)

    assert not decide(replace(evidence, **changes)).kept


@given(EVIDENCE)
def test_a_kept_finding_was_measured_and_a_kept_lead_was_claimed(evidence):
    decided = decide(evidence)

    if decided.kept:
        assert evidence.status == "ok"
        assert evidence.repeat_of is None or evidence.replication
        if decided.tier == "finding":
            assert evidence.declared
            assert evidence.confirm is not None
            assert evidence.confirm.replays
        else:
            assert evidence.informative
            assert evidence.numbers > evidence.nonfinite


@given(MEASURED, st.floats(0.01, 1))
def test_turning_the_sign_around_swaps_supported_and_refuted(confirm, sesoi):
    swapped = {"supported": "refuted", "refuted": "supported"}
    evidence = Evidence(declared=True, sesoi=sesoi, confirm=confirm)

    verdict = decide(evidence).verdict

    assert decide(replace(evidence, confirm=_opposite(confirm))).verdict == swapped.get(verdict, verdict)
