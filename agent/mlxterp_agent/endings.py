"""Every way in which a run ends: what is said, what to do next, the exit code. One table, which the command
prints from and `docs/guides/errors.md` is written from.

Lives here: the table, and the line "Go on:" for one end. Does not live here: when each comes about
(`supervisor/loop.py`, the researchers), what the exit codes mean (`exit_codes.py`).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import NamedTuple

from mlxterp_agent.exit_codes import (
    CONTRACT,
    FINISHED,
    INTERRUPTED,
    MACHINE,
    PROJECT,
    RESEARCHER,
    Ended,
)
from mlxterp_agent.run_config import Options

_FINISHED = "finished"
_OTHER = "researcher"


class Ending(NamedTuple):
    """One way to end.

    Attributes:
        says: how the reason begins, or what it is about.
        go_on: what to do next; `{start}` is `autointerp start DIR`, `{dir}` the directory, and `{more}` the
            limit that was reached, doubled.
        exit_code: of the command.
    """

    says: str
    go_on: str
    exit_code: int


ENDINGS = {
    "experiments": Ending(
        "the budget of N experiments is used up", "{start} --max-experiments {more}", FINISHED
    ),
    "hours": Ending("the budget of N hours is used up", "{start} --hours {more}", FINISHED),
    "until": Ending("the time set by --until has come", "{start} --until HH:MM", FINISHED),
    "usd": Ending("the budget of $N is used up", "{start} --max-usd {more}", FINISHED),
    "tokens": Ending("the budget of N tokens is used up", "{start} --max-tokens {more}", FINISHED),
    "question_cost": Ending(
        "what is left of the budget does not pay for another question",
        "{start} with a larger --max-usd or --max-tokens",
        FINISHED,
    ),
    "too_short": Ending(
        "the time that is left is too short for another experiment", "{start} --hours {more}", FINISHED
    ),
    "streak": Ending(
        "N experiments in a row brought nothing that is kept",
        "say in {dir}/steer.md what to try instead, then {start}",
        FINISHED,
    ),
    "nothing_new": Ending(
        "nothing is left to try: 3 turns in a row brought no new experiment",
        "say in {dir}/steer.md what to try, then {start}",
        FINISHED,
    ),
    _FINISHED: Ending(
        "the researcher is through: the question is answered, or stays open",
        "edit {dir}/program.md and {start}, or write your own experiment.py and: autointerp run {dir}",
        FINISHED,
    ),
    "stop": Ending("there is a file STOP; remove it to go on", "rm {dir}/STOP && {start}", FINISHED),
    "interrupted": Ending("interrupted by Ctrl-C, SIGTERM or SIGHUP", "{start}", INTERRUPTED),
    "violated": Ending(
        "the contract was violated twice; paused until a person has looked",
        "look at what was changed (autointerp log {dir}), then {start}",
        CONTRACT,
    ),
    "log": Ending(
        "the log or the journal holds something that nobody of us wrote",
        "autointerp verify {dir} names it; when it is put right, {start}",
        CONTRACT,
    ),
    "instrument": Ending(
        "the instrument failed twice in a row: with this setup.py nothing can be measured",
        "correct {dir}/setup.py, then {start} --reseal",
        PROJECT,
    ),
    "disk": Ending(
        "the disk is full", "free some space (autointerp doctor {dir} shows it), then {start}", MACHINE
    ),
    "key": Ending(
        "the key or the login was refused",
        "log in (run `claude` once) or set ANTHROPIC_API_KEY to a key that works, then {start}",
        RESEARCHER,
    ),
    "account": Ending("the account cannot pay", "add credit to the account, then {start}", RESEARCHER),
    "model": Ending(
        "the service does not know the model, or what was asked for", "{start} --agent-model NAME", RESEARCHER
    ),
    "service": Ending(
        "the service did not answer in time, or never",
        "check the connection, the proxy and --base-url; when it answers, {start}",
        RESEARCHER,
    ),
    "service_for_now": Ending(
        "the service will not answer before the time is up",
        "{start} --hours {more}, when it answers",
        FINISHED,
    ),
    "old_client": Ending(
        "Claude Code is too old", "update Claude Code (`claude update`), then {start}", RESEARCHER
    ),
    "crash": Ending(
        "the researcher's process was lost again and again",
        "try `claude` by hand in {dir}; then {start}, or with another --agent",
        RESEARCHER,
    ),
    _OTHER: Ending("the researcher cannot continue", "{start}, or with another --agent", RESEARCHER),
}
"""By name; `Ended.ending` is one of them."""


def end(name: str, reason: str) -> Ended:
    """The end of this name, with its exit code."""
    return Ended(reason, ENDINGS[name].exit_code, name)


def refused(status: int | None) -> str:
    """The end that the status of a refused request stands for."""
    return {401: "key", 402: "account", 403: "key", 404: "model"}.get(status or 0, _OTHER)


def go_on(ended: Ended, project: Path, options: Options | None) -> str:
    """What helps after this end, with the directory and the limit that was reached."""
    directory = shlex.quote(str(project))
    return ENDINGS[ended.ending].go_on.format(
        dir=directory, start=f"autointerp start {directory}", more=_more(ended.ending, options)
    )


def _more(name: str, options: Options | None) -> str:
    """Twice the limit that was reached."""
    if options is None:
        return "N"
    limits: dict[str, float | None] = {
        "experiments": options.max_experiments,
        "hours": None if options.seconds is None else options.seconds / 3600,
        "usd": options.usd,
        "tokens": options.tokens,
    }
    limit = limits.get("hours" if name in ("too_short", "service_for_now") else name)
    return "N" if limit is None else f"{2 * limit:.10g}"


def table() -> str:
    """The table in Markdown."""
    rows = ["| it says | go on | exit code |", "|---|---|---|"]
    for each in ENDINGS.values():
        what = each.go_on.format(dir="DIR", start="autointerp start DIR", more="N")
        rows.append(f"| {each.says} | {_code(what)} | {each.exit_code} |")
    return "\n".join(rows)


def _code(text: str) -> str:
    return text.replace("autointerp start DIR", "`autointerp start DIR`")
