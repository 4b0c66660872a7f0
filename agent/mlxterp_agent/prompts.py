"""The prompts of a language model: the stable system prompt, and the beginning of a conversation.

Their templates are in `templates/prompts/`. Lives here: filling them in, within a stated size, and keeping
the system prompt stable, since the service caches it. Signatures come from the installed library
(`api_help.py`), so that they are those of the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2

from mlxterp._files import locate
from mlxterp.autointerpret.contract import PROGRAM, SETUP, load_project
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.api_help import essentials
from mlxterp_agent.platform import NotRegular, read_regular
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.state_md import overview_of, state_text
from mlxterp_agent.text import cut, plain

FILE_LIMIT = 12_000
"""Bytes of program.md and of setup.py that go into the system prompt; the agent can read the rest."""

STEER_LIMIT = 4_000


def system_text(project: Path, facts: Mapping[str, object]) -> str:
    """The system prompt: the task, the files, the rules, the library. The same until a person edits
    program.md."""
    return (
        _templates()
        .get_template("system.md.j2")
        .render(
            program=_file(project / PROGRAM),
            setup=_file(project / SETUP),
            time_box=load_project(project).config.time_per_experiment,
            facts={name: plain(str(value)) for name, value in sorted(facts.items()) if value is not None},
            library=essentials(),
        )
    )


def opening_text(
    *,
    facts: Mapping[str, object],
    entries: Sequence[ExperimentEntry],
    budget: BudgetState,
    steer: str = "",
    last: str = "",
) -> str:
    """The first message of a conversation: the state of the investigation (at most 6 kB), guidance, the last
    verdict."""
    state = state_text(
        question=str(facts.get("question") or "see program.md"),
        model=str(facts.get("model") or "see setup.py"),
        log=overview_of(entries),
        budget=budget,
    )
    return (
        _templates()
        .get_template("opening.md.j2")
        .render(state=state, steer=cut(plain(steer), STEER_LIMIT), last=cut(plain(last), 2_000))
    )


def _file(path: Path) -> str:
    try:
        text = plain(read_regular(path).decode("utf-8", errors="replace"))
    except (OSError, NotRegular) as problem:
        return f"({path.name} cannot be read: {problem})"
    return cut(text, FILE_LIMIT)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(locate("templates") / "prompts")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # for a model to read, not for a browser
    )
