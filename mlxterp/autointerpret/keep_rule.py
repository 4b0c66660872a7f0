"""The keep rule `keep/2`: from what was measured to a verdict, as one table. The agent has no influence here.

Lives here: the evidence, the table, the verdict. Does not live here: measuring (the judge), statistics
(`mlxterp.statistics`), logging, committing.

Read the table at `TABLE`: rows are tried in order and the first whose condition holds decides. A condition
returns its reasons, or None. Comparisons are written so that NaN never passes one. No reason holds a number
that was measured on held-out pairs: reasons are read by the agent while the investigation runs.

Lines of the log that name the rule `keep/1` were decided by its table, and stay as they are: a lead was then
any clean run that its researcher called informative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mlxterp.statistics.outcome import N_MIN, Comparison, Outcome, outcome_of, told

RULE = "keep/2"

MAX_NONFINITE_SHARE = 0.05

Tier = Literal["lead", "finding", "claim", "note", "invalid"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A claim as the judge measured it on held-out clusters.

    Attributes:
        comparison: the effect, its interval, and what it is held against (`mlxterp.statistics.outcome`).
        n: independent clusters.
        more_than_others: whether the effect exceeds that of every other head of the layer; None if the claim
            does not say so.
        replays: whether a second, cold measurement gave the same numbers; None if none was made.
        more_clusters: about how many more clusters would decide the claim; None if unknown.
    """

    comparison: Comparison
    n: int
    more_than_others: bool | None = None
    replays: bool | None = None
    more_clusters: int | None = None

    @property
    def outcome(self) -> Outcome:
        """What the numbers say, before the question whether they replay."""
        if not self.n >= N_MIN:
            return "inconclusive"
        found = outcome_of(self.comparison)
        return "inconclusive" if found == "supported" and self.more_than_others is False else found


@dataclass(frozen=True)
class EarlierVerdict:
    """What was decided before about the same claim, and in which run."""

    verdict: str
    run: str


NOT_MEASURED = (
    "nothing was measured behind its numbers: since the experiment began, or since its entry before this "
    "one, no model ran through the library"
)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything the rule may use. None means "not checked", and is never taken for a pass or a failure.

    Attributes:
        violations: what broke the contract: setup, log or snapshot changed, a process escaped, a forged
            report.
        status: how the run ended; "ok" is exit code 0.
        numbers, nonfinite: how many numbers the result holds (or items were due), and how many are missing,
            NaN or infinite.
        hook_fired, activation_changed: whether each intervention ran, and did something.
        identity_holds: whether patching with the activation that is there already left the metric alone.
        identical_to: id of a *different* experiment whose numbers are the same ones (plain entries).
        instrument: why nothing can be measured here: no behaviour to explain, a control that fails.
        informative: the researcher's claim (plain entries).
        measured: whether the library measured something for the entry; None by hand, where it is not asked.
        prediction_held: whether a stated prediction came true (plain entries); None without one.
        repeat_of: id of the same experiment, done before (plain entries).
        declared: whether there is a HYPOTHESIS.
        judged_before: the verdict on the same claim, in whatever words it was made.
        not_judged: why a declared claim was not measured, or not to its end; "" if it was.
        confirm: the judge's held-out measurement of it.
        agrees_with: id of a finding that another method made about the same sites, in the same sense.
        rules_out_rival_of: id of a finding whose declared rival this measurement rules out.
    """

    violations: tuple[str, ...] = ()
    status: str = "ok"
    numbers: int = 0
    nonfinite: int = 0
    hook_fired: bool | None = None
    activation_changed: bool | None = None
    identity_holds: bool | None = None
    identical_to: str | None = None
    instrument: tuple[str, ...] = ()
    informative: bool = False
    measured: bool | None = None
    prediction_held: bool | None = None
    repeat_of: str | None = None
    declared: bool = False
    judged_before: EarlierVerdict | None = None
    not_judged: str = ""
    confirm: Measured | None = None
    agrees_with: str | None = None
    rules_out_rival_of: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What the rule decided: `verdict`, its tier, whether the experiment is kept, and why."""

    verdict: str
    tier: Tier
    kept: bool
    reasons: tuple[str, ...] = ()
    rule: str = RULE


