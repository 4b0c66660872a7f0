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
from mlxterp.autointerpret.hypothesis import DIRECTIONS, OPERATIONS, ROLES, SESOI_GRID
from mlxterp.autointerpret.prediction import EXAMPLE as PREDICTION
from mlxterp.component_names import LAYER_NAMES, PER_HEAD, SHORT_NAMES
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
            values=values_text(facts),
        )
    )


def opening_text(
    *,
    facts: Mapping[str, object],
    entries: Sequence[ExperimentEntry],
    budget: BudgetState,
    steer: str = "",
    last: str = "",
    notes: Sequence[str] = (),
) -> str:
    """The first message of a conversation: the state of the investigation (at most 6 kB), guidance, the last
    verdict."""
    state = state_text(
        question=str(facts.get("question") or "see program.md"),
        model=str(facts.get("model") or "see setup.py"),
        log=overview_of(entries),
        budget=budget,
        notes=notes,
    )
    return (
        _templates()
        .get_template("opening.md.j2")
        .render(state=state, steer=cut(plain(steer), STEER_LIMIT), last=cut(plain(last), 2_000))
    )


SHORT = ("attn", "mlp", "attn_head")
"""The short names of components that a sweep takes too."""

BY = ("layer", "layer_pos", "layer_head", "layer_pos_head")
"""What `by=` of a sweep may be; those with a head for components that have heads."""


def values_text(facts: Mapping[str, object]) -> str:
    """The values that arguments and declarations take, for the loaded model and this setup.py."""
    named = facts.get("metrics")
    metrics = ", ".join(map(repr, named)) if isinstance(named, (list, tuple)) and named else "see setup.py"
    components = ", ".join(map(repr, LAYER_NAMES))
    aliases = ", ".join(f"{short!r} is {SHORT_NAMES[short]!r}" for short in SHORT)
    return plain(
        "\n".join(
            [
                "Allowed values:",
                f"- component: {components}; {aliases}",
                f"- by: {', '.join(map(repr, BY))} (with 'head' for {', '.join(PER_HEAD)} only)",
                f"- metric: {metrics}, as setup.py's `metrics` holds them, or a function",
                "- direction of a sweep: 'denoising' (clean into corrupted), 'noising' (the other way)",
                f"- Hypothesis: direction {', '.join(map(repr, DIRECTIONS))}; sesoi "
                f"{', '.join(map(str, SESOI_GRID))}; op {', '.join(OPERATIONS[:8])}; role "
                f"{', '.join(map(repr, ROLES))}; sites as 'L9.z.h6', 'L9.H6', 'L3.mlp', 'L5.resid_pre@-1'",
                f"- {PREDICTION}: optional, a literal at the top level, registered before the run: a number "
                "that the entry will hold, and its 90 % interval",
            ]
        )
    )


def guidance_text(steer: str) -> str:
    """Guidance that came while the researcher worked, as a block of its own."""
    return f"# Guidance from the person who set the question (steer.md has changed)\n\n{plain(steer)}"


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
