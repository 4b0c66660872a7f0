"""The n-th call of the system fails, for each n in turn: the supervisor goes on, or stops with a reason that
has a name, and the next start finds everything that was promised."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.errors import MlxterpError
from mlxterp.llm.client import CallPolicy, MessagesClient
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.storage.git_driver import GitDriver
from tests.agent.fakes import make_project
from tests.agent.kills import Supervisor
from tests.messages_stub import MessagesStub

CALLS = ("open", "write", "fsync", "replace", "rename", "ftruncate", "unlink", "mkdir")
NETWORK = ("connect", "send", "recv")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EMFILE, errno.ENOLCK, errno.EROFS)

FINISHED, NAMED, UNNAMED = 0, 10, 20

Fault = Callable[[int], Callable[[], bool]]
"""Makes the n-th call fail, from now on; the result says whether it came to that."""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))


def replaced(
    owner: Any, name: str, instead: Callable[..., Any], counts: Callable[..., bool] = lambda *_: True
) -> Fault:
    """The n-th call of `owner.name` is one of `instead`, of those calls that count."""

    def arm(nth: int) -> Callable[[], bool]:
        real, count = getattr(owner, name), [0]

        def replacement(*arguments: Any, **options: Any) -> Any:
            count[0] += counts(*arguments)
            return (instead if counts(*arguments) and count[0] == nth else real)(*arguments, **options)

        setattr(owner, name, replacement)
        return lambda: count[0] >= nth

    return arm


def raising(owner: Any, name: str, number: int, counts: Callable[..., bool] = lambda *_: True) -> Fault:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return replaced(owner, name, fail, counts)


def reaches_the_network(connection: socket.socket, *_: Any) -> bool:
    """Not the socket by which an event loop wakes itself."""
    return connection.family == socket.AF_INET


def git_reports(number: int) -> Fault:
    """Git itself meets the fault, and says so."""

    def fail(*_: Any, **__: Any) -> Any:
        return 128, b"", f"fatal: unable to write: {os.strerror(number)}"

    return replaced(GitDriver, "_execute", fail)


def lives(
    fault: Fault, life: Callable[[int], None], *, last: int, stops: tuple[type[BaseException], ...]
) -> Iterator[tuple[int, int]]:
    """One life for each n, until the call is made fewer than n times: n, and how the life ended."""
    for nth in range(1, last + 1):
        pid = os.fork()
        if pid == 0:
            came = fault(nth)
            code = FINISHED
            try:
                life(nth)
            except stops:
                code = NAMED
            except BaseException as problem:  # noqa: BLE001 - the process ends here
                os.write(2, f"{nth}: {type(problem).__name__}: {problem}\n".encode())
                code = UNNAMED
            os._exit(code + came())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        yield nth, code // 10 * 10
        if code % 10 == 0:
            return


def lost_or_doubled(project: Path, acknowledged: Path) -> list[str]:
    promised = {
        words[1] for words in map(str.split, acknowledged.read_text().splitlines()) if words[0] == "line"
    }
    there = [e.record["uid"] for e in ExperimentLog(project / "results.jsonl").entries() if e.record]
    return [*(promised - set(there)), *(uid for uid in there if there.count(uid) > 1)]


@pytest.mark.parametrize(
    ("call", "number", "last"),
    [
        pytest.param("fsync", errno.EIO, 6),
        *(pytest.param(call, number, 500, marks=pytest.mark.slow) for call in CALLS for number in ERRORS),
    ],
)
def test_a_call_that_fails_stops_with_a_named_reason_or_not_at_all(
    tmp_path: Path, call: str, number: int, last: int
):
    project, acknowledged = make_project(tmp_path / "project"), tmp_path / "acknowledged"

    def life(nth: int) -> None:
        Supervisor(project, acknowledged, git=False).run(4 * nth)

    ends = dict(lives(raising(os, call, number), life, last=last, stops=(MlxterpError, OSError)))

    assert UNNAMED not in ends.values()
    assert len(ends) < 500
    Supervisor(project, acknowledged, git=False)
    assert lost_or_doubled(project, acknowledged) == []


@pytest.mark.parametrize(
    ("where", "number", "last"),
    [
        pytest.param("start", errno.EMFILE, 4),
        *(
            pytest.param(where, number, 200, marks=pytest.mark.slow)
            for where in ("start", "git")
            for number in ERRORS
        ),
    ],
)
def test_a_call_of_git_that_fails_never_stops_the_experiments(
    tmp_path: Path, where: str, number: int, last: int
):
    project, acknowledged = make_project(tmp_path / "project"), tmp_path / "acknowledged"
    Supervisor(project, acknowledged, git=True)._lock.release()  # the repository is made before the faults
    fault = raising(subprocess.Popen, "__init__", number) if where == "start" else git_reports(number)

    def life(nth: int) -> None:
        supervisor = Supervisor(project, acknowledged, git=True)
        supervisor.run(6 * nth)
        supervisor.run(6 * nth + 1)

    ends = dict(lives(fault, life, last=last, stops=(MlxterpError,)))

    assert UNNAMED not in ends.values()
    assert len(ends) < 200
    after = Supervisor(project, acknowledged, git=True)
    after.results.commit_pending(last=True)
    assert lost_or_doubled(project, acknowledged) == []
    assert [check for check in verify(project, after.state) if check.result == "problem"] == []


async def ask(stub: MessagesStub) -> None:
    policy = CallPolicy(pause=lambda _: asyncio.sleep(0))
    client = MessagesClient("claude-opus-5-5", api_key=stub.key, base_url=stub.url, policy=policy)
    asked = {"max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
    answer = await client.call_with_retries(lambda: client.stream(asked))
    await client.close()
    assert [block["text"] for block in answer.content] == ["hello"]


@pytest.mark.parametrize(
    ("call", "number"), [pytest.param(call, number) for call in NETWORK for number in ERRORS]
)
@pytest.mark.slow
def test_a_network_call_that_fails_is_tried_again_or_named(call: str, number: int):
    import anthropic  # noqa: F401 - once, before the lives are forked

    answers = [{"text": "hello"}] * 200
    with MessagesStub(answers) as stub:

        def life(_: int) -> None:
            asyncio.run(ask(stub))

        fault = raising(socket.socket, call, number, reaches_the_network)
        ends = dict(lives(fault, life, last=100, stops=(MlxterpError,)))

    assert set(ends.values()) == {FINISHED}
    assert len(ends) < 100
