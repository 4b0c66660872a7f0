"""The tools `run_experiment`, `status`, `search_log`, `note` and `library_help` for an agent that speaks MCP,
over standard input and output.

Lives here: the server behind `autointerp mcp`, and the answers of its tools. Does not live here: how an
experiment is run and judged. Beside a supervisor `run_experiment` waits for that supervisor's verdict; alone
it is the command `autointerp run` in a process of its own, which runs the experiment once. So an agent that
was opened by hand and one that is driven get the same tool.

The server takes its own copy of the environment without anything that looks like a secret, and starts itself
again with it: neither it nor what it starts has the agent's key.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlxterp.autointerpret.contract import load_project
from mlxterp.errors import MlxterpError
from mlxterp_agent import api_help as library
from mlxterp_agent.log_search import search_text
from mlxterp_agent.messages import status_text
from mlxterp_agent.outcome import LIMIT
from mlxterp_agent.platform import without_secrets
from mlxterp_agent.prompts import guidance_text
from mlxterp_agent.researcher_notes import add_note
from mlxterp_agent.supervisor.project_view import read_project
from mlxterp_agent.supervisor.single_run import Answer, wait_beside
from mlxterp_agent.text import cut, plain

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

NAME = "autointerp"

_GRACE = 8.0
_HELP_LIMIT = 8000
_INSTRUCTIONS = (
    "Tools of an mlxterp investigation. Write experiment.py whole, then call run_experiment once: it runs "
    "the file, or waits while the supervisor runs it, and returns the verdict."
)


def server(directory: Path) -> MCPServer[None]:
    """The server of one investigation."""
    from mcp.server.mcpserver import MCPServer

    mcp: MCPServer[None] = MCPServer(NAME, instructions=_INSTRUCTIONS, log_level="WARNING")

    @mcp.tool(structured_output=False)
    async def run_experiment() -> list[str]:
        """Run experiment.py as it is now and return the verdict with its reasons and numbers (at most 3 kB).

        It may take as long as the time box of one experiment. Content that ran before is not run again: its
        verdict is returned.
        """
        return await _run(directory)

    @mcp.tool(structured_output=False)
    def status() -> str:
        """The question, the model, the verdicts so far, the remaining budget, the last experiments."""
        return _answer(lambda: status_text(read_project(directory)))

    @mcp.tool(structured_output=False)
    def search_log(query: str = "", last: int = 10) -> str:
        """Experiments of the log, newest first.

        Args:
            query: an id such as 0007 for that entry with its numbers; a site such as L1.H1 for the entries
                about it; words, in any order and case, for those that hold all of them; empty for all.
            last: how many experiments at most.
        """
        return _answer(lambda: search_text(read_project(directory).entries, query, last))

    @mcp.tool(structured_output=False)
    def note(text: str) -> str:
        """Keep a note of at most 1 kB for later turns: what you concluded and why, what to try next.

        STATE.md shows the newest notes. Nothing is decided by them.
        """
        return _answer(lambda: add_note(load_project(directory).path, text))

    @mcp.tool(structured_output=False)
    def library_help(name: str = "") -> str:
        """Signature, documentation and an executed example of a function or class of mlxterp.

        Args:
            name: for instance activation_patching; empty for what there is.
        """
        return _answer(lambda: library.library_help(name or None), limit=_HELP_LIMIT)

    return mcp


def serve(directory: Path) -> None:
    """Answers on standard input and output until they are closed."""
    path = load_project(directory).path
    clean = without_secrets(os.environ)
    if clean != dict(os.environ):
        # What a process was started with stays readable to others of the same user; a fresh start leaves
        # nothing to read. The package `mcp` is imported after it: that takes most of a second.
        os.execve(sys.executable, [sys.executable, "-m", "mlxterp_agent.cli", "mcp", str(path)], clean)
    server(path).run("stdio")


async def _run(directory: Path) -> list[str]:
    """The outcome, and as a second block the guidance of steer.md if it has changed."""
    import anyio
    from mcp.server.mcpserver.exceptions import ToolError

    beside = await _beside(directory)
    if beside is not None:
        guidance = [guidance_text(beside.guidance)] if beside.guidance else []
        return [cut(plain(beside.text), LIMIT), *guidance]
    command = [sys.executable, "-m", "mlxterp_agent.cli", "run", str(directory), "--for-tool"]
    process = await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output: dict[str, bytes] = {}

    async def read(name: str) -> None:
        stream = process.stdout if name == "out" else process.stderr
        assert stream is not None
        output[name] = b"".join([chunk async for chunk in stream])

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(read, "out")
            group.start_soon(read, "err")
        await process.wait()
    finally:
        if process.returncode is None:
            # The call was cancelled, or the agent is gone: the run ends as by Ctrl-C, and is logged as such.
            with anyio.CancelScope(shield=True):
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                with anyio.move_on_after(_GRACE):
                    await process.wait()
    answer = output["out"].decode("utf-8", "replace").strip()
    if not answer:
        raise ToolError(cut(plain(output["err"].decode("utf-8", "replace").strip()) or _SILENT, LIMIT))
    found = json.loads(answer)
    guidance = [guidance_text(found["guidance"])] if found["guidance"] else []
    return [cut(plain(found["text"]), LIMIT), *guidance]


async def _beside(directory: Path) -> Answer | None:
    """The verdict of the supervisor that works here, waited for in this process; None if there is none.

    Starting a process for the wait would cost seconds for an experiment of half a second.
    """
    import anyio
    from mcp.server.mcpserver.exceptions import ToolError

    ended = threading.Event()

    def wait() -> Answer | None:
        longest = load_project(directory).config.time_per_experiment
        return wait_beside(directory, longest, ended.is_set)

    try:
        return await anyio.to_thread.run_sync(wait, abandon_on_cancel=True)
    except MlxterpError as problem:
        raise ToolError(cut(plain(str(problem)), LIMIT)) from None
    finally:
        ended.set()


_SILENT = "autointerp run ended without output; call status to see the state of the investigation"


def _answer(answer: Callable[[], str], *, limit: int = LIMIT) -> str:
    from mcp.server.mcpserver.exceptions import ToolError

    try:
        return cut(plain(answer()), limit)
    except MlxterpError as problem:
        raise ToolError(cut(plain(str(problem)), LIMIT)) from None
