"""Under supervision an entry goes to the supervisor's pipe, and results.jsonl has one writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.autointerpret.log import outbox
from mlxterp.errors import OutboxClosed
from tests.autointerpret.conftest import an_entry


def test_append_sends_the_entry_and_leaves_the_file_alone(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setenv("AUTOINTERP_OUTBOX", f"fd:{writing}")
    log = ExperimentLog(tmp_path / "results.jsonl", clock=lambda: 5.0)

    pending = log.append(an_entry(result={"x": float("nan"), "u": "\u2028"}, experiment_id="0099"))
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        (line,) = pipe.read().splitlines()

    frame = json.loads(line)
    assert frame["type"] == "entry"
    assert ExperimentEntry.from_dict(frame["entry"]) == pending
    assert (pending.experiment_id, pending.timestamp) == ("", 5.0)
    assert (pending.result, pending.metadata) == ({"x": "NaN", "u": "\u2028"}, {"nonfinite": ["result.x"]})
    assert not log.path.exists()


def test_reading_works_from_the_file_as_always(tmp_path, monkeypatch):
    log = ExperimentLog(tmp_path / "results.jsonl")
    log.append(an_entry())
    monkeypatch.setenv("AUTOINTERP_OUTBOX", "fd:1000")

    assert len(log.entries()) == 1
    assert log.append_sealed(an_entry(), {"uid": "by the supervisor itself"}).experiment_id == "0002"


@pytest.mark.parametrize("kind", ["closed", "file", "nobody reads"])
def test_an_entry_that_nobody_can_receive_is_an_error(tmp_path, monkeypatch, kind):
    reading, writing = os.pipe()
    os.close(reading)
    fd = writing
    if kind == "file":
        fd = os.open(tmp_path / "mine.txt", os.O_CREAT | os.O_RDWR)
    elif kind == "closed":
        os.close(writing)
    monkeypatch.setenv("AUTOINTERP_OUTBOX", f"fd:{fd}")

    with pytest.raises(OutboxClosed, match=r"the entry was not logged.*unset AUTOINTERP_OUTBOX"):
        ExperimentLog(tmp_path / "results.jsonl").append(an_entry())

    assert not (tmp_path / "mine.txt").exists() or (tmp_path / "mine.txt").read_bytes() == b""
    assert not (tmp_path / "results.jsonl").exists()


def test_a_variable_that_names_no_pipe_is_an_error(monkeypatch):
    monkeypatch.setenv("AUTOINTERP_OUTBOX", "somewhere")

    with pytest.raises(OutboxClosed, match="'somewhere' names no pipe"):
        outbox()


def test_without_the_variable_there_is_no_outbox(monkeypatch):
    monkeypatch.setenv("AUTOINTERP_OUTBOX", "")

    assert outbox() is None


def test_a_child_process_reports_through_an_inherited_pipe(tmp_path):
    reading, writing = os.pipe()
    code = (
        "from mlxterp.autointerpret import *\n"
        "for i in range(3): ExperimentLog('r.jsonl').append("
        "ExperimentEntry('h', 'm', {'i': i, 'pad': 'x' * 200_000}, True, 'c', 0.1))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "AUTOINTERP_OUTBOX": f"fd:{writing}"},
        pass_fds=[writing],
        cwd=tmp_path,
    )
    os.close(writing)

    with os.fdopen(reading, "rb") as pipe:
        frames = [json.loads(line) for line in pipe.read().split(b"\n") if line]

    assert child.wait() == 0
    assert [frame["entry"]["result"]["i"] for frame in frames] == [0, 1, 2]
