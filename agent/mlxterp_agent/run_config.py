"""The options of the command line, merged with the project's configuration.

Values are checked here, once, before anything starts; `storage/budget.py` and `supervisor/loop.py` use them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from mlxterp.autointerpret.contract import ProjectConfig
from mlxterp_agent.exit_codes import UsageError
from mlxterp_agent.storage.budget import Limits

AGENT_STREAK = 12


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one supervised run is limited.

    Attributes:
        time_per_experiment: the time box of one experiment, in seconds.
        max_experiments: experiments of the whole investigation, earlier runs included.
        seconds: time of the whole investigation, earlier runs included.
        until: the wall-clock time (seconds since 1970) at which this run ends.
        usd, tokens: what the researcher may cost in the whole investigation.
        streak: experiments in a row without a kept entry after which the run ends.
        reseal: take the setup.py that is there now as the sealed one.
        allow_unsandboxed: run experiments without a jail.
    """

    time_per_experiment: float = 120.0
    max_experiments: int | None = None
    seconds: float | None = None
    until: float | None = None
    usd: float | None = None
    tokens: int | None = None
    streak: int | None = None
    reseal: bool = False
    allow_unsandboxed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The options as the journal keeps them."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Options:
        """The inverse of `to_dict`; keys of other versions are left out."""
        return Options(**{each.name: values[each.name] for each in fields(Options) if each.name in values})

    def limits(self) -> Limits:
        """The limits as the budget keeps them."""
        return Limits(
            experiments=self.max_experiments,
            seconds=self.seconds,
            until=self.until,
            usd=self.usd,
            tokens=self.tokens,
            streak=self.streak,
        )


def merge(
    config: ProjectConfig,
    *,
    now: datetime,
    max_experiments: int | None = None,
    hours: float | None = None,
    until: str | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    time_per_experiment: float | None = None,
    streak: int | None = None,
    reseal: bool = False,
    allow_unsandboxed: bool = False,
) -> Options:
    """The options of a run: the command line first, the project's configuration where it says nothing.

    Raises:
        UsageError: a number that is zero, negative or not finite, or a time that is no HH:MM.
    """
    hours = _above_zero("--hours", hours)
    return Options(
        time_per_experiment=_above_zero("--time-per-experiment", time_per_experiment)
        or config.time_per_experiment,
        max_experiments=_count("--max-experiments", max_experiments) or config.max_experiments,
        seconds=None if hours is None else hours * 3600,
        until=None if until is None else next_time(until, now=now).timestamp(),
        usd=_above_zero("--max-usd", max_usd),
        tokens=_count("--max-tokens", max_tokens),
        streak=streak,
        reseal=reseal,
        allow_unsandboxed=allow_unsandboxed,
    )


def next_time(text: str, *, now: datetime) -> datetime:
    """The next moment at which the clock shows `text`, today or tomorrow.

    Args:
        now: without a time zone, so that the zone's own rules give the moment, also after a change of the
            clocks in between.
    """
    match = re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        raise UsageError(
            f"--until {text!r} is no time of day. Write it as HH:MM, for instance --until 07:00."
        )
    then = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)


def _above_zero(option: str, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise UsageError(
            f"{option} {value:g} limits nothing. Give a number above 0, or leave the option out."
        )
    return value


def _count(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UsageError(
            f"{option} {value} allows nothing. Give a whole number from 1 up, or leave the option out."
        )
    return value
