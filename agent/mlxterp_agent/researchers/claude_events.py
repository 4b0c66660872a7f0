"""The events of a `claude -p --output-format stream-json` process, reduced to a few values.

See `claude_code.py` for the process, and for what follows from its end. Unknown events change nothing: the
client adds kinds with its versions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mlxterp.llm.prices import Tokens, price_of
from mlxterp_agent.text import duration, one_line

RUN_TOOL = "mcp__autointerp__run_experiment"

_DOING = {
    "Read": "reads",
    "Edit": "edits",
    "MultiEdit": "edits",
    "Write": "writes",
    "NotebookEdit": "edits",
    "Glob": "looks for",
    "Grep": "searches for",
    "Bash": "runs",
    "mcp__autointerp__status": "asks for the status",
    "mcp__autointerp__search_log": "searches the log for",
    "mcp__autointerp__library_help": "looks up",
    RUN_TOOL: "waits for run_experiment",
}
_NAMED_BY = ("file_path", "notebook_path", "pattern", "query", "name", "command", "description")


@dataclass(frozen=True)
class Result:
    """The last `result` event: the end as the process reports it.

    Attributes:
        error: by `is_error`; exit code and `subtype` report "success" even after a failed request.
        why: `terminal_reason`, for instance "completed", "max_turns", "budget_exhausted", "api_error".
        status: of the failed request, if one failed.
        usd, tokens: the cost of the conversation so far, of all its ended processes; None if not reported.
        text: its last message.
    """

    error: bool
    why: str
    status: int | None
    usd: float | None
    tokens: int | None
    text: str


class _Used(NamedTuple):
    tokens: int = 0
    usd: float = 0.0


class Stream:
    """The fold: `take` is given each line of standard output.

    Attributes:
        doing: the agent's activity, in one line.
        session, model: as the process announces them; None before it does.
        retry_seconds: the client's announced wait before it repeats a request; None if it does not wait.
        resets_at: wall time at which a rate limit ends, if one was announced.
        result: the last one; None while there is none.
        answered: whether the service has begun an answer. What the program says itself, such as "API Error",
            is none.
    """

    def __init__(self) -> None:
        self.doing = "starts"
        self.session: str | None = None
        self.model: str | None = None
        self.retry_seconds: float | None = None
        self.resets_at: float | None = None
        self.result: Result | None = None
        self.answered = False
        self._runs_by_call: dict[str, bool] = {}
        self._earlier, self._answer = _Used(), _Used()
        self._answering = ""
        self._last_call = ""

    @property
    def calls_tools(self) -> bool:
        """Whether any tool is running: a silence is then not the model's."""
        return bool(self._runs_by_call)

    @property
    def waits_for_run(self) -> bool:
        """Whether a call of run_experiment (or of `autointerp run` in a shell) has not returned."""
        return any(self._runs_by_call.values())

    @property
    def tokens(self) -> int:
        """Tokens of this process, by its answers so far: input, cached input and output."""
        return self._earlier.tokens + self._answer.tokens

    @property
    def usd(self) -> float:
        """Their cost by our own price table: an estimate, until there is a result."""
        return self._earlier.usd + self._answer.usd

    def take(self, line: bytes) -> None:
        """One line of standard output."""
        try:
            event = _object(json.loads(line))
        except (ValueError, RecursionError):
            return
        match event.get("type"):
            case "stream_event":
                self._part_of_answer(_object(event.get("event")))
            case "system":
                self._system(event)
            case "assistant":
                self._answer_blocks(_blocks(event))
            case "user":
                for block in _blocks(event):
                    if block.get("type") == "tool_result":
                        self._runs_by_call.pop(str(block.get("tool_use_id")), None)
                self._thinks()
            case "rate_limit_event":
                info = _object(event.get("rate_limit_info"))
                self.resets_at = _number(info.get("resetsAt")) if info.get("status") == "rejected" else None
            case "result":
                self.result = _result(event)
                self._runs_by_call.clear()

    def _system(self, event: Mapping[str, Any]) -> None:
        if event.get("subtype") == "init":
            self.session = _text(event.get("session_id")) or self.session
            self.model = _text(event.get("model")) or self.model
            self.result = None
        elif event.get("subtype") == "api_retry":
            self.retry_seconds = (_number(event.get("retry_delay_ms")) or 0.0) / 1000
            status = event.get("error_status") or event.get("error") or "no connection"
            wait = duration(self.retry_seconds)
            self.doing = f"the API fails ({one_line(str(status), 40)}); asks again in {wait}"

    def _part_of_answer(self, event: Mapping[str, Any]) -> None:
        """Parts of a message while it is written, with the only exact count of its tokens."""
        self.retry_seconds = None
        match event.get("type"):
            case "message_start":
                self.answered = True
                message = _object(event.get("message"))
                self._earlier = _Used(self.tokens, self.usd)
                self._answering = _text(message.get("model")) or self.model or ""
                self._answer = _used(self._answering, _object(message.get("usage")))
                self._thinks()
            case "message_delta":
                self._answer = max(self._answer, _used(self._answering, _object(event.get("usage"))))
            case "content_block_start":
                block = _object(event.get("content_block"))
                if block.get("type") == "tool_use":
                    self.doing = f"prepares {str(block.get('name')).rpartition('__')[2]}"

    def _answer_blocks(self, blocks: list[Mapping[str, Any]]) -> None:
        self.retry_seconds = None
        for block in blocks:
            if block.get("type") == "tool_use":
                self.answered = True
                name, asked = str(block.get("name")), _object(block.get("input"))
                in_shell = name == "Bash" and "autointerp run" in str(asked.get("command", ""))
                self._runs_by_call[str(block.get("id"))] = name == RUN_TOOL or in_shell
                self.doing = self._last_call = doing(name, asked)
            elif block.get("type") == "text" and not self.calls_tools:
                self.doing = f"says: {one_line(str(block.get('text', '')), 100)}"

    def _thinks(self) -> None:
        if not self.calls_tools:
            self.doing = f"thinks (last: {self._last_call})" if self._last_call else "thinks"


def doing(tool: str, asked: Mapping[str, Any]) -> str:
    """A tool call in one line, such as "edits experiment.py"."""
    named = next((str(asked[name]) for name in _NAMED_BY if asked.get(name)), "")
    if "file_path" in asked or "notebook_path" in asked:
        named = os.path.basename(named)
    return one_line(f"{_DOING.get(tool, f'calls {tool}')} {named}".strip(), 100)


def _result(event: Mapping[str, Any]) -> Result:
    status = event.get("api_error_status")
    subtype = str(event.get("subtype") or "")
    return Result(
        error=bool(event.get("is_error")),
        why=_text(event.get("terminal_reason")) or subtype,
        status=status if isinstance(status, int) else None,
        usd=_number(event.get("total_cost_usd")),
        tokens=_tokens_of_session(event.get("modelUsage")),
        text=_text(event.get("result")) or "; ".join(str(each) for each in event.get("errors") or ()),
    )


def _tokens_of_session(usage: object) -> int | None:
    """The tokens of all models. The event's own `usage` leaves out those of compaction."""
    if not isinstance(usage, dict):
        return None
    names = ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheCreationInputTokens")
    return sum(_count(_object(each).get(name)) for each in usage.values() for name in names)


def _used(model: str, usage: Mapping[str, Any]) -> _Used:
    names = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    tokens = Tokens.of({**usage, **{name: _count(usage.get(name)) for name in names}})
    return _Used(tokens.total, price_of(model).usd(tokens))


def _blocks(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = _object(event.get("message")).get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
