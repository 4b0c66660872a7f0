"""What an investigation may use, and what it has used. Everything is counted from the journal, so a crash
refunds nothing.

Lives here: limits, sums, the reason to stop. Does not live here: what follows from a reached limit
(`loop.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from mlxterp_agent.exit_codes import BadLimit
from mlxterp_agent.platform import Clock
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.storage.history import History, read_history
from mlxterp_agent.storage.journal import Journal

SHORTEST_TIME_BOX = 1.0
"""Seconds. With less than this left, an experiment is not started."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where an investigation stops; None is no limit.

    Attributes:
        experiments: how many are started, crashed and interrupted ones included.
        seconds: time under supervision over all starts, sleep included.
        until: wall time, in seconds since 1970.
        usd, tokens: what the researcher may cost.
        streak: experiments in a row without a kept entry.
    """

    experiments: int | None = None
    seconds: float | None = None
    until: float | None = None
    usd: float | None = None
    tokens: int | None = None
    streak: int | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None:
                continue
            if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
                raise BadLimit(
                    f"the limit {each.name} is {value!r}, which limits nothing. "
                    "Give a number above 0, or leave it out."
                )


class Spent(NamedTuple):
    """What has been used. None is unknown: the researcher did not say what it costs."""

    experiments: int
    seconds: float
    usd: float | None
    tokens: int | None
    streak: int


def budget_state(spent: Spent, limits: Limits, seconds_left: float | None) -> BudgetState:
    """What is spent and left, as researchers and screens show it."""
    return BudgetState(
        experiments=spent.experiments,
        experiments_left=_left(limits.experiments, spent.experiments),
        seconds=spent.seconds,
        seconds_left=seconds_left,
        usd=spent.usd,
        usd_left=None if limits.usd is None else limits.usd - (spent.usd or 0.0),
        tokens=spent.tokens,
        tokens_left=_left(limits.tokens, spent.tokens or 0),
    )


def _left(limit: int | None, spent: int) -> int | None:
    return None if limit is None else max(0, limit - spent)


class Reached(NamedTuple):
    """A limit that is reached: which of `endings.ENDINGS`, and the sentence."""

    ending: str
    reason: str


FASTEST = 1_000.0
"""Tokens a second that no service writes: several times what the fastest models do."""

_AFTER_THE_END = 5.0
"""Seconds for which a service may go on writing after the connection is gone, and between two heartbeats."""


class OpenCall(NamedTuple):
    """A call that a kill left open, and the most that it can have cost until then."""

    call: str
    usd: float
    tokens: int


def bound_open_calls(history: History, alive_until: float | None) -> list[OpenCall]:
    """The calls of a killed supervisor that cost less than was reserved for them, by the time it had left.

    A service stops an answer when the connection is gone. So a call that was reserved `s` seconds before the
    last heartbeat got its whole prompt, and at most `FASTEST` tokens a second of its answer. Without a
    heartbeat of this boot nothing is known, and everything that was reserved counts.

    Args:
        history: up to the kill, without events of the supervisor that starts now.
        alive_until: the last heartbeat, on the clock `elapsed`; None if there is none of this boot.
    """
    found: list[OpenCall] = []
    for call, held in history.held.items():
        known = alive_until is not None and history.session.first <= held.at <= alive_until + _AFTER_THE_END
        if not known or alive_until is None or held.usd is None or not held.answer_tokens:
            continue
        written = FASTEST * (max(0.0, alive_until - held.at) + _AFTER_THE_END)
        unwritten = 1.0 - min(1.0, written / held.answer_tokens)
        tokens = (held.tokens or 0) - int(unwritten * held.answer_tokens)
        found.append(OpenCall(call, held.usd - unwritten * held.answer_usd, tokens))
    return found


class Budget:
    """Holds what the journal's history adds up against the limits.

    `intent` counts an experiment, `result` moves the streak, `charge` costs money. The time of one session
    goes from its start to its last event (of the running one: to now). After a run that the streak stopped, a
    new streak begins: starting it again was a decision.

    Args:
        history: of this journal; read from it by default.
    """

    def __init__(
        self, limits: Limits, clock: Clock, journal: Journal, history: History | None = None
    ) -> None:
        self.limits = limits
        self._clock = clock
        self._journal = journal
        self._history = read_history(journal) if history is None else history
        self._unsettled = frozenset(self._history.held)
        self._began = clock.elapsed()
        self._before = self._history.seconds

    def spent(self) -> Spent:
        """The sums so far."""
        history = self._history
        usd, tokens = history.usd, history.tokens
        for call in self._unsettled & history.held.keys():
            held = history.held[call]
            usd = usd if held.usd is None else (usd or 0.0) + held.usd
            tokens = tokens if held.tokens is None else (tokens or 0) + held.tokens
        seconds = self._before + max(0.0, self._clock.elapsed() - self._began)
        return Spent(history.experiments, seconds, usd, tokens, history.streak_with(self.limits.streak))

    def state(self) -> BudgetState:
        """What is spent and left, as researchers and screens show it."""
        return budget_state(self.spent(), self.limits, self.seconds_left())

    def seconds_left(self) -> float | None:
        """Seconds until the first limit of time, never negative; None if nothing limits the time."""
        left = []
        if self.limits.seconds is not None:
            left.append(self.limits.seconds - self.spent().seconds)
        if self.limits.until is not None:
            left.append(self.limits.until - self._clock.wall())
        return max(0.0, min(left)) if left else None

    def stop_reason(self) -> str | None:
        """Which limit is reached: "the budget of 40 experiments is used up". None while there is none."""
        reached = self.reached()
        return None if reached is None else reached.reason

    def reached(self) -> Reached | None:
        """The first limit that is reached, and its sentence; None while there is none."""
        limits, spent = self.limits, self.spent()
        if limits.experiments is not None and spent.experiments >= limits.experiments:
            return Reached("experiments", f"the budget of {limits.experiments} experiments is used up")
        if limits.seconds is not None and spent.seconds >= limits.seconds:
            return Reached("hours", f"the budget of {limits.seconds / 3600:.3g} hours is used up")
        if limits.until is not None and self._clock.wall() >= limits.until:
            return Reached("until", "the time set by --until has come")
        if limits.usd is not None and (spent.usd or 0.0) >= limits.usd:
            return Reached("usd", f"the budget of ${limits.usd:.2f} is used up")
        if limits.tokens is not None and (spent.tokens or 0) >= limits.tokens:
            return Reached("tokens", f"the budget of {limits.tokens:,} tokens is used up")
        if limits.streak is not None and spent.streak >= limits.streak:
            return Reached("streak", f"{spent.streak} experiments in a row brought nothing that is kept")
        return None

    def reserve(self, time_box: float) -> float | None:
        """The time box, shortened to what is left; None if no experiment may start."""
        if self.stop_reason() is not None:
            return None
        left = self.seconds_left()
        if left is None:
            return time_box
        return min(time_box, left) if left >= SHORTEST_TIME_BOX else None

    def hold(
        self,
        call: str,
        usd: float | None,
        tokens: int | None,
        *,
        answer_usd: float = 0.0,
        answer_tokens: int = 0,
    ) -> None:
        """Writes to the journal what a call may cost at worst, before it is made.

        `charge` with the same `call` settles it. What a crash leaves unsettled counts as spent, as the call
        may have been made; `bound_open_calls` says how much of its answer it may have got.

        Args:
            answer_usd, answer_tokens: the part of its answer.
        """
        answer = {"answer_usd": answer_usd, "answer_tokens": answer_tokens}
        self._journal.append("hold", call=call, usd=usd, tokens=tokens, **answer)

    def charge(
        self,
        usd: float | None,
        tokens: int | None,
        *,
        call: str | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        """Writes to the journal what the researcher has just cost; None is unknown."""
        self._journal.append("charge", usd=usd, tokens=tokens, call=call, details=dict(details or {}))
