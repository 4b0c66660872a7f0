"""The six tools of the API researcher. There is no shell, and the only file that is written is
experiment.py.

The model's arguments are checked here; a tool that cannot comply raises `ToolError` with what to do instead,
and the model reads it as the tool's result. The supervisor runs experiments: the tool waits for its verdict.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxterp.autointerpret.contract import EXPERIMENT
from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.llm.stream import ToolCall
from mlxterp_agent.api_help import NotFound, library_help
from mlxterp_agent.log_search import search_text
from mlxterp_agent.platform import NotRegular, read_regular
from mlxterp_agent.researcher_notes import NoteRefused, add_note
from mlxterp_agent.storage.project_files import write_in_project
from mlxterp_agent.text import cut, one_line, plain

READ_LIMIT = 12_000
"""Characters that one `read_file` gives; the rest by `offset`."""

RESULT_LIMIT = 16_000
"""Bytes of any tool's result."""

SOURCE_LIMIT = 40_000
"""Bytes of an experiment.py from this researcher: its source stays in the conversation."""

_HIDDEN = (".git", ".autointerp", ".claude", ".mcp.json")


class ToolError(Exception):
    """A tool cannot comply; the message has what was asked, what is there and what to do."""


class ToolResult(NamedTuple):
    """The result of a tool call, as the model reads it."""

    text: str
    is_error: bool = False


