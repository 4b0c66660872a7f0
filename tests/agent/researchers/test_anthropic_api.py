"""The API researcher against a stub of the service: its turn, its faults, its money, its memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp.llm import client as client_module
from mlxterp.llm.prices import Tokens, price_of
from mlxterp_agent.events import Event, Waiting
from mlxterp_agent.platform import FakeClock, SystemClock
from mlxterp_agent.researchers.anthropic_api import tools as tools_module
from mlxterp_agent.researchers.anthropic_api.conversation import CONTEXT_LIMIT
from mlxterp_agent.researchers.anthropic_api.researcher import ApiResearcher
from mlxterp_agent.researchers.anthropic_api.supervisor_queue import Closed, SupervisorQueue
from mlxterp_agent.researchers.base import (
    BudgetState,
    Done,
    ExperimentOutcome,
    Failed,
    Idle,
    ResearcherState,
    Situation,
    Working,
)
from mlxterp_agent.run_config import Options
from mlxterp_agent.storage.journal import Journal
from mlxterp_agent.supervisor.loop import run
from tests.agent.fakes import entries, git, source, verdicts
from tests.messages_stub import MessagesStub, Request

MODEL = "claude-sonnet-5-5"
RUN: dict[str, Any] = {"tool": "run_experiment"}
END: dict[str, Any] = {"text": "That is all."}


def write(name: str) -> dict[str, Any]:
    """A step that writes one of the fake experiments."""
    return {"tool": "write_experiment", "input": {"source": source(name)}}


def both(name: str) -> dict[str, Any]:
    """A step that writes and runs it in one answer."""
    return {"tools": [["write_experiment", {"source": source(name)}], ["run_experiment", {}]]}


def connected(stub: MessagesStub, **options: Any) -> ApiResearcher:
    given: dict[str, Any] = {"model": MODEL, "api_key": stub.key, "base_url": stub.url, **options}
    return ApiResearcher(**given)


class RunContext:
    """The supervisor's side, without a supervisor: answers polls, keeps the money, "runs" experiments."""

    def __init__(self, project: Path, clock: FakeClock | SystemClock | None = None, **limits: Any) -> None:
        self.project = project
        self.clock = clock or SystemClock()
        self.usd_left: float | None = limits.get("usd")
        self.tokens_left: int | None = limits.get("tokens")
        self.deadline_left: float | None = limits.get("seconds")
        self.charges: list[dict[str, Any]] = []
        self.held: dict[str, float] = {}
        self.most_at_risk = 0.0
        self.notes: list[str] = []
        self.doing: list[str] = []
        self.entries: list[ExperimentEntry] = []
        self.ran: list[str] = []
        self.guidance: list[str] = []

    def turn(self, researcher: ApiResearcher, *, longest: float = 120.0) -> ResearcherState:
        """One whole turn; gives the state after it."""
        researcher.begin_turn(self.situation())
        until = time.monotonic() + longest
        while isinstance(state := researcher.poll(), Working):
            assert time.monotonic() < until, f"the turn does not end; it is {state.doing}"
            if state.doing not in self.doing[-1:]:
                self.doing.append(state.doing)
            if state.offers:
                self.run_what_is_new(researcher)
            time.sleep(0.002)
        return state

    def run_what_is_new(self, researcher: ApiResearcher) -> None:
        """Runs what is new in experiment.py, as a supervisor would."""
        text = (self.project / "experiment.py").read_text()
        if self.ran[-1:] == [text]:
            return
        self.ran.append(text)
        number = f"{len(self.ran):04}"
        entry = ExperimentEntry(
            hypothesis=f"claim {number} " + "h" * 300,
            method="m",
            result={"numbers": {"x": 1.0}},
            informative=True,
            conclusion=f"found {number} " + "c" * 300,
            duration_seconds=0.1,
            experiment_id=number,
            record={"verdict": "lead", "tier": "lead", "reasons": ["clean"]},
        )
        self.entries.append(entry)
        guidance = self.guidance.pop(0) if self.guidance else ""
        researcher.tell(ExperimentOutcome(len(self.ran), (entry,), f"{number} lead: found", guidance))

    def situation(self) -> Situation:
        return Situation(
            project=self.project,
            entries=list(self.entries),
            budget=self.budget(),
            last=None,
            deadline_left=self.deadline_left,
            facts={"model": "no-model", "question": "What is the mean?"},
            charge=self.charge,
            hold=self.hold,
            budget_now=self.budget,
            note=self.notes.append,
        )

    def budget(self) -> BudgetState:
        usd, tokens = self.spent()
        return BudgetState(
            experiments=len(self.ran),
            usd=usd,
            usd_left=None if self.usd_left is None else self.usd_left - usd,
            tokens=tokens,
            tokens_left=None if self.tokens_left is None else self.tokens_left - tokens,
        )

    def hold(self, call: str, usd: float | None, tokens: int | None, **answer: float) -> None:
        assert usd is not None
        assert 0 < answer["answer_usd"] <= usd
        self.held[call] = usd
        self.most_at_risk = max(self.most_at_risk, self.spent()[0] + sum(self.held.values()))

    def charge(self, usd: Any, tokens: Any, *, call: Any = None, details: Any = None) -> None:
        del self.held[call]
        self.charges.append({"usd": usd, "tokens": tokens, "details": details or {}})

    def spent(self) -> tuple[float, int]:
        return sum(c["usd"] for c in self.charges), sum(c["tokens"] for c in self.charges)


