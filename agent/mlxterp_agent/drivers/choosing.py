"""Who investigates, from what was asked for and what is there: Claude Code, then a script.

Nothing is started here. Each choice says in words why it was made.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from mlxterp_agent.drivers import Driver
from mlxterp_agent.drivers.claude_command import BINARY_ENV, ClaudeOptions, Turns, find_claude, logged_in
from mlxterp_agent.drivers.external import External
from mlxterp_agent.errors import ResearcherUnavailable

Agent = Literal["auto", "scripted", "claude", "api", "none"]


class Choice(NamedTuple):
    """The researcher, and in words who it is and why."""

    driver: Driver
    words: str


def choose(
    agent: Agent, *, model: str | None = None, turns: Turns = "fresh", shell: bool = False
) -> Choice:
    """The researcher for `--agent`.

    Raises:
        ResearcherUnavailable: it was asked for by name, and it is not there.
    """
    match agent:
        case "none":
            return Choice(External(), "nobody in particular: experiment.py is run whenever it changes")
        case "scripted":
            return _scripted("asked for")
        case "claude":
            return _claude(_claude_binary(), "asked for", model, turns, shell=shell)
        case "api":
            raise ResearcherUnavailable(
                "--agent api is not yet available in this version. Use --agent scripted, which needs no "
                "key, or `autointerp watch` beside the agent of your choice."
            )
        case "auto":
            return _automatic(model, turns, shell=shell)


def _automatic(model: str | None, turns: Turns, *, shell: bool) -> Choice:
    binary = find_claude()
    if binary is None:
        return _scripted("no claude on PATH; this one needs no key and no model hub")
    if not logged_in(binary):
        return _scripted(f"{binary} is there but not logged in; this one needs no key")
    return _claude(binary, "it is on PATH and logged in", model, turns, shell=shell)


def _claude(binary: str, why: str, model: str | None, turns: Turns, *, shell: bool) -> Choice:
    from mlxterp_agent.drivers.claude_code import ClaudeCode

    options = ClaudeOptions(binary=binary, model=model, turns=turns, shell=shell)
    return Choice(ClaudeCode(options), f"Claude Code{f' with {model}' if model else ''} ({why})")


def _claude_binary() -> str:
    binary = find_claude()
    if binary is None:
        raise ResearcherUnavailable(
            "--agent claude needs the program `claude`, and it is not on PATH. Install Claude Code, or name "
            f"the program in {BINARY_ENV}; --agent scripted needs neither a program nor a key."
        )
    if not logged_in(binary):
        raise ResearcherUnavailable(
            f"--agent claude: {binary} is not logged in. Run it once and log in, or set ANTHROPIC_API_KEY; "
            "--agent scripted needs neither."
        )
    return binary


def _scripted(why: str) -> Choice:
    from mlxterp_agent.drivers.scripted import ScriptedResearcher

    return Choice(ScriptedResearcher(), f"scripted ({why})")
