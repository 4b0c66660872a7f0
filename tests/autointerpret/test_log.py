"""The log keeps every entry: many writers, crashes, full disks, hostile files."""

# ruff: noqa: T201 - the guide's examples print

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading

import pytest

from mlxterp import _files
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
from mlxterp.errors import CorruptLog, EntryError, ProjectError, TornTail
from tests.autointerpret.conftest import an_entry

WRITER = """
import sys
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
log = ExperimentLog(sys.argv[1])
for i in range(int(sys.argv[2])):
    entry = log.append(ExperimentEntry(f"h{i}", "m" * 300, {"i": i}, False, "c", 0.0))
    print(entry.experiment_id, flush=True)
"""


def _writer(path, n) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(n)], stdout=subprocess.PIPE, text=True
    )


def _ids(n: int) -> list[str]:
    return [f"{i:04d}" for i in range(1, n + 1)]


def test_the_guides_example_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    log = ExperimentLog("results.jsonl")

    log.append(ExperimentEntry(
        hypothesis="Layer 5 MLP handles factual recall",
        method="activation_patching",
        result={"layer_5_effect": 0.82, "layer_10_effect": 0.15},
        informative=True,
        conclusion="Confirmed: layer 5 MLP has 82% recovery effect",
        duration_seconds=12.5,
    ))  # fmt: skip

    print(log.summary())
    for entry in log.informative_entries():
        print(f"  [{entry.experiment_id}] {entry.conclusion}")

    printed = capsys.readouterr().out
    assert printed.startswith("results.jsonl: 1 experiment, 1 informative, 12.5 s")
    assert printed.endswith("  [0001] Confirmed: layer 5 MLP has 82% recovery effect\n")


def test_an_entry_is_read_back_as_append_returned_it(tmp_path):
    log = ExperimentLog(tmp_path / "results.jsonl", clock=lambda: 1790000000.0)

    logged = log.append(an_entry(metadata={"pairs": 3}))

    assert log.entries() == [logged]
    assert (logged.experiment_id, logged.timestamp, logged.record) == ("0001", 1790000000.0, None)
    assert log.raw().startswith(
        b'{"experiment_id": "0001", "timestamp": 1790000000.0, "hypothesis": "Layer 5'
    )


def test_two_thousand_appends_give_two_thousand_contiguous_ids(memory_path):
    log = ExperimentLog(memory_path / "results.jsonl")

    ids = [log.append(an_entry()).experiment_id for _ in range(2000)]

    assert ids == _ids(2000)
    assert [entry.experiment_id for entry in log.entries()] == ids


def test_four_processes_appending_at_once_give_two_thousand_contiguous_ids(memory_path):
    path = memory_path / "results.jsonl"

    writers = [_writer(path, 500) for _ in range(4)]
    reported = sorted(line for writer in writers for line in writer.communicate()[0].split())

    assert reported == _ids(2000)
    assert [entry.experiment_id for entry in ExperimentLog(path).entries()] == _ids(2000)