def passing(clock: FakeClock) -> Callable[[float], Awaitable[None]]:
    """Waits that pass on the clock only."""

    async def pause(seconds: float) -> None:
        clock.advance(seconds)

    return pause


@contextmanager
def running(
    project: Path, script: Any, *, limits: dict[str, Any] | None = None, clock: Any = None, **options: Any
) -> Iterator[tuple[RunContext, MessagesStub, ApiResearcher]]:
    with MessagesStub(script) as stub:
        context = RunContext(project, clock, **(limits or {}))
        if isinstance(clock, FakeClock):
            options = {"clock": clock, "pause": passing(clock), **options}
        researcher = connected(stub, **options)
        try:
            yield context, stub, researcher
        finally:
            researcher.close()
    stub.check()


def billed(stub: MessagesStub, *, but: Collection[int] = ()) -> float:
    """What the stub's answers cost by the price table, except for those of some steps."""
    return sum(
        price_of(MODEL).usd(Tokens.of(r.usage)) for r in stub.requests if r.usage and r.step not in but
    )


def unmarked(request: Request) -> list[Any]:
    """The messages without the marks for the cache."""
    messages: list[Any] = json.loads(json.dumps(request.body["messages"]))
    for message in messages:
        for block in message["content"]:
            block.pop("cache_control", None)
    return messages


# --- the turn


def test_a_turn_reads_writes_runs_and_gets_the_verdict(project):
    script = [
        {"tool": "read_file", "input": {"path": "program.md"}},
        {**write("alpha"), "expect": {"last_result_has": "What is the mean?"}},
        {**RUN, "expect": {"last_result_has": "is written"}},
        {**END, "expect": {"last_result_has": "0001 lead"}},
    ]
    with running(project, script) as (context, stub, researcher):
        state = context.turn(researcher)

    assert isinstance(state, Idle)
    assert context.ran == [source("alpha")]
    assert [r.step for r in stub.requests] == [0, 1, 2, 3]
    assert stub.requests[0].tools == [
        "read_file",
        "write_experiment",
        "run_experiment",
        "search_log",
        "note",
        "library_help",
    ]
    assert all(request.stream for request in stub.requests)
    assert "temperature" not in stub.requests[0].body
    assert {"thinking", "reading program.md", "writing experiment.py"} <= set(context.doing)


def test_the_beginning_stays_the_same_and_is_marked_for_the_cache(project):
    usage = {"input_tokens": 10, "cache_read_input_tokens": 90}
    script = [{**both("alpha"), "usage": usage}, {**both("beta"), "usage": usage}, {**END, "usage": usage}]
    with running(project, script) as (context, stub, researcher):
        context.turn(researcher)

    first, *rest = stub.requests
    assert first.body["system"][-1]["cache_control"] == {"type": "ephemeral"}
    for before, after in zip(stub.requests, rest, strict=False):
        assert after.body["system"] == first.body["system"]
        assert after.body["tools"] == first.body["tools"]
        assert unmarked(after)[: len(unmarked(before))] == unmarked(before)
        assert after.body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert researcher.usage.cache_share == pytest.approx(0.9)
    assert "90 % of the input tokens were read from the cache" in context.notes[-1]


def test_an_experiment_is_offered_only_while_its_verdict_is_awaited(project):
    offers: list[str] = []
    with running(project, [write("alpha"), write("beta"), RUN, END]) as (context, _, researcher):
        run_what_is_new = context.run_what_is_new
        context.run_what_is_new = lambda d: (
            offers.append((project / "experiment.py").read_text()),
            run_what_is_new(d),
        )  # type: ignore
        context.turn(researcher)

    assert context.ran == [source("beta")]
    assert set(offers) == {source("beta")}


