"""How the user's `claude` is started for one turn: its command line, what it may do, its environment, its
words.

Without `shell` the agent has file tools and our own MCP tools, may write experiment.py and nothing else,
and everything that is not listed is refused without a question. This is a guard rail: what an experiment's
own code does is looked at by `guard.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlxterp
from mlxterp.autointerpret.contract import EXPERIMENT, FINDINGS, LOG, PRIVATE, PROGRAM, SETUP, STATE, STEER
from mlxterp_agent.researchers.base import Situation
from mlxterp_agent.state_md import budget_words
from mlxterp_agent.text import one_line

BINARY_ENV = "AUTOINTERP_CLAUDE"
DRIVEN_ENV = "AUTOINTERP_DRIVEN"

Turns = Literal["fresh", "resumed"]

_STEPS = 60
_NEVER_EDITED = (SETUP, PROGRAM, LOG, STATE, STEER, "CLAUDE.md", "AGENTS.md", ".mcp.json")
_NEVER_ENTERED = (FINDINGS, PRIVATE, ".claude", ".git")
_NEVER_IN_GIT = ("--amend", "reset", "rebase", "push", "update-ref", "filter-branch", "checkout", "stash")
_A_DAY = 24 * 3600 * 1000


@dataclass(frozen=True, kw_only=True)
class ClaudeOptions:
    """How Claude Code is driven.

    Attributes:
        binary: path of the program.
        model: what `--model` says; None leaves it to the program.
        turns: "fresh" begins each turn with an empty mind and STATE.md, "resumed" goes on in one
            conversation.
        shell: the agent gets Bash as well.
    """

    binary: str
    model: str | None = None
    turns: Turns = "fresh"
    shell: bool = False


def find_claude(environment: Mapping[str, str] = os.environ) -> str | None:
    """The program: what AUTOINTERP_CLAUDE names, or `claude` on PATH; None if there is none."""
    return shutil.which(environment.get(BINARY_ENV) or "claude", path=environment.get("PATH"))


def logged_in(binary: str) -> bool:
    """Whether the program says that it can reach a model; asks nobody else, in less than a second."""
    try:
        asked = subprocess.run(
            [binary, "auth", "status", "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=15,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def command(
    options: ClaudeOptions, project: Path, prompt: str, *, session: str, resume: bool, usd_left: float | None
) -> list[str]:
    """The command line of one process."""
    tools = ["Read", "Edit", "Write", "Glob", "Grep", *(["Bash"] if options.shell else [])]
    line = [options.binary, "-p", prompt, "--output-format", "stream-json", "--verbose"]
    line += ["--include-partial-messages", "--permission-mode", "dontAsk", "--setting-sources", "project"]
    line += ["--settings", json.dumps(settings(shell=options.shell)), "--tools", ",".join(tools)]
    line += ["--mcp-config", json.dumps(mcp_config(project)), "--strict-mcp-config"]
    line += ["--resume" if resume else "--session-id", session, "--max-turns", str(_STEPS)]
    if options.model is not None:
        line += ["--model", options.model]
    if usd_left is not None:
        line += ["--max-budget-usd", f"{max(usd_left, 0.0001):.4f}"]
    return line


def settings(*, shell: bool) -> dict[str, Any]:
    """What the agent may do. A refusal wins over a permission."""
    library = Path(mlxterp.__file__).resolve().parent
    allow = ["Read(./**)", f"Read(/{library}/**)", f"Edit(./{EXPERIMENT})", "mcp__autointerp"]
    deny = [f"Edit(./{name})" for name in _NEVER_EDITED] + [f"Edit(./{name}/**)" for name in _NEVER_ENTERED]
    if shell:
        allow.append("Bash")
        deny += [f"Bash(git *{word}*)" for word in _NEVER_IN_GIT]
    return {"permissions": {"allow": allow, "deny": deny}}


def mcp_config(project: Path) -> dict[str, Any]:
    """Our tools, served by the same Python that supervises."""
    arguments = ["-m", "mlxterp_agent.cli", "mcp", str(project)]
    return {"mcpServers": {"autointerp": {"command": sys.executable, "args": arguments}}}


def environment(parent: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The user's own, with which `claude` finds its key or login, without what would change under our
    hands."""
    ours = {
        DRIVEN_ENV: "1",
        "DISABLE_AUTOUPDATER": "1",
        "MCP_TOOL_TIMEOUT": str(_A_DAY),
        "BASH_DEFAULT_TIMEOUT_MS": str(_A_DAY),
        "BASH_MAX_TIMEOUT_MS": str(_A_DAY),
    }
    nested = ("CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT")
    return {name: value for name, value in parent.items() if name not in nested} | ours


def prompt(situation: Situation, *, again: str = "") -> str:
    """What the agent is told at the beginning of a turn. What it must know about the files is in CLAUDE.md.

    Args:
        again: why a turn begins although the last one was ended, or a process was lost.
    """
    parts = [
        "Read program.md and STATE.md, then go on investigating: write experiment.py whole, call "
        "run_experiment, believe its verdict, choose the next experiment. Do not end your turn and do not "
        "ask whether to go on while budget remains.",
        f"Budget: {budget_words(situation.budget)}.",
    ]
    if again:
        parts.insert(0, again)
    if situation.facts.get("capabilities"):
        able = one_line(f"{situation.facts.get('size')}. It has {situation.facts['capabilities']}", 1_500)
        parts.append(f"The loaded model: {able}. What each analysis takes: library_help.")
    if situation.last is not None:
        parts.append(f"The newest entry is {situation.last.experiment_id}: {_newest(situation)}")
    if situation.steer:
        parts.append(f"Guidance from the researcher (steer.md):\n{situation.steer}")
    return "\n\n".join(parts)


def _newest(situation: Situation) -> str:
    assert situation.last is not None
    verdict = (situation.last.record or {}).get("verdict", "logged by hand")
    return f"{verdict}, {one_line(situation.last.conclusion or situation.last.hypothesis, 200)}"