def test_threads_sharing_one_log_do_not_mix_lines(memory_path):
    log = ExperimentLog(memory_path / "results.jsonl")
    threads = [threading.Thread(target=lambda: [log.append(an_entry()) for _ in range(50)]) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [entry.experiment_id for entry in log.entries()] == _ids(200)


def test_an_append_reads_only_what_others_added(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    path.write_bytes(_line(an_entry(hypothesis="x" * 100_000)) * 5)
    log, other = ExperimentLog(path), ExperimentLog(path)
    log.append(an_entry())
    other.append(an_entry())
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: (read.append(n), pread(fd, n, at))[1])

    logged = log.append(an_entry())

    assert logged.experiment_id == "0008"
    assert sum(read) < 2000


def test_an_entry_is_on_the_disk_before_append_returns(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(_files.os, "fsync", lambda fd: (synced.append(path.stat().st_size), fsync(fd))[1])

    ExperimentLog(path).append(an_entry())

    assert synced
    assert set(synced) == {path.stat().st_size}


def test_a_tail_torn_at_any_byte_costs_at_most_that_record(memory_path):
    whole = memory_path / "whole.jsonl"
    log = ExperimentLog(whole, clock=lambda: 1.0)
    for i in range(2):
        log.append(an_entry(hypothesis=f"h{i}"))
    start, content = len(whole.read_bytes().splitlines(keepends=True)[0]), whole.read_bytes()
    torn = memory_path / "torn.jsonl"
    aside = memory_path / "torn.jsonl.torn"

    for cut in range(start + 1, len(content)):
        torn.write_bytes(content[:cut])
        aside.unlink(missing_ok=True)
        only_the_line_feed_is_missing = cut == len(content) - 1
        if only_the_line_feed_is_missing:
            logged = ExperimentLog(torn, clock=lambda: 1.0).append(an_entry(hypothesis="next"))
            assert (logged.experiment_id, torn.read_bytes().startswith(content)) == ("0003", True)
            continue
        with pytest.warns(TornTail, match="were moved"):
            logged = ExperimentLog(torn, clock=lambda: 1.0).append(an_entry(hypothesis="next"))
        assert logged.experiment_id == "0002"
        assert aside.read_bytes() == content[start:cut] + b"\n"
        assert [e.hypothesis for e in ExperimentLog(torn).entries()] == ["h0", "next"]


def test_reading_leaves_a_torn_tail_out_and_says_so(tmp_path):
    path = tmp_path / "results.jsonl"
    log = ExperimentLog(path)
    log.append(an_entry())
    path.write_bytes(path.read_bytes() + b'{"experiment_id": "0002", "hypo')

    with pytest.warns(TornTail, match="the last 31 bytes"):
        entries = log.entries()

    assert len(entries) == 1
    assert log.scan().torn == b'{"experiment_id": "0002", "hypo'
    assert log.repair() == b'{"experiment_id": "0002", "hypo'
    assert len(log.entries()) == 1


def test_a_writer_killed_at_random_loses_no_entry_it_reported(tmp_path):
    path, dice = tmp_path / "results.jsonl", random.Random(0)
    reported = 0
    for _ in range(5):
        writer = _writer(path, 100_000)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(dice.randint(1, 30))]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.communicate()[0].splitlines(keepends=True)
        reported = max(int(line) for line in lines if line.endswith("\n"))
        ExperimentLog(path).repair()

    entries = ExperimentLog(path).entries()

    assert [entry.experiment_id for entry in entries] == _ids(len(entries))
    assert len(entries) in (reported, reported + 1)


def test_a_full_disk_leaves_the_log_as_it_was_and_says_what_to_do(tmp_path):
    path = tmp_path / "results.jsonl"
    ExperimentLog(path).append(an_entry())
    before = path.read_bytes()
    code = """
import resource, sys
from mlxterp.autointerpret import ExperimentEntry, ExperimentLog
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
try:
    ExperimentLog(sys.argv[1]).append(ExperimentEntry("h", "m", {}, False, "c", 0.0))
except OSError as problem:
    print(problem)
"""

    limited = [sys.executable, "-c", code, str(path), str(len(before) + 50)]
    said = subprocess.run(limited, capture_output=True, text=True, check=True).stdout

    assert "nothing was added to the log. Make room" in said
    assert path.read_bytes() == before
    assert ExperimentLog(path).append(an_entry()).experiment_id == "0002"


def test_a_failed_fsync_is_reported_and_the_same_uid_is_not_logged_twice(tmp_path, monkeypatch):
    log = ExperimentLog(tmp_path / "results.jsonl")

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("mlxterp.autointerpret.log_file.sync", failing)
        with pytest.raises(OSError, match="may not be on the disk"):
            log.append_sealed(an_entry(), {"uid": "a"})
    again = log.append_sealed(an_entry(), {"uid": "a"})

    assert again.experiment_id == "0001"
    assert len(log) == 1


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "directory"])
def test_a_log_that_is_no_regular_file_is_refused(tmp_path, kind):
    path, elsewhere = tmp_path / "results.jsonl", tmp_path / "elsewhere"
    if kind == "symlink":
        elsewhere.write_text("precious\n")
        path.symlink_to(elsewhere)
    elif kind == "dangling":
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(ProjectError, match="must be a regular file"):
        ExperimentLog(path).append(an_entry())
    with pytest.raises(ProjectError, match="must be a regular file"):
        ExperimentLog(path).entries()

    assert not elsewhere.exists() or elsewhere.read_text() == "precious\n"


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(ProjectError, match="there is no directory"):
        ExperimentLog(tmp_path / "nowhere" / "results.jsonl").append(an_entry())