def test_running_unchanged_bytes_is_answered_instead_of_waited_for(project):
    script = [both("alpha"), RUN, {**END, "expect": {"last_result_has": "has not changed"}}]
    with running(project, script) as (context, _, researcher):
        assert isinstance(context.turn(researcher), Idle)

    assert len(context.ran) == 1


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ({"tool": "rm", "input": {"path": "/"}}, "there is no tool 'rm'; there are read_file"),
        ({"tool": "read_file", "malformed": True}, "is not JSON"),
        ({"tool": "read_file", "input": {"path": 3}}, "takes 'path' as text"),
        ({"tool": "read_file", "input": {"path": "../../etc/passwd"}}, "not a file of this project"),
        ({"tool": "read_file", "input": {"path": ".git/config"}}, "not a file of this project"),
        ({"tool": "read_file", "input": {"path": "nothing.md"}}, "the project has"),
        ({"tool": "write_experiment", "input": {"source": "if :"}}, "not written: line 1"),
        ({"tool": "write_experiment", "input": {"source": "# nothing"}}, "nothing to run"),
        ({"tool": "write_experiment", "input": {"source": "x = 1\n" * 9000}}, "too long"),
        ({"tool": "library_help", "input": {"name": "activation_patchin"}}, "Similar: activation_patching"),
    ],
)
def test_a_tool_that_cannot_be_used_says_so_and_the_turn_goes_on(project, step, answer):
    script = [step, {**END, "expect": {"last_result_has": answer, "last_is_error": True}}]
    before = (project / "experiment.py").read_bytes()
    with running(project, script) as (context, stub, researcher):
        assert isinstance(context.turn(researcher), Idle)

    assert (project / "experiment.py").read_bytes() == before
    assert context.spent()[0] == pytest.approx(billed(stub), abs=1e-12)


def test_what_the_model_writes_is_plain_text_where_it_is_shown(project):
    step = {"tool": "search_log", "input": {"query": "\x1b]0;owned\x07\x1b[31mred\nnext"}}
    with running(project, [step, END]) as (context, _, researcher):
        context.turn(researcher)

    shown = next(doing for doing in context.doing if doing.startswith("searching"))
    assert shown == "searching the log for red next"


def test_a_model_that_is_done_too_early_is_sent_back(project):
    script = [both("alpha"), END, END, {**END, "expect": {"last_user_has": "the budget is not used up"}}]
    with running(project, script) as (context, stub, researcher):
        for _ in range(3):
            context.turn(researcher)

    assert "the budget is not used up" not in stub.requests[2].last_user


# --- ways to stop


def test_an_answer_cut_at_its_limit_is_asked_for_again_shorter(project):
    script = [
        {**write("alpha"), "stop_reason": "max_tokens"},
        {**both("beta"), "expect": {"last_user_has": "too long"}},
        END,
    ]
    with running(project, script) as (context, stub, researcher):
        assert isinstance(context.turn(researcher), Idle)

    assert context.ran == [source("beta")]
    assert all(m["role"] == "user" for m in stub.requests[1].body["messages"])
    assert len(context.charges) == 3


def test_a_refusal_begins_a_new_conversation_and_three_end_the_investigation(project):
    refusal = {"stop_reason": "refusal", "text": "no"}
    with running(project, [refusal, refusal, both("alpha"), refusal, refusal, refusal]) as (
        context,
        _,
        researcher,
    ):
        state = context.turn(researcher)

    assert context.ran == [source("alpha")]
    assert isinstance(state, Failed)
    assert "declined 3 times" in state.reason


def test_ten_empty_answers_in_a_row_end_it(project):
    with running(project, [{"stop_reason": "end_turn", "times": 10}]) as (context, stub, researcher):
        state = context.turn(researcher)

    assert isinstance(state, Failed)
    assert "10 answers in a row" in state.reason
    assert len(stub.requests) == 10


def test_a_paused_turn_is_taken_up_again(project):
    script = [{"text": "so far", "stop_reason": "pause_turn"}, END]
    with running(project, script) as (context, stub, researcher):
        context.turn(researcher)

    assert stub.requests[1].body["messages"][-1]["role"] == "assistant"


def test_a_model_that_only_reads_is_sent_home(project):
    script = {"lanes": [{"then": {"tool": "search_log", "input": {"query": ""}}}]}
    with running(project, script) as (context, stub, researcher):
        assert isinstance(context.turn(researcher), Idle)

    assert len(stub.requests) == 40