class Row(NamedTuple):
    """One row of the table: when `condition` gives reasons, this is the verdict."""

    verdict: str
    tier: Tier
    condition: Callable[[Evidence], list[str] | None]
    kept: bool


SAME_CLAIM = "(as before)"
"""The row for a claim that was judged already: its verdict is the earlier one."""


def decide(evidence: Evidence) -> Verdict:
    """The verdict on this evidence: the first row of `TABLE` that matches."""
    for row in TABLE:
        reasons = row.condition(evidence)
        if reasons is None:
            continue
        verdict = row.verdict
        if verdict == SAME_CLAIM:
            assert evidence.judged_before is not None, "the row's condition"
            verdict = evidence.judged_before.verdict
        return Verdict(verdict, row.tier, row.kept, tuple(reasons))
    raise AssertionError("the last row of the table matches everything")


def surprise(verdict: str, forecast: Mapping[str, float]) -> float | None:
    """−log2 of the probability given to what happened, at most 10 bits; None for verdicts that are not
    forecast.

    Findings are ranked by it. It is never a reason to keep.
    """
    if verdict not in forecast:
        return None
    return -math.log2(max(forecast[verdict], 2**-10)) + 0.0


def _contract_broken(e: Evidence) -> list[str] | None:
    return list(e.violations) or None


def _did_not_finish(e: Evidence) -> list[str] | None:
    return None if e.status == "ok" else [f"the run ended with status {e.status!r}"]


def _not_finite(e: Evidence) -> list[str] | None:
    if e.nonfinite > 0 and not e.nonfinite <= MAX_NONFINITE_SHARE * e.numbers:
        return [f"{e.nonfinite} of {e.numbers} numbers are missing, NaN or infinite"]
    if e.confirm is not None and not e.confirm.comparison.finite:
        return ["the held-out measurement is not finite"]
    return None


def _did_nothing(e: Evidence) -> list[str] | None:
    reasons = []
    if e.hook_fired is False:
        reasons.append("an intervention's hook did not fire")
    if e.activation_changed is False:
        reasons.append("the intervention left the activation as it was")
    if e.identity_holds is False:
        reasons.append("patching the activation with itself moves the metric")
    if e.identical_to is not None:
        reasons.append(f"the numbers are those of {e.identical_to}, a different experiment")
    return reasons or None


def _instrument_fails(e: Evidence) -> list[str] | None:
    return list(e.instrument) or None


def _same_claim(e: Evidence) -> list[str] | None:
    if not e.declared or e.judged_before is None:
        return None
    return [
        f"the same claim was judged in run {e.judged_before.run}; one claim, in whatever words, gets one "
        "verdict"
    ]


def _note(e: Evidence) -> list[str] | None:
    if e.declared:
        return None
    reasons = []
    if e.measured is False:
        reasons.append(NOT_MEASURED)
    if not e.informative:
        reasons.append("the researcher does not call it informative")
    if e.numbers - e.nonfinite <= 0:
        reasons.append("the result holds no numbers")
    if e.prediction_held is False:
        reasons.append("its stated prediction did not come true")
    if e.repeat_of is not None:
        reasons.append(f"it repeats {e.repeat_of}")
    return reasons or None


def _lead(e: Evidence) -> list[str] | None:
    return None if e.declared else []


def _decided(e: Evidence, outcome: Outcome) -> list[str] | None:
    m = e.confirm
    if e.not_judged or m is None or m.outcome != outcome or m.replays is not True:
        return None
    return [f"measured again on {m.n} independent clusters that were held out, twice with the same numbers"]


def _supported(e: Evidence) -> list[str] | None:
    return _decided(e, "supported")


def _refuted(e: Evidence) -> list[str] | None:
    return _decided(e, "refuted")