def test_a_log_that_does_not_exist_yet_is_empty_and_true(tmp_path):
    log = ExperimentLog(tmp_path / "results.jsonl")

    assert (log.entries(), len(log), log.summary()) == ([], 0, "results.jsonl: no experiments yet")
    assert bool(log)
    assert not log.path.exists()


def test_a_log_replaced_or_rewritten_under_us_is_read_anew(tmp_path):
    path = tmp_path / "results.jsonl"
    log = ExperimentLog(path)
    for _ in range(3):
        log.append(an_entry())
    path.rename(tmp_path / "moved.jsonl")
    first_in_new = log.append(an_entry())
    for _ in range(2):
        log.append(an_entry())
    with open(path, "r+b") as file:  # the same file, cut and refilled to more than before
        file.truncate()
        file.write(_line(an_entry(conclusion="x" * 5000, experiment_id="0001")))

    after_rewrite = log.append(an_entry())

    assert (first_in_new.experiment_id, after_rewrite.experiment_id) == ("0001", "0002")


def test_a_log_replaced_while_an_append_waits_for_its_lock_gets_the_entry(tmp_path, monkeypatch):
    path, moved = tmp_path / "results.jsonl", tmp_path / "moved.jsonl"
    log = ExperimentLog(path)
    log.append(an_entry())
    holder = os.open(path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def replace_and_let_go(_seconds: float) -> None:
        path.rename(moved)
        path.touch()
        os.close(holder)

    monkeypatch.setattr("mlxterp.autointerpret.log_file.time.sleep", replace_and_let_go)
    logged = log.append(an_entry(hypothesis="after"))

    assert [entry.hypothesis for entry in ExperimentLog(path).entries()] == ["after"]
    assert logged.experiment_id == "0001"
    assert len(ExperimentLog(moved)) == 1


def test_a_lock_that_is_never_given_back_is_an_error_and_not_a_wait_without_end(tmp_path, monkeypatch):
    path = tmp_path / "results.jsonl"
    log = ExperimentLog(path)
    log.append(an_entry())
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("mlxterp.autointerpret.log_file.time.monotonic", lambda: next(now))
    monkeypatch.setattr("mlxterp.autointerpret.log_file.time.sleep", lambda _: None)

    with open(path) as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process has held the lock of the log for 60 s"):
            log.append(an_entry())


def test_an_id_that_a_foreign_line_took_is_not_given_again(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(_line(an_entry(experiment_id="0002")))

    ids = [ExperimentLog(path).append(an_entry()).experiment_id for _ in range(2)]

    assert ids == ["0003", "0004"]


GOOD = '{"hypothesis": "h", "method": "m", "result": {}, "informative": true, "conclusion": "c"%s}'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (GOOD.replace("{}", '{"x": NaN}') % "", "bare NaN"),
        (GOOD.replace("{}", '{"x": -Infinity}') % "", "bare -Infinity"),
        (GOOD.replace("{}", '{"x": 1e999}') % "", "1e999, which no 64-bit number can hold"),
        (GOOD.replace("{}", '{"x": 1, "x": 2}') % "", "the key 'x' is given twice"),
        (GOOD % ', "method": "other"', "the key 'method' is given twice"),
        (GOOD.replace("{}", '{"x": "\xff"}') % "", "is not UTF-8"),
        (GOOD.replace("{}", '{"x": "\\ud800"}') % "", "half of a surrogate pair"),
        (GOOD.replace("{}", '{"x": %s}' % ("[" * 300 + "]" * 300)) % "", "nested deeper"),
        (GOOD.replace("{}", '{"x": %s}' % ("[" * 100_000)) % "", "nested deeper"),
        (GOOD.replace("{}", '{"x": %s}' % ("9" * 5000)) % "", "thousands of digits"),
        (GOOD.replace("{}", '{"x": "%s"}' % ("y" * 4_000_001)) % "", "a line may have 4,000,000"),
        (GOOD.replace("true", "1") % "", "informative is 1, a int"),
        (GOOD.replace("true", '"yes"') % "", "informative is 'yes'"),
        (GOOD.replace("{}", "[1]") % "", "result is [1]"),
        (GOOD % ', "duration_seconds": true', "duration_seconds is True"),
        (GOOD % ', "duration_seconds": -1', "duration_seconds is -1"),
        (GOOD % ', "record": []', "record is []"),
        ('{"hypothesis": "h"}', "without 'method', 'result'"),
        ("[1, 2]", "it is a JSON array"),
        ("not json", "it is not JSON"),
    ],
)
def test_a_line_that_is_no_entry_is_refused_with_its_number(tmp_path, line, says):
    path = tmp_path / "results.jsonl"
    path.write_bytes(_line(an_entry()) + b"\n" + line.encode("latin-1") + b"\n" + _line(an_entry()))

    with pytest.raises(CorruptLog) as refused:
        ExperimentLog(path).entries()
    scan = ExperimentLog(path).scan()

    assert f"{path}, line 3: " in str(refused.value)
    assert says in str(refused.value)
    assert len(scan.entries) == 2
    assert [problem.line for problem in scan.problems] == [3]


