"""The n-th call of the system fails, for each n in turn: the supervisor goes on, or stops with a reason that
has a name, and the next start finds everything that was promised."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlxterp.autointerpret.log import ExperimentLog
from mlxterp.errors import MlxterpError
from tests.agent.fakes import make_project
from tests.agent.kills import Supervisor

CALLS = ("open", "write", "fsync", "replace", "rename", "ftruncate", "unlink", "mkdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.EMFILE, errno.ENOLCK, errno.EROFS)

FINISHED, NAMED, UNNAMED = 0, 10, 20


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))


def failing(call: str, nth: int, number: int) -> Callable[[], bool]:
    """Makes the n-th call of a function of `os` fail; the result says whether it came to that."""
    real, count = getattr(os, call), [0]

    def replacement(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        if count[0] == nth:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    setattr(os, call, replacement)
    return lambda: count[0] >= nth


def lives(project: Path, acknowledged: Path, call: str, number: int, last: int) -> Iterator[tuple[int, int]]:
    """One life for each n, until the call is made fewer than n times: n, and how the life ended."""
    for nth in range(1, last + 1):
        pid = os.fork()
        if pid == 0:
            came = failing(call, nth, number)
            code = FINISHED
            try:
                Supervisor(project, acknowledged, git=False).run(4 * nth)
            except (MlxterpError, OSError):
                code = NAMED
            except BaseException as problem:  # noqa: BLE001 - the process ends here
                os.write(2, f"{call} {nth}: {type(problem).__name__}: {problem}\n".encode())
                code = UNNAMED
            os._exit(code + came())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        yield nth, code // 10 * 10
        if code % 10 == 0:
            return


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

    ends = dict(lives(project, acknowledged, call, number, last))

    assert UNNAMED not in ends.values()
    Supervisor(project, acknowledged, git=False)
    promised = {
        words[1] for words in map(str.split, acknowledged.read_text().splitlines()) if words[0] == "line"
    }
    there = [e.record["uid"] for e in ExperimentLog(project / "results.jsonl").entries() if e.record]
    assert promised <= set(there)
    assert len(there) == len(set(there))
