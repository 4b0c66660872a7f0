"""The script: lanes, each with steps and a cursor of its own. The first lane that matches answers.

A scenario is a mapping (or a JSON file) of this form; a bare list of steps is one lane for everything:

    {"lanes": [
      {"name": "compact", "match": {"messages_have": "Respond with TEXT ONLY"}, "then": {"text": "summary"}},
      {"name": "main", "match": {"tools": true}, "turns": [step, step], "then": {"text": "Nothing more."}}]}

`then` answers when the steps are used up, as often as asked. Without it, a request too many is answered 400
and noted as a failure.

A step answers one request (`times`: several):

    text, thinking          what is said
    tool + input, or tools: [[name, input], …]      which tools are called
    stop_reason             default: tool_use with tools, else end_turn
    usage                   merged over {"input_tokens": 100, "output_tokens": 20}; names of the API
    status + error + message + retry_after + headers     an error answer
    drop                    the connection ends before an answer
    cut                     the stream ends in its middle (a plain answer: half of its bytes)
    break: type             the stream has an error event of this type in its middle, and ends
    hang: seconds           nothing is sent for so long, then the rest of the step
    drip: seconds           a pause before every 16 bytes
    together: n             nothing is sent before n requests with such a step are there at once; if they do
                            not come, that is a failure
    garbage                 200 with a page of HTML
    malformed               the input of the last tool is not JSON
    expect                  conditions that this request must meet; what fails is in `failures`
    when                    (Python only) a function of the request; the step is passed over if it says no
    call                    (Python only) a function of the request that gives a mapping merged over the step

Conditions, in `match` and `expect`: messages_have, system_have, last_result_has, last_result_lacks,
last_user_has (text or a list of texts), last_is_error (bool), tools (true: some; or a list of names that must
be offered), model, stream (bool), or `when`. In strings `${last_result}`, `${request}` (its number) and every
name in `variables` are filled in.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.messages_stub.requests import Request

Step = Mapping[str, Any]
When = Callable[[Request], bool]

_TEXTS: dict[str, Callable[[Request], str]] = {
    "messages_have": lambda request: request.messages,
    "system_have": lambda request: request.system,
    "last_result_has": lambda request: request.last_result,
    "last_user_has": lambda request: request.last_user,
}
_SAYS = {"text", "thinking", "tool", "input", "tools", "stop_reason", "usage", "model", "malformed"}
_FAILS = {
    "status",
    "error",
    "message",
    "retry_after",
    "headers",
    "drop",
    "cut",
    "break",
    "hang",
    "drip",
    "together",
    "garbage",
}
_STEP_NAMES = _SAYS | _FAILS | {"name", "expect", "when", "call", "times"}


class ScenarioError(ValueError):
    """The script itself is wrong."""


class Lane:
    """Some steps and how far they are used up."""

    def __init__(self, lane: Mapping[str, Any], number: int) -> None:
        unknown = lane.keys() - {"name", "match", "turns", "then"}
        if unknown:
            raise ScenarioError(f"a lane has no {sorted(unknown)}; it has name, match, turns, then")
        self.name = str(lane.get("name") or f"lane {number}")
        self.match = lane.get("match") or {}
        self.steps: list[Step] = [step for each in lane.get("turns") or () for step in _repeated(each)]
        self.then: Step | None = None if lane.get("then") is None else _checked(lane["then"])
        self.used = 0

    def next(self, request: Request) -> tuple[int, Step] | None:
        """The step for this request, and its number; None when there is none left."""
        while self.used < len(self.steps):
            step, number = self.steps[self.used], self.used
            self.used += 1
            when: When | None = step.get("when")
            if when is None or when(request):
                return number, step
        return None if self.then is None else (len(self.steps), self.then)


class Scenario:
    """All lanes, safe to ask from several threads.

    Attributes:
        failures: a sentence for each expectation that did not hold.
    """

    def __init__(
        self,
        script: Mapping[str, Any] | Sequence[Step] | str | Path,
        *,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        if isinstance(script, str | Path):
            script = json.loads(Path(script).read_text(encoding="utf-8"))
        lanes = script["lanes"] if isinstance(script, Mapping) else [{"name": "main", "turns": list(script)}]
        self.lanes = [Lane(lane, number) for number, lane in enumerate(lanes, 1)]
        self.failures: list[str] = []
        self.variables = dict(variables or {})
        self._lock = threading.Lock()

    def answer(self, request: Request, number: int) -> tuple[str, int, Step]:
        """Lane, number and step that answer; its variables are filled in. Notes what it expected in vain."""
        with self._lock:
            for lane in self.lanes:
                if unmet(lane.match, request):
                    continue
                found = lane.next(request)
                if found is None:
                    return lane.name, -1, self._unscripted(f"lane {lane.name!r} has no step left")
                at, step = found
                where = f"request {number}, lane {lane.name!r}, step {at + 1}"
                self.failures += [f"{where}: {each}" for each in unmet(step.get("expect") or {}, request)]
                if "call" in step:
                    step = {**step, **step["call"](request)}
                names = {**self.variables, "last_result": request.last_result, "request": str(number)}
                return lane.name, at, _filled(step, names)
            return "", -1, self._unscripted("no lane matches")

    def left(self) -> dict[str, int]:
        """How many steps no request has used, by lane; lanes that are through are left out."""
        return {lane.name: len(lane.steps) - lane.used for lane in self.lanes if lane.used < len(lane.steps)}

    def _unscripted(self, why: str) -> Step:
        self.failures.append(why)
        return {"status": 400, "error": "invalid_request_error", "message": f"stub: {why}"}


def unmet(conditions: Any, request: Request) -> list[str]:
    """A sentence for each condition that a request does not meet."""
    if callable(conditions):
        return [] if conditions(request) else ["`when` said no"]
    wrong: list[str] = []
    for name, wanted in conditions.items():
        if name in _TEXTS:
            there = _TEXTS[name](request)
            wrong += [
                f"{name} {each!r}; there is {there[-300:]!r}" for each in _list(wanted) if each not in there
            ]
        elif name == "last_result_lacks":
            wrong += [f"{name} {each!r}" for each in _list(wanted) if each in request.last_result]
        elif name == "last_is_error":
            if wanted is not (bool(request.results) and request.results[-1][1]):
                wrong.append(f"{name} {wanted}; the newest result is {request.last_result[-200:]!r}")
        elif name == "tools":
            missing = [] if isinstance(wanted, bool) else sorted(set(wanted) - set(request.tools))
            if missing or (isinstance(wanted, bool) and wanted is not bool(request.tools)):
                wrong.append(f"tools {wanted!r}; there are {request.tools}")
        elif name == "model":
            if request.body.get("model") != wanted:
                wrong.append(f"model {wanted!r}; it is {request.body.get('model')!r}")
        elif name == "stream":
            if request.stream is not wanted:
                wrong.append(f"stream {wanted}")
        elif name == "when":
            if not wanted(request):
                wrong.append("`when` said no")
        else:
            raise ScenarioError(f"there is no condition {name!r}")
    return wrong


def _repeated(step: Step) -> list[Step]:
    return [_checked(step)] * int(step.get("times", 1))


def _checked(step: Step) -> Step:
    unknown = step.keys() - _STEP_NAMES
    if unknown:
        raise ScenarioError(f"a step has no {sorted(unknown)}; it has {', '.join(sorted(_STEP_NAMES))}")
    return step


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _filled(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: names.get(match[1], match[0]), value)
    if isinstance(value, Mapping):
        return {key: _filled(each, names) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, names) for each in value]
    return value