def test_line_separators_of_unicode_do_not_split_an_entry(tmp_path):
    text = "one\u2028two\u0085three\x0bfour\r\nfive"
    path = tmp_path / "results.jsonl"
    as_utf8 = GOOD.replace('"h"', '"one\u2028two\u0085three"') % ""
    path.write_bytes(as_utf8.encode() + b"\n")
    log = ExperimentLog(path)

    log.append(an_entry(conclusion=text))

    assert log.entries()[0].hypothesis == "one\u2028two\u0085three"
    assert log.entries()[1].conclusion == text


def test_keys_of_other_versions_are_kept(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text((GOOD % ', "seed": 7, "metadata": {"a": 1}') + "\n" + (GOOD % "") + "\n")

    first, second = ExperimentLog(path).entries()

    assert first.metadata == {"a": 1, "_extra": {"seed": 7}}
    assert (second.metadata, second.duration_seconds, second.experiment_id) == ({}, None, "")


def test_append_says_what_it_needs_when_given_something_else(tmp_path):
    with pytest.raises(EntryError, match=r"append was given a dict. Give an ExperimentEntry"):
        ExperimentLog(tmp_path / "results.jsonl").append({"method": "m"})  # type: ignore[arg-type]


def test_the_summary_counts_methods_and_verdicts_and_shows_the_last_conclusions(tmp_path):
    log = ExperimentLog(tmp_path / "results.jsonl")
    for i in range(7):
        log.append_sealed(
            an_entry(method="dla" if i % 3 else "ablate", informative=i % 2 == 0, conclusion=f"found {i}"),
            {"uid": f"u{i}", "verdict": "lead" if i % 2 == 0 else "note"},
        )

    summary = log.summary()

    assert "7 experiments, 4 informative, 87.5 s" in summary
    assert "verdicts: lead 4, note 3" in summary
    assert "dla: 4, 2 informative" in summary
    assert "[0003] found 2 (informative)" in summary
    assert "found 1" not in summary


def _line(entry: ExperimentEntry) -> bytes:
    from mlxterp.autointerpret.encoding import encode_object

    return encode_object(entry.plain().to_dict())
