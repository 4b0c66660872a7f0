"""Requests, replies and the fake, without a network."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import warnings

import pytest
from pydantic import BaseModel

from mlxterp.errors import LlmAway, LlmBudgetReached, LlmError
from mlxterp.llm import (
    DEFAULT_MODEL,
    Reply,
    Request,
    ScriptedCompleter,
    Unusable,
    read,
    run,
)
from mlxterp.llm.prices import deprecation
from mlxterp.llm.spending_limit import Cost, SpendingLimit
from tests.llm.builders import Answer, ask


def test_importing_it_loads_neither_mlx_nor_the_sdk():
    code = (
        "import sys, mlxterp.llm.anthropic_completer, mlxterp.llm.batches; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'mlx', 'mlx_lm', 'anthropic'}))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_default_model_is_current():
    assert deprecation(DEFAULT_MODEL) is None


def test_a_request_is_known_by_everything_its_answer_depends_on():
    class Other(BaseModel):
        name: str

    base = ask().digest("m")

    assert ask().digest("m") == base
    for changed in (
        ask(system="Count!"),
        ask(user="a c"),
        ask(schema=Other),
        ask(max_tokens=9),
        ask(effort="low"),
        ask(version="2"),
        ask(attempt=1),
    ):
        assert changed.digest("m") != base
    assert ask().digest("another") != base


def test_a_reply_of_the_wanted_form_is_read():
    assert read(Reply('{"name": "x", "count": 3}'), Answer) == Answer(name="x", count=3)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply("", "refusal"), "refused"),
        (Reply('{"name": "x", "count": 3}', "refusal"), "refused"),
        (Reply('{"name": "x", "co', "max_tokens"), "cut_off"),
        (Reply("{", "model_context_window_exceeded"), "cut_off"),
        (Reply("Here you are: {}"), "unreadable"),
        (Reply('Use {curly} style: {"name": "x", "count": 3}'), "unreadable"),
        (Reply('{"name": 3, "count": 3}'), "unreadable"),
        (Reply('{"name": "x", "count": "very high"}'), "unreadable"),
        (Reply('{"name": "x", "count": "3"}'), "unreadable"),
        (Reply('{"name": "x"}'), "unreadable"),
        (Reply("[]"), "unreadable"),
        (Reply("\ud800"), "unreadable"),
        (Reply(""), "unreadable"),
    ],
)
def test_any_other_reply_says_why_it_cannot_be_used(reply, kind):
    value = read(reply, Answer)

    assert isinstance(value, Unusable)
    assert value.kind == kind
    assert str(value)


def test_the_fake_says_its_answers_in_order_and_keeps_what_it_was_asked():
    fake = ScriptedCompleter(["one", Reply("two", "max_tokens"), LlmAway("gone")])

    async def talk() -> list[str]:
        said = [(await fake.complete(ask(user=str(i)))).text for i in range(2)]
        with pytest.raises(LlmAway, match="gone"):
            await fake.complete(ask())
        with pytest.raises(LlmError, match="asked 4 times; it has 3 answers"):
            await fake.complete(ask())
        return said

    assert run(talk) == ["one", "two"]
    assert [request.user for request in fake.requests[:2]] == ["0", "1"]


def test_any_function_is_a_completer_also_an_async_one():
    async def later(request: Request) -> str:
        return request.user.upper()

    for function in (lambda request: request.user.upper(), later):
        fake = ScriptedCompleter(function, model="mine")
        assert run(lambda fake=fake: fake.complete(ask(user="abc"))).text == "ABC"


def test_a_job_runs_in_a_script_and_inside_a_running_loop():
    async def job() -> int:
        await asyncio.sleep(0)
        return 7

    async def notebook() -> int:
        return run(job)

    assert run(job) == 7
    assert asyncio.run(notebook()) == 7


def test_what_a_job_raises_is_raised_where_it_was_started():
    async def job() -> None:
        raise LlmError("no")

    async def notebook() -> None:
        run(job)

    for start in (lambda: run(job), lambda: asyncio.run(notebook())):
        with pytest.raises(LlmError, match="no"):
            start()


def test_ctrl_c_in_a_notebook_cancels_the_job_and_lets_it_clean_up(monkeypatch):
    import threading

    cleaned, ready = [], threading.Event()

    async def job() -> None:
        try:
            ready.set()
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    join = threading.Thread.join
    pressed = []

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name == "mlxterp-llm" and not pressed:
            ready.wait()
            pressed.append(True)
            raise KeyboardInterrupt
        join(thread, timeout)

    async def notebook() -> None:
        run(job)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(notebook())

    assert cleaned == [True]


def test_a_call_waits_while_others_may_leave_room_and_fails_when_none_can():
    async def spend() -> list[str]:
        limit = SpendingLimit(1.0)
        seen: list[str] = []
        await limit.hold(Cost(0.7))

        async def second() -> None:
            await limit.hold(Cost(0.7))
            seen.append("second")

        waiting = asyncio.create_task(second())
        await asyncio.sleep(0)
        seen.append("first settles")
        limit.settle(Cost(0.7), Cost(0.1))
        await waiting
        limit.settle(Cost(0.7), Cost(0.7))
        with pytest.raises(LlmBudgetReached, match=r"max_usd=1 .*\$0.8000 are spent"):
            await limit.hold(Cost(0.3))
        return seen

    assert asyncio.run(spend()) == ["first settles", "second"]


def test_without_a_limit_nothing_waits():
    async def spend() -> float:
        limit = SpendingLimit(None)
        await limit.hold(Cost(1e9))
        await limit.hold(Cost(1e9))
        limit.settle(Cost(1e9), Cost(5.0))
        return limit.spent

    assert asyncio.run(spend()) == 5.0


def test_the_package_lists_what_it_has():
    import mlxterp.llm as package

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in package.__all__:
            assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="Completer"):
        package.Complete  # noqa: B018