# --- faults


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, "authentication_error", "the API key was refused (401"),
        (403, "permission_error", "the API key was refused (403"),
        (404, "not_found_error", "does not know what was asked for"),
        (400, "invalid_request_error", "refused the request (400"),
    ],
)
def test_a_fault_that_no_wait_changes_ends_it_at_once_and_costs_nothing(project, status, error, words):
    with running(project, [{"status": status, "error": error}]) as (context, stub, researcher):
        state = context.turn(researcher)

    assert isinstance(state, Failed)
    assert words in state.reason
    assert len(stub.requests) == 1
    assert context.spent() == (0.0, 0)
    assert not context.held


FAULTS = {
    "429": ({"status": 429, "error": "rate_limit_error", "retry_after": 30}, False),
    "529": ({"status": 529, "error": "overloaded_error"}, False),
    "500": ({"status": 500}, False),
    "drop": ({"drop": True}, True),
    "cut": ({"cut": True, **both("gamma")}, True),
    "overloaded in the middle": ({"break": "overloaded_error", **both("gamma")}, True),
    "garbage": ({"garbage": True}, False),
    "hang": ({"hang": 30}, True),
}


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=[pytest.mark.slow] if each == "hang" else []) for each in FAULTS]
)
def test_what_passes_is_waited_out_and_no_experiment_is_lost_or_doubled(project, fault):
    step, paid = FAULTS[fault]
    clock = FakeClock()
    script = [both("alpha"), {**step, "times": 3}, both("beta"), END]
    patience = {"read_seconds": 2.0} if fault == "hang" else {}
    with running(project, script, clock=clock, **patience) as (context, stub, researcher):
        before = clock.elapsed()
        assert isinstance(context.turn(researcher), Idle)

    assert context.ran == [source("alpha"), source("beta")]
    assert len(context.notes) == 4
    assert "again in" in context.notes[0]
    # Once the service is back, the next try comes within a minute.
    assert clock.elapsed() - before <= 3 * 45
    assert not context.held
    lost = [charge for charge in context.charges if "lost" in charge["details"]]
    assert len(lost) == (3 if paid else 0)
    assert all(charge["usd"] > 0.16 and charge["tokens"] > 16_000 for charge in lost)
    answered = sum(charge["usd"] for charge in context.charges if charge not in lost)
    assert answered == pytest.approx(billed(stub, but=(1, 2, 3)), abs=1e-12)


def test_a_body_that_drips_ends_at_the_deadline_of_the_call(project):
    script = [{**both("alpha"), "drip": 1.0}, both("beta"), END]
    options: dict[str, Any] = {"call_seconds": 2.0, "read_seconds": 60.0, "pause": passing(FakeClock())}
    with MessagesStub(script) as stub:
        context, ticking = RunContext(project), _Hasty()
        researcher = connected(stub, clock=ticking, **options)
        began = time.monotonic()
        context.turn(researcher)
        researcher.close()

    assert time.monotonic() - began < 60  # the body takes minutes
    assert context.ran == [source("beta")]
    assert "longer than" in context.notes[0]


class _Hasty(SystemClock):
    """Time that jumps over every wait, but not over a call."""

    def __init__(self) -> None:
        self.looks = 0.0

    def elapsed(self) -> float:
        self.looks += 100.0
        return self.looks


def test_an_hour_of_rate_limit_is_waited_out_and_said(project):
    clock = FakeClock()
    script = [{"status": 429, "error": "rate_limit_error", "retry_after": 3600}, both("alpha"), END]
    with running(project, script, clock=clock, limits={"seconds": 8 * 3600}) as (context, _, researcher):
        assert isinstance(context.turn(researcher), Idle)

    assert 3600 <= clock.elapsed() <= 3602
    assert context.ran == [source("alpha")]
    assert context.notes[0] == "the service says 429 rate_limit_error; again in 1 h 0 min"


def test_the_end_of_the_time_wins_over_waiting(project):
    clock = FakeClock()
    script = [{"status": 429, "error": "rate_limit_error", "retry_after": 3600}]
    with running(project, script, clock=clock, limits={"seconds": 600}) as (context, _, researcher):
        state = context.turn(researcher)

    assert isinstance(state, Done)
    assert "the time ends before it is back" in state.reason
    assert clock.elapsed() <= 600


def test_until_the_deadline_a_service_is_waited_for_however_long_it_fails(project):
    clock = FakeClock()
    limited = {"status": 429, "error": "rate_limit_error", "retry_after": 3600, "times": 20}
    limits = {"seconds": 24 * 3600}
    with running(project, [limited, both("alpha"), END], clock=clock, limits=limits) as (
        context,
        _,
        researcher,
    ):
        assert isinstance(context.turn(researcher), Idle)

    assert context.ran == [source("alpha")]
    assert clock.elapsed() >= 20 * 3600