def _schema(*required: str, **properties: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


SCHEMAS: Sequence[Mapping[str, Any]] = (
    {
        "name": "read_file",
        "description": "Reads a text file of the project: program.md, setup.py, experiment.py, "
        f"results.jsonl, findings/… At most {READ_LIMIT} characters from `offset` on.",
        "input_schema": _schema(
            "path",
            path={"type": "string", "description": "Relative to the project."},
            offset={"type": "integer", "description": "Characters to pass over. Default 0."},
        ),
    },
    {
        "name": "write_experiment",
        "description": "Replaces experiment.py by a whole Python file. It must parse. Nothing runs yet.",
        "input_schema": _schema(
            "source", source={"type": "string", "description": "The whole file, at most 40 kB."}
        ),
    },
    {
        "name": "run_experiment",
        "description": "Has experiment.py run once, and gives verdict, reasons and the budget that is left. "
        "Costs one experiment.",
        "input_schema": _schema(),
    },
    {
        "name": "search_log",
        "description": "Finds entries of the log, newest first: an id such as 0007 gives that entry with "
        "its numbers; a site such as L1.H1 the entries about it; words those that hold all of them; an "
        "empty query the newest.",
        "input_schema": _schema("query", query={"type": "string"}),
    },
    {
        "name": "note",
        "description": "Keeps a note of at most 1 kB for later turns: what you concluded and why, what to "
        "try next. STATE.md shows the newest; nothing is decided by it.",
        "input_schema": _schema("text", text={"type": "string"}),
    },
    {
        "name": "library_help",
        "description": "Signature, documentation, shapes and an executed example of a function or class of "
        "mlxterp; without a name, what there is.",
        "input_schema": _schema(name={"type": "string", "description": "For instance activation_patching."}),
    },
)


class Tools:
    """Executes the model's tool calls.

    Args:
        run: runs experiment.py through the supervisor, and returns the text of its outcome.
        entries: the log as it is now.
        show: is called with one line for the live screen.
    """

    def __init__(
        self,
        project: Path,
        run: Callable[[], str],
        entries: Callable[[], Sequence[ExperimentEntry]],
        show: Callable[[str], None],
    ) -> None:
        self._project = project
        self._run = run
        self._entries = entries
        self._show = show

    def use(self, call: ToolCall) -> ToolResult:
        """The result of one call; never an exception for what the model did wrong."""
        try:
            if call.problem is not None:
                raise ToolError(f"{call.name} was not called: {call.problem}. Send the call again.")
            return ToolResult(cut(plain(self._result(call)), RESULT_LIMIT))
        except ToolError as problem:
            return ToolResult(cut(plain(str(problem)), RESULT_LIMIT), is_error=True)

    def _result(self, call: ToolCall) -> str:
        match call.name:
            case "read_file":
                return self._read(_text(call, "path"), _number(call, "offset"))
            case "write_experiment":
                return self._write(_text(call, "source"))
            case "run_experiment":
                return self._run()
            case "search_log":
                return self._search(_text(call, "query", default=""))
            case "note":
                return self._note(_text(call, "text"))
            case "library_help":
                self._show("reading about the library")
                try:
                    return library_help(_text(call, "name", default="") or None)
                except NotFound as problem:
                    raise ToolError(str(problem)) from None
        names = ", ".join(str(schema["name"]) for schema in SCHEMAS)
        raise ToolError(f"there is no tool {one_line(call.name, 60)!r}; there are {names}")

    def _read(self, name: str, offset: int) -> str:
        if "\0" in name:
            raise ToolError("a file name holds no NUL")
        path = (self._project / name).resolve()
        root = self._project.resolve()
        inside = path.is_relative_to(root) and path != root
        if not inside or path.relative_to(root).parts[0] in _HIDDEN:
            raise ToolError(
                f"{one_line(name, 200)!r} is not a file of this project. Name one relative to it."
            )
        self._show(f"reading {one_line(name, 60)}")
        try:
            text = read_regular(path).decode("utf-8", errors="replace")
        except FileNotFoundError:
            there = ", ".join(sorted(each.name for each in root.iterdir() if not each.name.startswith(".")))
            raise ToolError(f"there is no {one_line(name, 200)!r}; the project has {there}") from None
        except (NotRegular, OSError) as problem:
            raise ToolError(f"{one_line(name, 200)!r} cannot be read: {one_line(str(problem))}") from None
        if offset > len(text):
            raise ToolError(f"{name} has {len(text)} characters; offset {offset} is past its end")
        part = text[offset : offset + READ_LIMIT]
        rest = len(text) - offset - len(part)
        return part + (f"\n[{rest} more characters; offset {offset + len(part)}]" if rest else "")

    def _write(self, source: str) -> str:
        self._show("writing experiment.py")
        data = source.encode("utf-8", errors="surrogatepass")
        if len(data) > SOURCE_LIMIT:
            raise ToolError(f"{len(data):,} bytes are too long for an experiment; at most {SOURCE_LIMIT:,}")
        try:
            data.decode("utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source, filename=EXPERIMENT)
        except SyntaxError as problem:
            raise ToolError(
                f"not written: line {problem.lineno}: {problem.msg}. Send the whole file again."
            ) from None
        except (ValueError, RecursionError, MemoryError) as problem:
            raise ToolError(f"not written: it cannot be parsed: {problem}") from None
        if not tree.body:
            raise ToolError("not written: there is nothing to run in it")
        write_in_project(self._project, EXPERIMENT, data)
        return f"{EXPERIMENT} is written ({len(data):,} bytes). run_experiment runs it."

    def _search(self, query: str) -> str:
        self._show(f"searching the log for {one_line(query, 40)}" if query else "reading the log")
        return search_text(self._entries(), query)

    def _note(self, text: str) -> str:
        self._show("writing a note")
        try:
            return add_note(self._project, text)
        except NoteRefused as problem:
            raise ToolError(str(problem)) from None


def _text(call: ToolCall, name: str, *, default: str | None = None) -> str:
    value = call.input.get(name, default)
    if not isinstance(value, str):
        raise ToolError(f"{call.name} takes {name!r} as text; it was {one_line(repr(value), 60)}")
    return value


def _number(call: ToolCall, name: str) -> int:
    value = call.input.get(name, 0)
    if type(value) is not int or value < 0:
        raise ToolError(f"{call.name} takes {name!r} as a whole number from 0 up")
    return value
