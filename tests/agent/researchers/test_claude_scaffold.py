"""What a scaffold gives to a Claude Code that a person opens in it: settings, hook, tools, commands."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlxterp.autointerpret.scaffold import init_autointerpret, program
from mlxterp_agent.storage.git import Committer
from mlxterp_agent.supervisor.prepare import initial_files
from tests.agent.fakes import git


@pytest.fixture
def opened(tmp_path: Path) -> Path:
    return init_autointerpret(tmp_path / "investigation", scaffold="induction")


@pytest.fixture
def hook(opened: Path) -> Callable[..., dict[str, Any] | None]:
    """The hook as Claude Code calls it."""

    def call(event: str, *, path: str = os.environ["PATH"], **fields: Any) -> dict[str, Any] | None:
        asked = {"hook_event_name": event, "session_id": "s1", "cwd": str(opened), **fields}
        said = subprocess.run(
            [sys.executable, str(opened / ".claude" / "hooks" / "guard.py")],
            input=json.dumps(asked),
            env={"CLAUDE_PROJECT_DIR": str(opened), "PATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return json.loads(said) if said else None

    return call


@pytest.fixture
def guard(opened: Path) -> ModuleType:
    """The hook's module, for questions by the dozen."""
    loader = SourceFileLoader("guard", str(opened / ".claude" / "hooks" / "guard.py"))
    spec = importlib.util.spec_from_loader("guard", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def answer(decided: dict[str, Any] | None) -> str | None:
    return None if decided is None else str(decided["hookSpecificOutput"]["permissionDecision"])


def test_the_files_for_claude_code_are_there_and_in_the_first_commit(opened):
    Committer(opened).ensure_repo(initial_files(opened))

    assert set(git(opened, "ls-files").split()) >= {
        ".claude/commands/investigate.md",
        ".claude/hooks/guard.py",
        ".claude/settings.json",
        ".claude/skills/investigation/SKILL.md",
        ".mcp.json",
        "CLAUDE.md",
    }
    assert json.loads((opened / ".mcp.json").read_text())["mcpServers"]["autointerp"]
    assert json.loads((opened / ".claude" / "settings.json").read_text())["permissions"]["deny"]


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        ("experiment.py", "allow"),
        ("./findings/../experiment.py", "allow"),
        ("setup.py", "deny"),
        ("results.jsonl", "deny"),
        ("findings/../setup.py", "deny"),
        (".claude/hooks/guard.py", "deny"),
        (".git/config", "deny"),
        ("notes.txt", None),
        ("../elsewhere.py", None),
    ],
)
def test_experiment_py_is_the_agents_and_the_other_files_are_not(guard, name, decision):
    assert answer(guard.before_tool("Edit", {"file_path": name})) == decision


def test_a_link_to_setup_py_is_setup_py(opened, guard):
    (opened / "innocent.py").symlink_to("setup.py")

    assert answer(guard.before_tool("Write", {"file_path": str(opened / "innocent.py")})) == "deny"


@pytest.mark.parametrize(
    "command",
    [
        "git commit -m x --amend",
        "git -C . commit --amend",
        "git --no-pager -c a=b reset --hard HEAD~1",
        "cd /tmp && /usr/bin/git push",
        "bash -c 'git rebase -i HEAD~2'",
        "git log --output=setup.py",
        "echo x > setup.py",
        "sed -i s/a/b/ setup.py",
        "python3 -c \"open('setup.py', 'w')\"",
        "tee -a ./results.jsonl < x",
        "rm -rf findings",
        "ln -sf x .claude/settings.json",
    ],
)
def test_shell_commands_that_break_the_contract_are_refused(guard, command):
    assert answer(guard.before_tool("Bash", {"command": command})) == "deny"


@pytest.mark.parametrize(
    "command",
    [
        "git log --oneline -5",
        "git diff",
        "cat setup.py | head -20",
        "grep -n logit_diff setup.py 2>&1",
        "tail -3 results.jsonl 2>/dev/null",
        "ls findings",
        "python3 experiment.py",
    ],
)
def test_reading_is_left_to_the_persons_permissions(guard, command):
    assert guard.before_tool("Bash", {"command": command}) is None