def test_a_service_that_does_not_answer_all_night_ends_as_unavailable(project):
    clock = FakeClock()
    script = {"lanes": [{"then": {"status": 529, "error": "overloaded_error", "retry_after": 1800}}]}
    with running(project, script, clock=clock) as (context, _, researcher):
        state = context.turn(researcher)

    assert isinstance(state, Failed)
    assert "did not answer for 12 h" in state.reason
    assert context.spent() == (0.0, 0)


def test_a_prompt_that_is_too_long_is_begun_anew_once(project):
    too_long = {
        "status": 400,
        "error": "invalid_request_error",
        "message": "prompt is too long: 9 > 8 tokens",
    }
    with running(project, [both("alpha"), too_long, END]) as (context, stub, researcher):
        assert isinstance(context.turn(researcher), Idle)
    assert len(stub.requests[2].body["messages"]) == 1
    assert "0001 lead" in stub.requests[2].last_user

    with running(project, [too_long, too_long]) as (context, _, researcher):
        assert isinstance(context.turn(researcher), Failed)


def test_closing_ends_a_wait_and_a_call_and_charges_what_was_reserved_for_it(project):
    refused = {"status": 429, "retry_after": 3600, "error": "rate_limit_error"}
    for step, lost in ((refused, []), ({"hang": 30}, ["given up"])):
        with MessagesStub([step]) as stub:
            context, researcher = RunContext(project), connected(stub)
            researcher.begin_turn(context.situation())
            until = time.monotonic() + 30
            while not (context.notes if step is refused else stub.requests) and time.monotonic() < until:
                researcher.poll()
                time.sleep(0.01)
            began = time.monotonic()
            researcher.close()

        assert time.monotonic() - began < 2.5
        assert not context.held
        assert [charge["details"]["lost"] for charge in context.charges if charge["usd"]] == lost