def _ruled_out(e: Evidence) -> list[str] | None:
    return _decided(e, "ruled_out")


def _beyond_one_finding(e: Evidence) -> list[str] | None:
    reasons = []
    if e.agrees_with is not None:
        reasons.append(f"agrees with {e.agrees_with}, which another method found")
    if e.rules_out_rival_of is not None:
        reasons.append(f"rules out a rival of {e.rules_out_rival_of}")
    return reasons or None


def _also_beyond_one_finding(
    condition: Callable[[Evidence], list[str] | None],
) -> Callable[[Evidence], list[str] | None]:
    def both(e: Evidence) -> list[str] | None:
        decided, more = condition(e), _beyond_one_finding(e)
        return None if decided is None or more is None else [*decided, *more]

    return both


def _inconclusive(e: Evidence) -> list[str]:
    m = e.confirm
    if e.not_judged:
        return [e.not_judged]
    if m is None:
        return ["there is no held-out measurement"]
    if not m.n >= N_MIN:
        return [f"{m.n} independent clusters could be measured, and a verdict takes {N_MIN}"]
    if m.outcome != "inconclusive":
        made = "a second measurement gave other numbers" if m.replays is False else "measured only once"
        return [f"missing: replay ({made})"]
    if outcome_of(m.comparison) != "inconclusive":
        return ["missing: more than every other head of the layer"]
    named = told(m.comparison)
    more = [_how_many_more(m.more_clusters)] if "interval" in named else []
    return ["missing: " + ", ".join(named), *more]


TABLE: tuple[Row, ...] = (
    Row("invalid:contract", "invalid", _contract_broken, kept=False),  # restore, notify; twice: pause
    Row("invalid:execution", "invalid", _did_not_finish, kept=False),
    Row("invalid:nonfinite", "invalid", _not_finite, kept=False),
    Row("invalid:no_op", "invalid", _did_nothing, kept=False),
    Row("invalid:instrument", "invalid", _instrument_fails, kept=False),  # pause after two
    Row(SAME_CLAIM, "note", _same_claim, kept=False),
    Row("note", "note", _note, kept=False),
    Row("lead", "lead", _lead, kept=True),
    Row("supported", "claim", _also_beyond_one_finding(_supported), kept=True),
    Row("refuted", "claim", _also_beyond_one_finding(_refuted), kept=True),
    Row("ruled_out", "claim", _also_beyond_one_finding(_ruled_out), kept=True),
    Row("supported", "finding", _supported, kept=True),
    Row("refuted", "finding", _refuted, kept=True),
    Row("ruled_out", "finding", _ruled_out, kept=True),
    Row("inconclusive", "note", _inconclusive, kept=False),
)
"""`keep/2`. The first row whose condition gives reasons decides; an empty list of reasons is a match too.

| condition | verdict |
|---|---|
| setup, config, log or snapshot changed, process escaped, forged report | invalid:contract |
| crash, timeout, out of memory, killed | invalid:execution |
| more than 5 % of the numbers missing or not finite | invalid:nonfinite |
| hook did not fire, activation unchanged, identity patch ≠ 0, numbers of another experiment | invalid:no_op |
| no behaviour to explain, a control fails, the shuffled twin shows the behaviour | invalid:instrument |
| declared, and judged before | the earlier verdict, not kept again |
| plain: nothing measured, not called informative, no numbers, prediction failed, a repeat | note |
| plain: everything else | lead |
| low > S/2, R ≥ S, \\|R\\| > bar, R > 0 in every slice, n ≥ 16, replays | supported |
| the mirror image | refuted |
| −S < low, high < S, n ≥ 16, replays | ruled_out |
| one of these three, and another method agrees or a rival is ruled out | the same, of the tier claim |
| anything else | inconclusive |
"""


def _how_many_more(clusters: int | None) -> str:
    if clusters is None:
        return "more clusters are unlikely to decide it: the effect is close to the smallest of interest"
    return f"about {clusters} more independent clusters would decide an effect of 1.5 times the smallest one"
