"""The keep rule `keep/1`: from what was measured to a verdict, as one table. The agent has no influence here.

Lives here: the evidence, the table, the verdict. Does not live here: measuring (the judge), logging,
committing.

Read the table at `TABLE`: rows are tried in order and the first whose condition holds decides. A condition
returns its reasons, or None. Comparisons are written so that NaN never passes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

RULE = "keep/1"

MAX_NONFINITE_SHARE = 0.05
IDENTITY_TOLERANCE = 1e-3
"""How far from 0 the effect of patching an activation with itself may be, in recovered metric."""

Tier = Literal["lead", "finding", "note", "invalid"]


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A held-out measurement. Effects are signed: positive is the predicted direction.

    Attributes:
        effect, ci: the mean over items and its interval.
        n: items measured.
        mde: minimum detectable effect at this n.
        placebo_p95: 95th percentile of |effect| at random sites or directions; None when it was not measured.
        slices: effect in each declared slice.
        replays: whether a cold run with the same seed gave the same number.
    """

    effect: float
    ci: Interval
    n: int
    mde: float
    placebo_p95: float | None = None
    slices: Mapping[str, float] = field(default_factory=dict)
    replays: bool = False


NOT_MEASURED = (
    "there is no measurement behind its numbers: no model ran through the library since the experiment "
    "began, or since the entry before it"
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
        identity_effect: the effect of patching with the activation that is there already; it should be 0.
        identical_to: id of a *different* experiment whose numbers are the same ones.
        positive_control: whether setup.py's known effect was found.
        informative: the researcher's claim (plain entries).
        measured: whether the library measured something for the entry; None by hand, where it is not asked.
        repeat_of: id of the same experiment, done before.
        replication: the repeat was declared as one.
        declared: whether there is a HYPOTHESIS.
        sesoi: its smallest effect of interest.
        confirm: the judge's held-out measurement of it.
    """

    violations: tuple[str, ...] = ()
    status: str = "ok"
    numbers: int = 0
    nonfinite: int = 0
    hook_fired: bool | None = None
    activation_changed: bool | None = None
    identity_effect: float | None = None
    identical_to: str | None = None
    positive_control: bool | None = None
    informative: bool = False
    measured: bool | None = None
    repeat_of: str | None = None
    replication: bool = False
    declared: bool = False
    sesoi: float | None = None
    confirm: Measured | None = None


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


def decide(evidence: Evidence) -> Verdict:
    """The verdict on this evidence: the first row of `TABLE` that matches, kept only if it is also new."""
    for row in TABLE:
        reasons = row.condition(evidence)
        if reasons is None:
            continue
        if row.kept and evidence.repeat_of is not None and not evidence.replication:
            reasons = [
                *reasons,
                f"not kept: it repeats {evidence.repeat_of} without being declared a replication",
            ]
            return Verdict(row.verdict, row.tier, kept=False, reasons=tuple(reasons))
        return Verdict(row.verdict, row.tier, row.kept, tuple(reasons))
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
    if e.confirm is not None and not _all_finite(e.confirm):
        return ["the held-out measurement is not finite"]
    return None


def _did_nothing(e: Evidence) -> list[str] | None:
    reasons = []
    if e.hook_fired is False:
        reasons.append("an intervention's hook did not fire")
    if e.activation_changed is False:
        reasons.append("the intervention left the activation as it was")
    if e.identity_effect is not None and not abs(e.identity_effect) <= IDENTITY_TOLERANCE:
        reasons.append(f"patching an activation with itself has an effect of {e.identity_effect:g}")
    if e.identical_to is not None:
        reasons.append(f"the numbers are those of {e.identical_to}, a different experiment")
    return reasons or None


def _instrument_fails(e: Evidence) -> list[str] | None:
    return ["the positive control was not found"] if e.positive_control is False else None


def _is_plain(e: Evidence) -> bool:
    return not e.declared or e.confirm is None or e.sesoi is None


def _lead(e: Evidence) -> list[str] | None:
    if (
        not _is_plain(e)
        or not e.informative
        or e.measured is False
        or e.numbers - e.nonfinite <= 0
        or e.repeat_of is not None
    ):
        return None
    return _unjudged(e)


def _note(e: Evidence) -> list[str] | None:
    if not _is_plain(e):
        return None
    reasons = _unjudged(e)
    if e.measured is False:
        reasons.append(NOT_MEASURED)
    if not e.informative:
        reasons.append("the researcher does not call it informative")
    if e.numbers - e.nonfinite <= 0:
        reasons.append("the result holds no numbers")
    if e.repeat_of is not None:
        reasons.append(f"it repeats {e.repeat_of}")
    return reasons


def _unjudged(e: Evidence) -> list[str]:
    return ["declared, not yet judged"] if e.declared else []


def _supported(e: Evidence) -> list[str] | None:
    return [_measured(e)] if not _is_plain(e) and not _shortfalls(e, sign=1) else None


def _refuted(e: Evidence) -> list[str] | None:
    if _is_plain(e) or _shortfalls(e, sign=-1):
        return None
    return [_measured(e), "the effect has the opposite sign"]


def _ruled_out(e: Evidence) -> list[str] | None:
    if e.confirm is None or e.sesoi is None or _is_plain(e):
        return None
    ci, sesoi = e.confirm.ci, e.sesoi
    earned = -sesoi < ci.low and ci.high < sesoi and e.confirm.mde <= sesoi and e.confirm.replays
    return [_measured(e), f"an effect of {sesoi:g} would have been seen"] if earned else None


def _inconclusive(e: Evidence) -> list[str]:
    sign = 1 if e.confirm is None or not e.confirm.effect < 0 else -1
    return [_measured(e), *_shortfalls(e, sign=sign)]


TABLE: tuple[Row, ...] = (
    Row("invalid:contract", "invalid", _contract_broken, kept=False),  # restore, notify; twice: pause
    Row("invalid:execution", "invalid", _did_not_finish, kept=False),
    Row("invalid:nonfinite", "invalid", _not_finite, kept=False),
    Row("invalid:no_op", "invalid", _did_nothing, kept=False),
    Row("invalid:instrument", "invalid", _instrument_fails, kept=False),  # pause after two
    Row("lead", "lead", _lead, kept=True),
    Row("note", "note", _note, kept=False),
    Row("supported", "finding", _supported, kept=True),
    Row("refuted", "finding", _refuted, kept=True),
    Row("ruled_out", "finding", _ruled_out, kept=True),
    Row("inconclusive", "note", _inconclusive, kept=False),
)
"""`keep/1`. The first row whose condition gives reasons decides; an empty list of reasons is a match too."""


def _shortfalls(e: Evidence, *, sign: int) -> list[str]:
    """What keeps the effect from being established with this sign; empty when nothing does."""
    if e.confirm is None or e.sesoi is None:
        return ["there is no held-out measurement"]
    m, effect = e.confirm, sign * e.confirm.effect
    low = m.ci.low if sign > 0 else -m.ci.high
    missing = []
    if not low > 0:
        missing.append(f"the interval [{m.ci.low:.3g}, {m.ci.high:.3g}] includes 0")
    if not effect >= e.sesoi:
        missing.append(f"the effect {m.effect:.3g} is below the smallest effect of interest {e.sesoi:g}")
    if m.placebo_p95 is None:
        missing.append("no placebo was measured")
    elif not effect > m.placebo_p95:
        missing.append(f"random sites reach {m.placebo_p95:.3g} in one case of twenty")
    against = [name for name, value in m.slices.items() if not sign * value > 0]
    if against:
        missing.append(f"the sign does not hold in {', '.join(against)}")
    if not m.replays:
        missing.append("a cold replay did not give the same number")
    return missing


def _measured(e: Evidence) -> str:
    m = e.confirm
    assert m is not None
    return f"effect {m.effect:.3g}, interval [{m.ci.low:.3g}, {m.ci.high:.3g}], {m.n} held-out items"


def _all_finite(m: Measured) -> bool:
    placebo = () if m.placebo_p95 is None else (m.placebo_p95,)
    return all(math.isfinite(x) for x in (m.effect, *m.ci, m.mde, *placebo, *m.slices.values()))
