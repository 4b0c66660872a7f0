"""Claude asked in batches, by the real SDK, against a stub of the service on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mlxterp.errors import LlmAway, LlmBudgetReached, LlmRejected, ReplyCacheError
from mlxterp.llm import BatchCompleter, Reply, ReplyCache, run
from mlxterp.llm.batches import LONGEST
from mlxterp.llm.prices import Tokens, price_of
from tests.llm.builders import GOOD, MODEL, Pauses, always, answers, ask
from tests.messages_stub import MessagesStub

EACH = 0.5 * price_of(MODEL).usd(Tokens(input=100, output=20))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


def batches(stub: MessagesStub, path: Path, **options: Any) -> BatchCompleter:
    given: dict[str, Any] = {"api_key": stub.key, "base_url": stub.url, "pause": Pauses(), **options}
    return BatchCompleter(ReplyCache(path), MODEL, **given)


def echo(request: Any) -> dict[str, Any]:
    return {"text": f'{{"name": "{request.last_user}", "count": 1}}'}


def test_questions_that_wait_together_are_one_batch_at_half_the_price(path):
    requests = [ask(str(i)) for i in range(30)]
    with always({"thinking": "hm", "call": echo}) as stub:
        completer = batches(stub, path)
        replies = answers(completer, requests)
        stub.check()

    assert [len(results) for results in stub.batches.values()] == [30]
    for i, reply in enumerate(replies):
        assert f'"{i}"' in reply.text
        assert reply.usd == pytest.approx(EACH)
    assert completer.spending.spent == pytest.approx(30 * EACH)
    assert completer.usage.calls == 30


def test_what_is_asked_in_a_batch_is_what_one_call_would_ask(path):
    with always() as stub:
        answers(batches(stub, path), [ask("text", effort="low")])
        body = stub.requests[0].body

    assert body["model"] == MODEL
    assert body["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["output_config"]["effort"] == "low"


def test_the_next_batch_has_what_the_answers_of_the_first_led_to(path):
    async def twice(completer: BatchCompleter, i: int) -> Reply:
        await completer.complete(ask(f"first {i}"))
        return await completer.complete(ask(f"second {i}"))

    with always() as stub:
        completer = batches(stub, path)

        async def job() -> None:
            await asyncio.gather(*(twice(completer, i) for i in range(5)))
            await completer.close()

        run(job)

    assert [len(results) for results in stub.batches.values()] == [5, 5]


def test_the_same_question_is_sent_once(path):
    with always() as stub:
        replies = answers(batches(stub, path), [ask("same"), ask("same"), ask("other")])

    assert len(stub.requests) == 2
    assert replies[0] == replies[1]


def test_it_looks_again_until_the_batch_has_ended(path):
    pauses = Pauses()
    with always(batch_polls=4) as stub:
        answers(batches(stub, path, pause=pauses, poll_seconds=30.0), [ask()])

    assert pauses == [30.0] * 3


def test_a_finished_run_makes_no_request_when_it_is_run_again(path):
    with always() as stub:
        answers(batches(stub, path), [ask(str(i)) for i in range(4)])
        before = len(stub.requests)
        again = batches(stub, path)
        replies = answers(again, [ask(str(i)) for i in range(4)])

    assert len(stub.requests) == before
    assert all(reply.cached for reply in replies)
    assert again.spending.spent == 0


def test_a_run_that_was_stopped_while_it_waited_fetches_what_it_had_sent(path):
    class Stopped(Exception):
        pass

    async def stop(_: float) -> None:
        raise Stopped

    requests = [ask(str(i)) for i in range(6)]
    with always(batch_polls=2) as stub:
        with pytest.raises(Stopped):
            answers(batches(stub, path, pause=stop), requests)
        sent = len(stub.requests)
        kept = ReplyCache(path)
        assert list(kept.batches(MODEL)) == ["msgbatch_stub0001"]
        kept.close()
        replies = answers(batches(stub, path), [*requests, ask("new")])
        kept = ReplyCache(path)
        left = kept.batches(MODEL)
        kept.close()

    assert sent == 6
    assert len(stub.requests) == 7
    assert all(isinstance(reply, Reply) for reply in replies)
    assert left == {}


def test_a_batch_that_is_gone_is_asked_for_anew(path):
    kept = ReplyCache(path)
    kept.add_batch("msgbatch_of_another_account", [ask("0").digest(MODEL)], model=MODEL)
    kept.close()
    with always() as stub:
        replies = answers(batches(stub, path), [ask("0"), ask("1")])

    assert all(isinstance(reply, Reply) for reply in replies)
    assert len(stub.requests) == 2


@pytest.mark.parametrize("fault", [{"status": 500, "error": "api_error"}, {"drop": True}])
def test_a_question_that_failed_or_expired_is_sent_again_and_given_up_after_three_batches(path, fault):
    def sometimes(request: Any) -> dict[str, Any]:
        return fault if request.last_user == "bad" else dict(GOOD)

    with always({"call": sometimes}) as stub:
        completer = batches(stub, path)
        bad, good = answers(completer, [ask("bad"), ask("good")])

    assert isinstance(good, Reply)
    assert isinstance(bad, LlmAway)
    assert "3 batches" in str(bad)
    assert len(stub.batches) == 3
    assert completer.spending.spent == pytest.approx(good.usd)


def test_a_question_that_is_not_valid_is_rejected_at_once(path):
    invalid = {"status": 400, "error": "invalid_request_error", "message": "too long"}
    with always(invalid) as stub:
        (problem,) = answers(batches(stub, path), [ask()])

    assert isinstance(problem, LlmRejected)
    assert "too long" in str(problem)
    assert len(stub.batches) == 1


def test_a_refusal_is_a_reply(path):
    with always({"text": "", "stop_reason": "refusal"}) as stub:
        (reply,) = answers(batches(stub, path), [ask()])

    assert reply.stop_reason == "refusal"


def test_a_batch_holds_what_fits_into_the_budget_and_the_rest_comes_after(path):
    with always() as stub:
        completer = batches(stub, path, max_usd=0.012)
        replies = answers(completer, [ask(str(i)) for i in range(40)])

    stopped = [each for each in replies if isinstance(each, LlmBudgetReached)]
    assert len(stub.batches) > 1
    assert completer.spending.spent <= 0.012
    assert len(stub.requests) + len(stopped) == 40
    assert all("max_usd=0.012" in str(each) for each in stopped)


def test_a_service_that_never_ends_a_batch_is_given_up(path):
    with always(batch_polls=10**9) as stub:
        completer = batches(stub, path, poll_seconds=LONGEST / 4)
        (problem,) = answers(completer, [ask()])

    assert isinstance(problem, LlmAway)
    assert "msgbatch_stub0001" in str(problem)


def test_what_breaks_while_all_wait_reaches_all(path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise ReplyCacheError("the disk is full")

    monkeypatch.setattr(ReplyCache, "add_batch", full)
    with always() as stub:
        replies = answers(batches(stub, path), [ask("0"), ask("1")])

    assert [str(each) for each in replies] == ["the disk is full"] * 2