def test_a_bug_in_the_researchers_thread_is_raised_on_the_supervisors(project, monkeypatch):
    with MessagesStub([END]) as stub:
        researcher, context = connected(stub), RunContext(project)
        monkeypatch.setattr(client_module, "accumulate_stream", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            context.turn(researcher)
        researcher.close()


# --- money


def test_dollars_and_tokens_are_the_usage_times_the_price_to_the_cent(project):
    usage = {
        "input_tokens": 1234,
        "output_tokens": 567,
        "cache_creation_input_tokens": 8901,
        "cache_read_input_tokens": 23456,
    }
    script = [{**both(name), "usage": usage} for name in ("alpha", "beta", "gamma")] + [END]
    with running(project, script) as (context, stub, researcher):
        context.turn(researcher)

    by_hand = 3 * (1234 * 2 + 567 * 10 + 8901 * 2.5 + 23456 * 0.1) / 1e6 + (100 * 2 + 20 * 10) / 1e6
    assert context.spent()[0] == pytest.approx(by_hand, abs=1e-9) == billed(stub)
    assert context.spent()[1] == sum(v for v in stub.usage().values()) == 3 * 34158 + 120
    assert context.charges[0]["details"]["usage"]["cache_read"] == 23456
    assert context.charges[0]["details"]["estimated"] is False


def test_an_unknown_model_is_priced_as_the_dearest_and_said_to_be_estimated(project):
    with running(project, [END], model="house-llm-7b") as (context, _, researcher):
        context.turn(researcher)

    assert context.charges[0]["details"]["estimated"] is True
    assert context.spent()[0] == pytest.approx((100 * 15 + 20 * 75) / 1e6)


@pytest.mark.parametrize("limit", [0.10, 0.25, 0.40])
@pytest.mark.parametrize("fault", [{}, {"drop": True}, {"cut": True}], ids=["none", "drop", "cut"])
def test_max_usd_is_never_exceeded_however_greedy_the_answers_are(project, fault, limit):
    def greedy(request: Any) -> dict[str, Any]:
        # As many tokens as a service could count for these bytes, and the longest answer that was allowed.
        written, said = request.size, request.body["max_tokens"]
        return {"usage": {"input_tokens": 0, "cache_creation_input_tokens": written, "output_tokens": said}}

    step = {"tool": "search_log", "input": {"query": ""}, "call": greedy}
    script = {"lanes": [{"turns": [step, {**step, **fault}] * 40}]}
    with running(project, script, limits={"usd": limit}, clock=FakeClock()) as (
        context,
        stub,
        researcher,
    ):
        state = context.turn(researcher)

    assert isinstance(state, Done)
    assert "does not pay for another question" in state.reason
    assert context.spent()[0] <= limit
    assert context.most_at_risk <= limit
    assert billed(stub) <= limit
    assert len(stub.requests) >= 1


def test_an_answer_is_shortened_to_what_is_left_before_it_is_not_asked_for(project):
    step = {
        "tool": "search_log",
        "input": {"query": ""},
        "usage": {"input_tokens": 9000, "output_tokens": 900},
    }
    with running(project, {"lanes": [{"then": step}]}, limits={"usd": 0.30}) as (
        context,
        stub,
        researcher,
    ):
        assert isinstance(context.turn(researcher), Done)

    allowed = [request.body["max_tokens"] for request in stub.requests]
    assert allowed[0] == 16_000
    assert allowed == sorted(allowed, reverse=True)
    assert 1000 <= allowed[-1] < 4000
    assert 0.2 < context.spent()[0] <= 0.30


def test_max_tokens_is_never_exceeded_either(project):
    step = {
        "tool": "search_log",
        "input": {"query": ""},
        "usage": {"input_tokens": 9000, "output_tokens": 900},
    }
    with running(project, {"lanes": [{"then": step}]}, limits={"tokens": 80_000}) as (
        context,
        stub,
        researcher,
    ):
        state = context.turn(researcher)

    assert isinstance(state, Done)
    assert 40_000 < context.spent()[1] <= 80_000
    assert sum(stub.usage().values()) == context.spent()[1]


# --- memory


@pytest.mark.slow
def test_the_context_stays_under_its_bound_over_200_experiments(project, monkeypatch):
    def write_quickly(project: Path, name: str, data: bytes) -> None:
        (project / name).write_bytes(data)  # no fsync, 200 times

    monkeypatch.setattr(tools_module, "write_in_project", write_quickly)
    count = iter(range(10_000))

    def one(request: Any) -> dict[str, Any]:
        text = f'"""experiment {next(count)}"""\n' + "x = 'a line of some experiment'\n" * 100
        return {"tools": [["write_experiment", {"source": text}], ["run_experiment", {}]]}

    script = {"lanes": [{"turns": [{"call": one, "times": 200}], "then": END}]}
    with running(project, script) as (context, stub, researcher):
        assert isinstance(context.turn(researcher, longest=120), Idle)

    assert len(context.ran) == 200
    sizes = [request.size for request in stub.requests]
    assert max(sizes) <= CONTEXT_LIMIT + 1000  # the parameters around system, tools and messages
    begun = [request for request in stub.requests if len(request.body["messages"]) == 1]
    assert 2 <= len(begun) <= 40
    for request in begun:
        state = request.last_user.partition("## What the last")[0]
        assert len(state.encode()) <= 6200
        assert request.step == 0 or f"found {request.step:04}" in state


def test_the_same_log_begins_the_same_conversation(project):
    said = []
    for _ in range(2):
        with running(project, [both("alpha"), END, END]) as (context, stub, researcher):
            context.turn(researcher)
            context.charges.clear()
            context.turn(researcher)
        said.append(stub.requests[2].body["messages"])

    assert said[0] == said[1]
    assert "claim 0001" in json.dumps(said[0])


# --- under a real supervisor


@pytest.mark.slow
def test_a_supervised_investigation_is_logged_with_model_money_and_tokens(project):
    usage = {"input_tokens": 1000, "output_tokens": 100, "cache_read_input_tokens": 9000}
    script = {
        "lanes": [
            {
                "turns": [
                    {"tool": "read_file", "input": {"path": "program.md"}, "usage": usage},
                    {**both("alpha"), "usage": usage},
                    {"status": 529, "error": "overloaded_error", "retry_after": 0},
                    {**both("crash-at-once"), "usage": usage},
                    {**both("beta"), "usage": usage, "expect": {"last_result_has": "ZeroDivisionError"}},
                ],
                "then": {"text": "I am done.", "usage": usage},
            }
        ]
    }
    events: list[Event] = []
    with MessagesStub(script) as stub:
        ended = run(project, connected(stub), Options(max_experiments=3, usd=5.0), events.append)
    stub.check(through=True)

    assert (ended.exit_code, ended.reason) == (0, "the budget of 3 experiments is used up")
    assert [verdict.partition(":")[0] for verdict in verdicts(project)] == ["lead", "invalid", "lead"]
    records = [entry.record or {} for entry in entries(project)]
    assert {record["driver"]["model"] for record in records} == {MODEL}
    answer = (1000 * 2 + 100 * 10 + 9000 * 0.1) / 1e6
    assert [record["cost"]["usd"] for record in records] == pytest.approx([2 * answer, answer, answer])
    assert [record["cost"]["tokens"]["total"] for record in records] == [20200, 10100, 10100]
    assert any(isinstance(event, Waiting) and "529" in event.text for event in events)


def test_a_crash_between_asking_and_accounting_leaves_what_was_held_as_spent(tmp_path):
    from mlxterp_agent.storage.budget import Budget, Limits

    path, clock = tmp_path / "journal.jsonl", FakeClock()
    before = Journal(path, clock=clock)
    budget = Budget(Limits(usd=1.0), clock, before)
    budget.hold("a", 0.30, 300)
    budget.charge(0.10, 100, call="a")
    budget.hold("b", 0.50, 500)
    assert budget.spent().usd == pytest.approx(0.10)
    before.close()

    after = Journal(path, clock=clock)
    again = Budget(Limits(usd=1.0), clock, after)
    assert (again.spent().usd, again.spent().tokens) == (pytest.approx(0.60), 600)
    again.charge(0.4, 1)
    assert again.stop_reason() == "the budget of $1.00 is used up"
    after.close()


def test_what_still_waits_at_the_end_is_not_done_unless_it_was_paid_for():
    work_queue, done = SupervisorQueue(), list[str]()

    def work() -> None:
        for what, paid in (("charge", True), ("hold", False)):
            with contextlib.suppress(Closed):
                work_queue.ask(lambda what=what: done.append(what), always=paid)

    thread = threading.Thread(target=work)
    thread.start()
    work_queue.closed.set()
    thread.join(5)
    work_queue.serve()

    assert done == ["charge"]


def test_no_thread_is_left_behind(project):
    with running(project, [END]) as (context, _, researcher):
        context.turn(researcher)

    assert [thread for thread in threading.enumerate() if thread.name == "researcher"] == []


def test_new_guidance_is_a_block_of_its_own_behind_the_result_that_it_came_with(project):
    script = [both("alpha"), {**both("beta"), "expect": {"last_user_has": "Look at layer 3"}}, END]

    with running(project, script) as (context, stub, researcher):
        context.guidance = ["Look at layer 3", ""]
        context.turn(researcher)
        blocks = [request.body["messages"][-1]["content"] for request in stub.requests]

    with_guidance = [content for content in blocks if "Look at layer 3" in json.dumps(content)]
    *results, guidance = with_guidance[0]
    assert {block["type"] for block in results} == {"tool_result"}
    assert "Look at layer 3" not in json.dumps(results)
    assert guidance["text"].startswith("# Guidance from the person who set the question")
    assert len(with_guidance) == 1


def test_a_note_is_kept_and_the_next_conversation_begins_with_it(project):
    note = {"tool": "note", "input": {"text": "Layer 1 is <b>enough</b>."}}
    script = [note, {**END, "expect": {"last_result_has": "noted"}}, END]

    with running(project, script) as (context, stub, researcher):
        context.turn(researcher)
        context.turn(researcher)
        opening = json.dumps(stub.requests[-1].body["messages"][0])

    assert "Layer 1 is &lt;b&gt;enough&lt;/b&gt;." in opening


# --- the command

_HEAD = """
import time
from setup import dataset, model
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.causal import ablate, activation_patching, behaviour

started = time.monotonic()

def log(hypothesis, method, numbers, result, conclusion):
    ExperimentLog("results.jsonl").append(
        ExperimentEntry(
            hypothesis=hypothesis,
            method=method,
            result={"numbers": numbers, "analysis": result.to_dict()},
            informative=True,
            conclusion=conclusion,
            duration_seconds=time.monotonic() - started,
        )
    )
"""

EXPERIMENTS = {
    "behaviour": """
result = behaviour(model, dataset)
share = list(result.totals.values())[0]
log("It continues the repetition on every pair.", "behaviour", {"share": share}, result, f"on {share:.0%}")
""",
    "heads": """
result = activation_patching(model, dataset[:4], component="z", by="layer_head")
heads = {head.label: head.effect for head in result.top_components(3)}
log("Two heads carry it. Rival: one.", "activation_patching", heads, result, f"strongest: {heads}")
""",
    "necessity": """
result = ablate(model, dataset[8:], [(1, 1)], random_sets=3)
share = result.rows[0].share
numbers = {"left": share, "random": result.rows[1].share}
log("Without L1.H1 nothing is left.", "ablate", numbers, result, f"{share:.2f}")
""",
}


def _command(directory: Path, stub: MessagesStub, *options: str, key: str | None = None) -> dict[str, Any]:
    """`autointerp start --agent api` in a process of its own, in a scrubbed environment."""
    names = ("PATH", "HOME", "AUTOINTERP_STATE_DIR", "MLXTERP_CACHE", "XDG_CACHE_HOME", "TMPDIR", "LANG")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment["ANTHROPIC_API_KEY"] = key or stub.key
    command = [sys.executable, "-m", "mlxterp_agent.cli", "start", str(directory), "--agent", "api"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return {"args": [*command, "--base-url", stub.url, *options], **pipes}


def start(directory: Path, stub: MessagesStub, *options: str, key: str | None = None) -> Any:
    """The same, until it ends."""
    return subprocess.run(**_command(directory, stub, *options, key=key), timeout=120)


@pytest.mark.slow
def test_a_whole_investigation_on_the_toy_model_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    names = ["behaviour", "heads", "necessity"]
    usage = {"input_tokens": 900, "output_tokens": 800, "cache_read_input_tokens": 9000}
    steps: list[dict[str, Any]] = [
        {"tool": "read_file", "input": {"path": "setup.py"}, "expect": {"system_have": "toy-induction"}},
        {"tool": "library_help", "input": {"name": "activation_patching"}},
    ]
    for name in names:
        source_of = {"source": _HEAD + EXPERIMENTS[name]}
        steps.append({"tools": [["write_experiment", source_of], ["run_experiment", {}]]})
    steps.insert(4, {"text": "I am done."})
    steps.insert(
        4, {"tool": "search_log", "input": {"query": "L1.H1"}, "expect": {"last_result_has": "lead"}}
    )
    script = {"lanes": [{"turns": [{**step, "usage": usage} for step in steps]}]}
    project = tmp_path / "toy"
    with MessagesStub(script, check_key=True) as stub:
        made = ("--scaffold", "induction", "--model", "toy-induction", "--max-experiments", "3")
        done = start(project, stub, *made, "--max-usd", "2", "--agent-model", "claude-sonnet-4-20250514")

    assert done.returncode == 0, done.stdout + done.stderr
    stub.check(through=True)
    assert verdicts(project) == ["lead", "lead", "lead"]
    assert "claude-sonnet-5-5 replaces it" in done.stdout
    assert (project / "report.html").is_file()
    assert "Autointerp-Experiment: 0003" in git(project, "log", "-3", "--format=%B")
    records = [entry.record or {} for entry in entries(project)]
    answer = (900 * 3 + 800 * 15 + 9000 * 0.3) / 1e6
    assert sum(record["cost"]["usd"] for record in records) == pytest.approx(7 * answer, abs=1e-9)
    assert {record["driver"]["model"] for record in records} == {"claude-sonnet-4-20250514"}
    assert len((project / "STATE.md").read_bytes()) <= 6000
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if stub.key.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_key_that_is_refused_ends_with_5_and_says_which(project):
    with MessagesStub([], check_key=True) as stub:
        done = start(project, stub, key="sk-ant-another-0000000000")

    assert done.returncode == 5
    assert "the API key was refused (401" in done.stdout
    assert "sk-ant-another" not in done.stdout + done.stderr
    assert entries(project) == []


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_call_goes_on_and_counts_the_call_as_spent(project):
    script = [both("alpha"), {"hang": 60}, both("beta"), END]
    with MessagesStub(script) as stub:
        options = ("--max-experiments", "2", "--max-usd", "5", "--json")
        with subprocess.Popen(**_command(project, stub, *options)) as process:
            until = time.monotonic() + 60
            while len(stub.requests) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            process.kill()
        assert len(stub.requests) == 2
        done = start(project, stub, *options)

    assert done.returncode == 0, done.stdout + done.stderr
    assert verdicts(project) == ["lead", "lead"]
    assert len({entry.experiment_id for entry in entries(project)}) == 2
    journal = next(Path(os.environ["AUTOINTERP_STATE_DIR"]).rglob("journal.jsonl"))
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    held = {event["call"]: event["usd"] for event in events if event["event"] == "hold"}
    charged = {event["call"]: event for event in events if event["event"] == "charge"}
    (left_open,) = (event for event in charged.values() if event["details"].get("left_open"))
    assert held.keys() == charged.keys()
    assert 0 < left_open["usd"] <= held[left_open["call"]]
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    spendings = [each["budget"]["usd"] for each in shown if each.get("event") == "spending"]
    assert spendings[0] == pytest.approx(left_open["usd"] + (100 * 2 + 20 * 10) / 1e6)
