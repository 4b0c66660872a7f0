"""A program that stands in for `claude`: it plays one list of actions for each time it is started.

Each start is noted with its command line, so that a test can look at what the researcher asked for. The
events it prints have the form of the real ones (`test_claude_code.py` runs the real program too).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple

PROGRAM = """#!{python}
import json, os, signal, subprocess, sys, time
if sys.argv[1:3] == ["auth", "status"]:
    sys.exit(0)
here = {here!r}
calls = os.path.join(here, "calls.jsonl")
number = sum(1 for _ in open(calls)) if os.path.exists(calls) else 0
with open(calls, "a") as file:
    note = {{"argv": sys.argv[1:], "pid": os.getpid(), "cwd": os.getcwd(), "environment": dict(os.environ)}}
    file.write(json.dumps(note) + chr(10))
asked = sys.argv
session = asked[asked.index("--resume" if "--resume" in asked else "--session-id") + 1]
def say(event):
    print(json.dumps({{**event, "session_id": session}}), flush=True)
plays = json.load(open(os.path.join(here, "plays.json")))
for name, value in plays[number] if number < len(plays) else plays[-1]:
    if name == "say":
        say(value)
    elif name == "write":
        open(value[0], "w").write(value[1])
    elif name == "sleep":
        time.sleep(value)
    elif name == "entries":
        while sum(1 for _ in open("results.jsonl")) < value:
            time.sleep(0.02)
    elif name == "spawn":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    elif name == "complain":
        print(value, file=sys.stderr, flush=True)
    elif name == "die":
        os.kill(os.getpid(), value)
    elif name == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""

Action = tuple[str, Any]


class Call(NamedTuple):
    """One start of the program."""

    argv: list[str]
    pid: int
    cwd: str
    environment: dict[str, str]

    @property
    def prompt(self) -> str:
        return self.argv[self.argv.index("-p") + 1]

    def option(self, name: str) -> str | None:
        return self.argv[self.argv.index(name) + 1] if name in self.argv else None

    @property
    def session(self) -> str | None:
        return self.option("--session-id") or self.option("--resume")


class FakeClaude:
    """The program and what it was asked; `plays` are the actions of each start, the last one repeated."""

    def __init__(self, folder: Path, plays: list[list[Action]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = str(folder / "claude")
        self._calls = folder / "calls.jsonl"
        (folder / "plays.json").write_text(json.dumps(plays))
        Path(self.path).write_text(PROGRAM.format(python=sys.executable, here=str(folder)))
        os.chmod(self.path, stat.S_IRWXU)

    @property
    def calls(self) -> list[Call]:
        if not self._calls.exists():
            return []
        return [Call(**json.loads(line)) for line in self._calls.read_text().splitlines()]


BEGIN: Action = ("say", {"type": "system", "subtype": "init", "model": "claude-stub-1"})


def asks(tool: str, given: dict[str, Any] | None = None, *, id: str = "t1") -> Action:
    block = {"type": "tool_use", "id": id, "name": tool, "input": given or {}}
    return ("say", {"type": "assistant", "message": {"id": f"m-{id}", "content": [block]}})


def gets(*, id: str = "t1") -> Action:
    block = {"type": "tool_result", "tool_use_id": id, "content": "done"}
    return ("say", {"type": "user", "message": {"content": [block]}})


def used(input_tokens: int, output_tokens: int, *, id: str = "m1") -> list[Action]:
    usage = {"input_tokens": input_tokens, "output_tokens": 1}
    start = {"type": "message_start", "message": {"id": id, "model": "claude-opus-5-5", "usage": usage}}
    delta = {"type": "message_delta", "usage": {**usage, "output_tokens": output_tokens}}
    return [("say", {"type": "stream_event", "event": each}) for each in (start, delta)]


def ends(*, usd: float | None = None, tokens: int = 0, why: str = "completed", **more: Any) -> Action:
    error = why not in ("completed",)
    event = {
        "type": "result",
        "subtype": "success",
        "is_error": error,
        "terminal_reason": why,
        "total_cost_usd": usd,
        "modelUsage": {"claude-stub-1": {"inputTokens": tokens, "outputTokens": 0}},
        "result": "I am done.",
    }
    return ("say", {**event, **more})


def limited(*, resets_at: float | None = None) -> list[Action]:
    """What the program says when the service refuses for now."""
    end = ends(why="api_error", api_error_status=429, result="rate limited")
    if resets_at is None:
        return [end]
    info = {"status": "rejected", "resetsAt": resets_at}
    return [("say", {"type": "rate_limit_event", "rate_limit_info": info}), end]