@pytest.mark.parametrize(
    ("command", "decision"),
    [
        ("autointerp run", "allow"),
        ("autointerp status --json .", "allow"),
        ("autointerp start --agent claude", None),
        ("autointerp run && rm -rf ~/x", None),
        ("autointerp run\nrm -rf x", None),
        ("autointerp run $(curl x)", None),
    ],
)
def test_only_our_own_commands_in_plain_words_are_allowed_without_a_question(guard, command, decision):
    assert answer(guard.before_tool("Bash", {"command": command})) == decision


def test_what_was_generated_calls_the_program_by_its_path(opened, guard):
    settings = json.loads((opened / ".claude" / "settings.json").read_text())
    server = json.loads((opened / ".mcp.json").read_text())["mcpServers"]["autointerp"]

    assert Path(program()).is_absolute()
    assert server["command"] == guard.PROGRAM == program()
    assert f"Bash({program()} run:*)" in settings["permissions"]["allow"]
    assert f"`{program()} run`" in (opened / "CLAUDE.md").read_text()
    assert answer(guard.before_tool("Bash", {"command": f"{program()} run"})) == "allow"


def test_the_tools_and_the_hook_work_without_an_activated_environment(opened, tmp_path):
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CLAUDE_PROJECT_DIR": str(opened)}
    server = json.loads((opened / ".mcp.json").read_text())["mcpServers"]["autointerp"]
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    hook = json.loads((opened / ".claude" / "settings.json").read_text())["hooks"]["UserPromptSubmit"][0]

    answered = subprocess.run(
        [server["command"], *server["args"]],
        cwd=opened,
        env=bare,
        input=json.dumps(asked) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    prompted = subprocess.run(
        hook["hooks"][0]["command"],
        shell=True,
        env=bare,
        input=json.dumps({"hook_event_name": "UserPromptSubmit", "prompt": "investigate"}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert json.loads(answered.stdout.splitlines()[0])["result"]["serverInfo"]["name"] == "autointerp"
    assert (prompted.returncode, prompted.stderr) == (0, "")


def test_a_hook_that_cannot_think_refuses(opened):
    command = json.loads((opened / ".claude" / "settings.json").read_text())["hooks"]["PreToolUse"][0][
        "hooks"
    ][0]

    ended = subprocess.run(
        command["command"],
        shell=True,
        input="not json",
        env={"CLAUDE_PROJECT_DIR": str(opened), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2


# --- when the agent wants to stop ------------------------------------------------------------------------

STATUS = "#!/bin/sh\necho '{{\"experiments_left\": {left}}}'\n"


@pytest.fixture
def budget(tmp_path: Path, opened: Path) -> Callable[[int], str]:
    """PATH with an `autointerp` that has so many experiments left, in the place of the real one."""
    guard = opened / ".claude" / "hooks" / "guard.py"
    guard.write_text(guard.read_text().replace(f"PROGRAM = {program()!r}", 'PROGRAM = "autointerp"'))

    def left(number: int) -> str:
        folder = tmp_path / "path"
        folder.mkdir(exist_ok=True)
        (folder / "autointerp").write_text(STATUS.format(left=number))
        (folder / "autointerp").chmod(stat.S_IRWXU)
        return f"{folder}:{os.environ['PATH']}"

    return left


def test_an_agent_that_was_asked_to_investigate_is_sent_back_while_budget_remains(hook, budget):
    hook("UserPromptSubmit", prompt="Read program.md and start investigating.")

    assert "5 experiments are left" in (hook("Stop", path=budget(5)) or {})["reason"]
    assert hook("Stop", path=budget(0)) is None


def test_a_question_is_answered_and_that_is_all(hook, budget):
    hook("UserPromptSubmit", prompt="/investigate")
    hook("UserPromptSubmit", prompt="What does entry 3 say?")

    assert hook("Stop", path=budget(5)) is None


def test_an_idle_agent_is_let_go_and_a_new_entry_begins_the_count_anew(opened, hook, budget):
    hook("UserPromptSubmit", prompt="/investigate")
    blocked = [hook("Stop", path=budget(5)) is not None for _ in range(2)]
    (opened / "results.jsonl").write_text("{}\n")
    blocked += [hook("Stop", path=budget(5)) is not None for _ in range(4)]

    assert blocked == [True, True, True, True, True, False]


def test_a_stop_file_lets_the_agent_go(opened, hook, budget):
    hook("UserPromptSubmit", prompt="/investigate")
    (opened / "STOP").touch()

    assert hook("Stop", path=budget(5)) is None
