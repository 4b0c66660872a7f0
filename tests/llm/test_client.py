"""Claude as a completer, by the real SDK, against a stub of the service on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from mlxterp.autointerpret.log import OUTBOX_ENV
from mlxterp.errors import (
    DeprecatedModel,
    LlmAway,
    LlmBudgetReached,
    LlmError,
    LlmRejected,
    LlmUnavailable,
    PromptNotCached,
)
from mlxterp.llm import (
    AnthropicCompleter,
    CachedCompleter,
    Reply,
    ReplyCache,
    ScriptedCompleter,
    Unusable,
    read,
    run,
)
from mlxterp.llm.client import PATIENCE
from mlxterp.llm.prices import Tokens, price_of
from tests.llm.builders import GOOD, MODEL, READ, Answer, Pauses, always, answer, answers, ask, completer
from tests.messages_stub import MessagesStub


def test_the_answer_is_the_text_after_the_thinking_with_what_it_cost():
    usage = {"input_tokens": 1000, "cache_read_input_tokens": 2000, "output_tokens": 300}
    with MessagesStub([{"thinking": "{hm}", **GOOD, "usage": usage}]) as stub:
        claude = completer(stub)
        reply = answer(claude)

    assert isinstance(reply, Reply)
    assert read(reply, Answer) == Answer(name="x", count=3)
    assert reply.tokens == Tokens(input=1000, cache_read=2000, output=300)
    assert reply.usd == pytest.approx((1000 * 2 + 2000 * 0.1 + 300 * 10) / 1e6)
    assert claude.spending.spent == pytest.approx(reply.usd)
    assert (claude.usage.calls, claude.usage.tokens) == (1, reply.tokens)


def test_what_is_sent_asks_for_the_schema_and_marks_the_instructions_for_the_cache():
    with MessagesStub([GOOD]) as stub:
        answer(completer(stub), ask("some text", effort="low"))
        body = stub.requests[0].body

    assert body["model"] == MODEL
    assert body["system"] == [{"type": "text", "text": "Count.", "cache_control": {"type": "ephemeral"}}]
    assert body["messages"] == [{"role": "user", "content": "some text"}]
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["schema"]["required"] == ["name", "count"]
    assert not {"temperature", "top_p", "top_k", "stream"} & body.keys()


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        ({"text": "", "stop_reason": "refusal"}, "refused"),
        ({"text": '{"name": "x', "stop_reason": "max_tokens"}, "cut_off"),
        ({"text": "Sure! Here it is."}, "unreadable"),
        ({"text": '{"name": 7, "count": "many"}'}, "unreadable"),
        ({"thinking": "nothing but thoughts"}, "unreadable"),
    ],
)
def test_an_answer_that_cannot_be_used_is_paid_for_and_not_asked_again(step, kind):
    with MessagesStub([step]) as stub:
        claude = completer(stub)
        reply = answer(claude)

    assert isinstance(reply, Reply)
    value = read(reply, Answer)
    assert isinstance(value, Unusable)
    assert value.kind == kind
    assert claude.spending.spent > 0
    assert len(stub.requests) == 1


@pytest.mark.parametrize(
    "step",
    [
        {"status": 429, "error": "rate_limit_error"},
        {"status": 529, "error": "overloaded_error"},
        {"status": 500, "error": "api_error"},
        {"status": 503, "error": "api_error"},
        {"status": 504, "error": "timeout_error"},
        {"drop": True},
        {"cut": True, "text": "half of it"},
        {"garbage": True},
    ],
    ids=["429", "529", "500", "503", "504", "drop", "cut", "garbage"],
)
def test_a_fault_that_passes_is_waited_out(step):
    pauses = Pauses()
    with MessagesStub([step, step, GOOD]) as stub:
        reply = answer(completer(stub, pause=pauses))

    assert isinstance(reply, Reply)
    assert len(stub.requests) == 3
    assert len(pauses) == 2


def test_the_wait_is_as_long_as_the_service_asks_for():
    pauses = Pauses()
    steps = [{"status": 429, "retry_after": 17}, {"status": 529, "retry_after": 3.5}, GOOD]
    with MessagesStub(steps) as stub:
        answer(completer(stub, pause=pauses))

    assert pauses == [17.0, 3.5]


@pytest.mark.parametrize("nonsense", ["nan", "-3", "soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_wait_that_makes_no_sense_is_replaced_by_our_own(nonsense):
    pauses = Pauses()
    with MessagesStub([{"status": 429, "retry_after": nonsense}, GOOD]) as stub:
        answer(completer(stub, pause=pauses))

    assert len(pauses) == 1
    assert 0 <= pauses[0] <= 60


def test_a_service_that_never_answers_is_given_up_after_so_many_tries():
    with always({"status": 529, "error": "overloaded_error"}) as stub:
        claude = completer(stub, attempts=4)
        problem = answer(claude)

    assert isinstance(problem, LlmAway)
    assert "asked 4 times" in str(problem)
    assert "529 overloaded_error" in str(problem)
    assert len(stub.requests) == 4
    assert claude.spending.spent == 0


def test_a_wait_longer_than_the_patience_is_not_begun():
    pauses = Pauses()
    with MessagesStub([{"status": 429, "retry_after": PATIENCE + 1}]) as stub:
        problem = answer(completer(stub, pause=pauses))

    assert isinstance(problem, LlmAway)
    assert pauses == []


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_a_fault_that_no_repetition_changes_is_an_error_at_once(status):
    pauses = Pauses()
    with MessagesStub([{"status": status, "message": "not like this"}]) as stub:
        claude = completer(stub, pause=pauses)
        problem = answer(claude)

    assert isinstance(problem, LlmRejected)
    assert str(status) in str(problem)
    assert "not like this" in str(problem)
    assert MODEL in str(problem)
    assert (len(stub.requests), pauses, claude.spending.spent) == (1, [], 0)


class Failing(httpx2.AsyncBaseTransport):
    """The real transport, but for the first requests, which end in the given faults."""

    def __init__(self, *faults: Callable[[], Exception]) -> None:
        self._faults = list(faults)
        self._real = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._faults:
            raise self._faults.pop(0)()
        return await self._real.handle_async_request(request)

    async def aclose(self) -> None:
        await self._real.aclose()


def test_a_timeout_is_retried_and_charged_at_its_worst_when_it_may_have_been_paid():
    lost, never_left = (lambda: httpx2.ReadTimeout("slow")), (lambda: httpx2.ConnectTimeout("no route"))
    with MessagesStub([GOOD, GOOD]) as stub:
        paid = completer(stub, transport=Failing(lost))
        unpaid = completer(stub, transport=Failing(never_left))
        replies = [answer(paid), answer(unpaid)]

    worst = price_of(MODEL).at_most(0, 100)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert unpaid.spending.spent == pytest.approx(replies[1].usd)
    assert paid.spending.spent > worst + replies[0].usd


def test_an_answer_that_never_ends_is_given_up_at_its_deadline():
    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await asyncio.Event().wait()
            raise AssertionError

    with MessagesStub([]) as stub:
        problem = answer(completer(stub, transport=Silent(), call_seconds=0.01, attempts=2))

    assert isinstance(problem, LlmAway)
    assert "no answer in time" in str(problem)


def _page(body: Any) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda request: httpx2.Response(200, json=body))


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        3,
        {"content": None, "usage": {}},
        {"content": [{"type": "text", "text": 3}], "usage": {"input_tokens": 1}},
        {"content": [{"type": "text", "text": "x"}], "usage": None},
        {"content": [{"type": "text", "text": "x"}], "usage": {"input_tokens": "many"}},
        {"content": "x", "usage": {"input_tokens": 1}, "stop_reason": "end_turn"},
    ],
)
def test_json_that_is_no_message_is_a_lost_answer(body):
    with MessagesStub([]) as stub:
        problem = answer(completer(stub, transport=_page(body), attempts=2))

    assert isinstance(problem, LlmAway)


def test_eight_questions_are_under_way_at_once_and_never_more():
    step = {**GOOD, **READ, "together": 8}
    with MessagesStub([step] * 24) as stub:
        replies = answers(completer(stub), [ask(str(i)) for i in range(24)])

        assert all(isinstance(reply, Reply) for reply in replies)
        assert stub.most_at_once == 8
        stub.check(through=True)


def test_the_limit_on_calls_under_way_is_the_one_that_was_asked_for():
    with MessagesStub([{**GOOD, **READ, "together": 2}] * 6) as stub:
        answers(completer(stub, max_concurrency=2), [ask(str(i)) for i in range(6)])

        assert stub.most_at_once == 2
        stub.check(through=True)
    with pytest.raises(ValueError, match="max_concurrency=0"):
        AnthropicCompleter(api_key="k", max_concurrency=0)


def test_never_more_than_max_usd_is_spent_and_no_call_is_made_beyond_it():
    step = {**GOOD, "usage": {"input_tokens": 500, "cache_read_input_tokens": 50, "output_tokens": 100}}
    each = price_of(MODEL).usd(Tokens(input=500, cache_read=50, output=100))
    with always(step) as stub:
        claude = completer(stub, max_usd=0.02)
        replies = answers(claude, [ask(str(i)) for i in range(40)])

    made = [reply for reply in replies if isinstance(reply, Reply)]
    stopped = [reply for reply in replies if isinstance(reply, LlmBudgetReached)]
    assert len(made) == len(stub.requests) >= 3
    assert len(made) + len(stopped) == 40
    assert claude.spending.spent == pytest.approx(len(made) * each)
    assert claude.spending.spent <= 0.02
    assert "max_usd=0.02" in str(stopped[0])


def test_a_limit_below_one_call_makes_none():
    with MessagesStub([]) as stub:
        problem = answer(completer(stub, max_usd=1e-6))

    assert isinstance(problem, LlmBudgetReached)
    assert stub.requests == []


def test_the_same_completer_serves_one_run_after_another():
    with MessagesStub([GOOD, GOOD]) as stub:
        claude = completer(stub)
        replies = [answer(claude, ask("1")), answer(claude, ask("2"))]

    assert all(isinstance(reply, Reply) for reply in replies)


def test_it_works_inside_a_running_loop():
    with MessagesStub([GOOD]) as stub:

        async def notebook() -> Reply | LlmError:
            return answer(completer(stub))

        assert isinstance(asyncio.run(notebook()), Reply)


# the service's cache


def test_instructions_that_are_never_read_from_the_cache_are_warned_of_once():
    with MessagesStub([GOOD] * 12) as stub:
        claude = completer(stub, max_concurrency=1)
        with pytest.warns(PromptNotCached, match="read none of them") as caught:
            answers(claude, [ask(str(i)) for i in range(12)])

    assert len(caught) == 1


def test_instructions_that_are_read_from_the_cache_are_not_warned_of():
    steps = [GOOD, *[{**GOOD, "usage": {"cache_read_input_tokens": 900}}] * 11]
    with MessagesStub(steps) as stub:
        answers(completer(stub, max_concurrency=1), [ask(str(i)) for i in range(12)])


def test_questions_with_instructions_of_their_own_are_not_warned_of():
    with MessagesStub([GOOD] * 12) as stub:
        answers(completer(stub, max_concurrency=1), [ask(system=f"Count {i}.") for i in range(12)])


# the key


def test_the_key_is_in_no_error_no_log_and_not_in_the_cache(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    key = MessagesStub.key
    echo = {"status": 401, "error": "authentication_error", "message": f"the key {key} is wrong"}
    with MessagesStub([{**GOOD, "text": GOOD["text"]}, {**echo, "status": 529}, echo]) as stub:
        cache = ReplyCache(tmp_path / "replies.sqlite")
        claude = completer(stub)
        answer(CachedCompleter(claude, cache))
        problem = answer(claude, ask("another"))
        cache.close()

    assert isinstance(problem, LlmRejected)
    shown = "".join(traceback.format_exception(problem))
    assert "(key)" in str(problem)
    assert key not in shown + repr(claude) + repr(vars(problem)) + caplog.text
    for path in tmp_path.iterdir():
        assert key.encode() not in path.read_bytes()


def test_an_error_without_the_key_keeps_its_cause():
    with MessagesStub([{"status": 404, "message": "model: nope"}]) as stub:
        problem = answer(completer(stub))

    assert isinstance(problem, LlmRejected)
    assert problem.__cause__ is not None


def test_without_a_key_it_says_so_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)

    with pytest.raises(LlmUnavailable, match="ANTHROPIC_API_KEY"):
        AnthropicCompleter()


def test_in_an_experiment_it_says_at_once_that_there_is_no_network(monkeypatch):
    monkeypatch.setenv(OUTBOX_ENV, "fd:3")

    with pytest.raises(LlmUnavailable, match="no network, no key and no share of the run's dollars"):
        AnthropicCompleter(api_key="k")


def test_the_key_of_the_environment_is_used(monkeypatch):
    with MessagesStub([GOOD], check_key=True) as stub:
        monkeypatch.setenv("ANTHROPIC_API_KEY", stub.key)
        assert isinstance(answer(completer(stub, api_key=None)), Reply)


def test_without_the_package_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "anthropic", None)

    with pytest.raises(LlmUnavailable, match="pip install anthropic"):
        AnthropicCompleter(api_key="k")


def test_a_deprecated_model_is_used_as_asked_with_a_warning_that_names_the_next():
    with MessagesStub([GOOD]) as stub:
        with pytest.warns(DeprecatedModel, match="claude-sonnet-5-5 replaces it"):
            claude = completer(stub, model="claude-sonnet-4-20250514")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=DeprecatedModel)
            warnings.filterwarnings("error", message="The model .* is deprecated")
            reply = answer(claude)

    assert isinstance(reply, Reply)
    assert stub.requests[0].body["model"] == "claude-sonnet-4-20250514"


def test_a_model_whose_service_has_ended_is_named_with_its_successor():
    with (
        MessagesStub([{"status": 404, "message": "model: claude-sonnet-4-20250514"}]) as stub,
        pytest.warns(DeprecatedModel),
    ):
        problem = answer(completer(stub, model="claude-sonnet-4-20250514"))

    assert isinstance(problem, LlmRejected)
    assert "claude-sonnet-5-5 replaces it" in str(problem)


def test_a_model_without_a_price_says_that_its_cost_is_a_guess():
    with MessagesStub([GOOD]) as stub:
        reply = answer(completer(stub, model="model-of-the-house"))

    assert reply.estimated
    assert reply.usd > 0


def test_the_fake_and_the_real_client_give_the_same_reply():
    fake = ScriptedCompleter([GOOD["text"]])
    with MessagesStub([GOOD]) as stub:
        real = answer(completer(stub))

    said = run(lambda: fake.complete(ask()))
    assert (said.text, said.stop_reason) == (real.text, real.stop_reason)
    assert json.loads(said.text) == json.loads(real.text)
