"""From an experiment that ran to a verdict: the evidence that was gathered, and what the keep rule makes of
it.

Here is the room of steps 6 to 8 of an experiment's life: controls, held-out confirmation and cold replay of a
declared claim. A plain entry has none of them and reaches `lead` at most; `judge_plain` is its whole trial.
The rule itself is `mlxterp.autointerpret.keep_rule`; nothing here can keep an experiment that the rule does
not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.autointerpret.keep_rule import Evidence, Verdict, decide
from mlxterp.autointerpret.numbers import count


@dataclass(frozen=True)
class Judgement:
    """The verdict on one line, and what it rests on. None in `checks` is "not checked"."""

    verdict: Verdict
    checks: dict[str, bool | None]
    measured: dict[str, Any] | None = None


def judge_plain(
    entry: ExperimentEntry,
    *,
    status: str,
    violations: tuple[str, ...] = (),
    identical_to: str | None = None,
    declared: bool = False,
) -> Judgement:
    """The verdict on an entry as its experiment reported it.

    Args:
        entry: with plain values.
        status: how the run ended; "ok" is exit code 0.
        violations: what the run did to the contract.
        identical_to: the id of a different experiment that reported exactly these numbers.
        declared: the experiment declares a hypothesis. No judge has measured it, so it is decided as plain,
        and the
            reasons say so.
    """
    numbers = count(entry.result)
    evidence = Evidence(
        violations=violations,
        status=status,
        numbers=numbers.total,
        nonfinite=numbers.nonfinite,
        identical_to=identical_to,
        informative=entry.informative,
        declared=declared,
    )
    checks: dict[str, bool | None] = {
        "finite": numbers.nonfinite == 0,
        "hook_fired": None,
        "not_no_op": identical_to is None,
        "positive_control": None,
    }
    return Judgement(decide(evidence), checks)


def interrupted(why: str) -> Judgement:
    """The line of a run that a person or a crash ended: the rule has nothing to decide, and nothing is
    kept."""
    return Judgement(Verdict("interrupted", "invalid", kept=False, reasons=(why,)), checks={})


_ACCIDENTS = (
    "more than ",
    "a frame is longer ",
    "the last frame was cut off",
    "an entry that cannot be logged",
)


def forged(bad_frames: Sequence[str]) -> list[str]:
    """Those of a run's bad frames that no honest program sends by accident: a record, a second end,
    another's line."""
    return [frame for frame in bad_frames if not frame.startswith(_ACCIDENTS)]
