"""Replies on disk: what was paid for once is not paid for again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxterp.errors import ReplyCacheError
from mlxterp.llm import CachedCompleter, Reply, ReplyCache, Request, ScriptedCompleter
from tests.llm.builders import GOOD, READ, always, answers, ask, completer
from tests.messages_stub import MessagesStub

ROOT = Path(__file__).resolve().parents[2]


def test_what_was_asked_once_is_not_asked_again(tmp_path):
    requests = [ask(str(i)) for i in range(5)]
    with MessagesStub([{**GOOD, "thinking": "hm"}] * 5) as stub:
        for path in (tmp_path / "deep" / "replies.sqlite",) * 2:
            cache = ReplyCache(path)
            claude = completer(stub)
            replies = answers(CachedCompleter(claude, cache), requests)
            cache.close()

    assert len(stub.requests) == 5
    assert claude.spending.spent == 0
    assert [reply.cached for reply in replies] == [True] * 5
    assert replies[0].text == GOOD["text"]
    assert replies[0].usd > 0
    assert replies[0].paid == 0


@pytest.mark.parametrize(
    "reply", [Reply("", "refusal"), Reply("{", "max_tokens"), Reply("no"), Reply("🦄 ä\n")]
)
def test_a_kept_reply_comes_back_as_it_was(tmp_path, reply):
    cache = ReplyCache(tmp_path / "replies.sqlite")
    cache.put("k", reply, model="m", version="1")

    kept = cache.get("k")
    cache.close()

    assert kept is not None
    assert (kept.text, kept.stop_reason, kept.cached) == (reply.text, reply.stop_reason, True)


def test_a_killed_run_goes_on_with_no_more_than_it_had_under_way(tmp_path):
    requests, under_way, answered = [ask(str(i)) for i in range(40)], 8, []

    class Killed(BaseException):
        pass

    async def until_killed(request: Request) -> str:
        if len(answered) == 20:
            raise Killed
        answered.append(request)
        await asyncio.sleep(0)
        return GOOD["text"]

    path = tmp_path / "replies.sqlite"
    cache = ReplyCache(path)
    places = asyncio.Semaphore(under_way)
    first = CachedCompleter(ScriptedCompleter(until_killed), cache)

    async def one(request: Request) -> None:
        async with places:
            await first.complete(request)

    async def job() -> None:
        tasks = [asyncio.ensure_future(one(request)) for request in requests]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    with pytest.raises(Killed):
        asyncio.run(job())
    cache.close()

    cache = ReplyCache(path)
    second = ScriptedCompleter(lambda request: GOOD["text"])
    answers(CachedCompleter(second, cache), requests)
    cache.close()

    assert 20 <= len(second.requests) <= 20 + under_way
    assert len(answered) + len(second.requests) <= 40 + under_way


@pytest.mark.slow
def test_a_process_that_is_killed_loses_what_it_had_under_way_and_no_more(tmp_path):
    """kill -9 while the 30th of 60 questions is being answered, eight at a time."""
    program = """
import asyncio, os, sys
from mlxterp.llm import AnthropicCompleter, CachedCompleter, ReplyCache, run
from tests.llm.builders import ask
claude = CachedCompleter(AnthropicCompleter(base_url=sys.argv[1]), ReplyCache(sys.argv[2]))
async def job():
    await asyncio.gather(*(claude.complete(ask(str(i))) for i in range(60)))
run(job)
"""
    path = tmp_path / "replies.sqlite"
    child: list[subprocess.Popen[bytes]] = []
    seen: list[str] = []

    def answer(request: Any) -> dict[str, Any]:
        seen.append(request.last_user)
        if len(seen) == 30:
            child[0].kill()
        return {**GOOD, **READ}

    with always({"call": answer}) as stub:
        environment = {**os.environ, "ANTHROPIC_API_KEY": stub.key}
        arguments = [sys.executable, "-c", program, stub.url, str(path)]
        child.append(subprocess.Popen(arguments, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL))
        assert child[0].wait(timeout=120) == -9
        before = len(seen)
        cache = ReplyCache(path)
        replies = answers(CachedCompleter(completer(stub), cache), [ask(str(i)) for i in range(60)])

    assert all(isinstance(reply, Reply) for reply in replies)
    assert 30 <= before <= 37
    assert 60 <= len(seen) <= 60 + 8


def test_two_runs_may_share_a_file(tmp_path):
    path = tmp_path / "replies.sqlite"
    one, other = ReplyCache(path), ReplyCache(path)
    one.put("a", Reply("1"), model="m", version="")
    other.put("b", Reply("2"), model="m", version="")

    assert one.get("b") == Reply("2", cached=True)
    assert len(other) == 2
    one.close()
    other.close()


def test_a_file_that_is_something_else_is_not_touched(tmp_path):
    text, foreign = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("These are notes, and long enough to be no empty database at all." * 20)
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()

    for path in (text, foreign, tmp_path):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ReplyCacheError, match="Choose"):
            ReplyCache(path)
        assert (path.read_bytes() if path.is_file() else b"") == before
