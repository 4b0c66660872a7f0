"""Chooses the researcher by the options and what is installed: Claude Code, the Anthropic API, a script.

Nothing is started here. Each choice has its reason.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from mlxterp_agent.exit_codes import ResearcherUnavailable
from mlxterp_agent.key_broker import API_KEY as KEY_ENV
from mlxterp_agent.key_broker import BASE_URL_ENV, DEFAULT_BASE_URL, Credentials, KeyBroker
from mlxterp_agent.platform import take_keys
from mlxterp_agent.researchers.base import Researcher
from mlxterp_agent.researchers.claude_code import ClaudeCode, ClaudeOptions, Turns
from mlxterp_agent.researchers.external import External
from mlxterp_agent.text import one_line

Agent = Literal["auto", "scripted", "claude", "api", "none"]

BINARY_ENV = "AUTOINTERP_CLAUDE"
_LOGIN_SECONDS = 15.0
_UPDATE = "Update Claude Code (`claude update`)"
_ALIASES = ("opus", "sonnet", "haiku", "default")
"""Names that Claude Code itself resolves to a current model."""


class Choice(NamedTuple):
    """The researcher, its name with the reason for the choice, the address of the service it asks."""

    researcher: Researcher
    description: str
    service: str | None = None

    def require_answerable(
        self, scaffold: str, question: str | None, project: Path | None = None, model: str = ""
    ) -> None:
        """Refuses a question that this researcher's plan does not fit; those who read it take any.

        Args:
            project: an investigation that is there; its setup.py may be another than the scaffold's.

        Raises:
            ResearcherUnavailable: with what the plan answers instead.
        """
        if self.researcher.name != "scripted":
            return
        from mlxterp_agent.researchers.scripted.questions import why_not_answered

        if why := why_not_answered(scaffold, question, project, model):
            raise ResearcherUnavailable(why)


class _Wishes(NamedTuple):
    """The options of the command that concern the researcher."""

    model: str | None
    turns: Turns
    shell: bool
    base_url: str | None


def choose(
    agent: Agent,
    *,
    model: str | None = None,
    turns: Turns = "fresh",
    shell: bool = False,
    base_url: str | None = None,
) -> Choice:
    """The researcher for `--agent`.

    Raises:
        ResearcherUnavailable: it was requested by name and is not available.
    """
    wishes = _Wishes(model, turns, shell, base_url)
    match agent:
        case "none":
            return Choice(External(), "any editor: experiment.py is run whenever it changes")
        case "scripted":
            return _scripted("asked for")
        case "claude":
            return _claude(_claude_binary(), "asked for", wishes)
        case "api":
            return _api("asked for", wishes)
        case "auto":
            return _automatic(wishes)


def find_claude(environment: Mapping[str, str] = os.environ) -> str | None:
    """The program: what AUTOINTERP_CLAUDE names, or `claude` on PATH; None if there is none."""
    return shutil.which(environment.get(BINARY_ENV) or "claude", path=environment.get("PATH"))


def why_not_usable(binary: str, credentials: Credentials | None = None) -> str | None:
    """Why this program cannot investigate: it is not logged in, too old, or does not start; None if it can.

    Asks it for its login, which contacts no service and takes less than a second.

    Args:
        credentials: what it would be given by a broker; it sees that there is a key, not the key.
    """
    stand_ins = {} if credentials is None else credentials.stand_ins("a-key-is-there")
    try:
        asked = subprocess.run(
            [binary, "auth", "status", "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **stand_ins},
            timeout=_LOGIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return (
            f"{binary} did not answer `auth status` within {_LOGIN_SECONDS:g} s, which old versions do not "
            f"know. {_UPDATE}"
        )
    except OSError as problem:
        return (
            f"{binary} does not start: {problem.strerror}. Install Claude Code again, or name another program"
        )
    if asked.returncode == 0:
        return None
    try:
        known = isinstance(json.loads(asked.stdout), dict)
    except ValueError:
        known = False
    if known:
        return f"{binary} is not logged in. Run it once and log in, or set {KEY_ENV}"
    said = (asked.stderr or asked.stdout).decode("utf-8", "replace")
    return f"{binary} does not know `auth status` ({one_line(said, 100) or 'it says nothing'}). {_UPDATE}"


def _credentials() -> Credentials:
    return Credentials(take_keys(), os.environ.get(BASE_URL_ENV) or DEFAULT_BASE_URL)


def _automatic(wishes: _Wishes) -> Choice:
    binary = find_claude()
    if binary is None and take_keys().get(KEY_ENV):
        return _api(f"no claude on PATH, and {KEY_ENV} is set", wishes)
    if binary is None:
        return _scripted(f"no claude on PATH and no {KEY_ENV}; this one needs no key and no model hub")
    if why := why_not_usable(binary, _credentials()):
        return _scripted(f"{why}; this one needs no key")
    return _claude(binary, "it is on PATH and logged in", wishes)


def _claude(binary: str, why: str, wishes: _Wishes) -> Choice:
    from mlxterp.llm.prices import deprecation, price_of

    model = wishes.model
    notes = [why]
    if model is not None and model not in _ALIASES:
        if warning := deprecation(model):
            notes.append(warning)
        if price_of(model).estimated:
            notes.append("its price is not known; until Claude Code states it, the highest known counts")
    options = ClaudeOptions(binary=binary, model=model, turns=wishes.turns, shell=wishes.shell)
    credentials = _credentials()
    broker = KeyBroker(credentials) if credentials.are_there else None
    return Choice(
        ClaudeCode(options, broker=broker),
        f"Claude Code{f' with {model}' if model else ''} ({'; '.join(notes)})",
        credentials.base_url,
    )


def _claude_binary() -> str:
    binary = find_claude()
    if binary is None:
        raise ResearcherUnavailable(
            "--agent claude needs the program `claude`, and it is not on PATH. Install Claude Code, or name "
            f"the program in {BINARY_ENV}; --agent scripted needs neither a program nor a key."
        )
    if why := why_not_usable(binary, _credentials()):
        raise ResearcherUnavailable(f"--agent claude: {why}; --agent scripted needs neither.")
    return binary


def _api(why: str, wishes: _Wishes) -> Choice:
    # The SDK takes a second to import, and only this researcher needs it.
    from mlxterp.llm.prices import DEFAULT_MODEL, deprecation, price_of
    from mlxterp_agent.researchers.anthropic_api.researcher import ApiResearcher

    key = take_keys().get(KEY_ENV, "")
    if not key:
        raise ResearcherUnavailable(
            f"--agent api needs a key, and {KEY_ENV} is not set. Set it, or use --agent scripted, which "
            "needs none."
        )
    model = wishes.model or DEFAULT_MODEL
    notes = [why]
    if warning := deprecation(model):
        notes.append(warning)
    if price_of(model).estimated:
        notes.append("its price is not known; dollars are estimated at the highest known price")
    researcher = ApiResearcher(model=model, api_key=key, base_url=wishes.base_url)
    service = wishes.base_url or os.environ.get(BASE_URL_ENV) or DEFAULT_BASE_URL
    return Choice(researcher, f"Anthropic API with {model} ({'; '.join(notes)})", service)


def _scripted(why: str) -> Choice:
    from mlxterp_agent.researchers.scripted import ScriptedResearcher

    return Choice(ScriptedResearcher(), f"scripted ({why})")
