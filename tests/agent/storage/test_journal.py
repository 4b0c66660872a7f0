"""The write-ahead log: what was acknowledged is there after a crash, a full disk or a failing one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxterp_agent.exit_codes import DiskFull, StateUnavailable
from mlxterp_agent.platform import FakeClock, explain_disk_full
from mlxterp_agent.storage import journal as journal_module
from mlxterp_agent.storage.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def names(journal: Journal) -> list[str]:
    return [event["event"] for event in journal.events()]


def test_events_come_back_in_order_with_their_fields_number_and_times(path: Path):
    clock = FakeClock(wall=1000.0)
    journal = Journal(path, clock=clock)
    journal.append("start", config={"a": 1})
    clock.advance(2.5)
    journal.append("stop", reason="done")

    first, second = Journal(path).events()

    assert (first["event"], first["config"], first["n"], first["t"]) == ("start", {"a": 1}, 1, 1000.0)
    assert (second["n"], second["t"], second["elapsed"] - first["elapsed"]) == (2, 1002.5, 2.5)
    assert first["session"] == second["session"]


def test_a_later_supervisor_numbers_on_under_its_own_session(path: Path):
    first = Journal(path).append("start")
    second = Journal(path).append("start")

    assert (first["n"], second["n"]) == (1, 2)
    assert first["session"] != second["session"]


def test_a_journal_cut_at_any_byte_of_its_last_line_keeps_the_others_and_takes_new_ones(path: Path):
    journal = Journal(path)
    journal.append("one")
    kept = path.read_bytes()
    journal.append("two", text="é")
    whole = path.read_bytes()

    for cut in range(len(kept) + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        again.append("three")
        again.close()
        assert names(again) == ["one", "three"]
        assert again.bad_lines == 1


def test_only_a_missing_line_feed_costs_nothing(path: Path):
    Journal(path).append("one")
    path.write_bytes(path.read_bytes()[:-1])

    again = Journal(path)
    again.append("two")

    assert names(again) == ["one", "two"]
    assert again.bad_lines == 0


def test_lines_that_are_no_events_are_counted_and_kept(path: Path):
    Journal(path).append("one")
    with path.open("ab") as file:
        file.write(b"\xff\n{}\n[1]\n" + b"[" * 100_000 + b"\n")

    journal = Journal(path)
    journal.append("two")

    assert names(journal) == ["one", "two"]
    assert journal.bad_lines == 4
    assert b"\xff" in path.read_bytes()


def test_a_follower_gets_the_past_and_the_future_alike(path: Path):
    Journal(path).append("one")
    journal = Journal(path)
    heard: list[str] = []
    journal.follow(lambda event, at: heard.append(event["event"]))

    journal.append("two")

    assert heard == ["one", "two"]


def test_a_field_that_would_hide_a_stamp_or_is_not_finite_is_our_own_bug(path: Path):
    journal = Journal(path)

    with pytest.raises(ValueError, match="sets n itself"):
        journal.append("one", n=3)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append("one", value=float("nan"))
    assert journal.events() == []


def test_every_event_is_synced_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    sync = journal_module.sync
    monkeypatch.setattr(journal_module, "sync", lambda fd: (sync(fd), synced.append(os.fstat(fd).st_size)))
    journal = Journal(path)

    journal.append("one")
    journal.append("two")

    assert synced == [len(path.read_bytes().split(b"\n")[0]) + 1, path.stat().st_size]


def disk_with_room_for(journal: Journal, room: int) -> Callable[[int, memoryview], int]:
    """An `os.write` on a disk with this many free bytes, and the reserve's once it is given back."""
    write, free = os.write, {"now": room}
    reserve = journal.path.with_name(journal.path.name + ".reserve")

    def limited(fd: int, data: memoryview) -> int:
        left = free["now"] if reserve.exists() else 10_000
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(fd, data[:left])
        free["now"] -= written
        return written

    return limited


def test_a_full_disk_spends_the_reserve_and_the_event_is_written_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal = Journal(path)
    journal.append("one")
    monkeypatch.setattr(os, "write", disk_with_room_for(journal, 20))

    journal.append("two", text="x" * 1000)
    journal.append("stop", reason="disk full")

    assert journal.low_on_disk
    assert names(Journal(path)) == ["one", "two", "stop"]
    assert Journal(path).bad_lines == 0


def test_a_full_disk_without_reserve_is_said_and_leaves_no_half_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal = Journal(path)
    journal.append("one")
    path.with_name("journal.jsonl.reserve").unlink()
    monkeypatch.setattr(os, "write", lambda fd, data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))

    with pytest.raises(DiskFull, match="Free some space"):
        journal.append("two")

    monkeypatch.undo()
    assert names(journal) == ["one"]
    assert path.read_bytes().endswith(b"\n")


def test_the_kernels_own_full_device_is_recognised():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which Linux has")

    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(DiskFull):  # noqa: SIM117
        with explain_disk_full(Path("/dev/full")):
            full.write(b"x")


def test_after_a_failed_sync_the_event_is_written_again_through_a_new_descriptor(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal = Journal(path)
    journal.append("one")
    sync, failures = journal_module.sync, iter([OSError(errno.EIO, "Input/output error")])

    def fail_once(fd: int) -> None:
        for failure in failures:
            raise failure
        sync(fd)

    monkeypatch.setattr(journal_module, "sync", fail_once)

    journal.append("two")

    assert names(journal) == ["one", "two"]


def test_a_disk_that_keeps_nothing_ends_the_run(path: Path, monkeypatch: pytest.MonkeyPatch):
    journal = Journal(path)
    journal.append("one")
    monkeypatch.setattr(
        journal_module, "sync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
    )

    with pytest.raises(StateUnavailable, match="Check the disk"):
        journal.append("two")


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_journal_that_changes_under_the_supervisor_is_noticed(path: Path, how: str):
    journal = Journal(path)
    journal.append("one")
    path.rename(path.with_name("elsewhere"))
    if how == "replaced":
        path.write_text("")

    with pytest.raises(StateUnavailable, match=how):
        journal.append("two")


def forged(event: str, n: int, **fields: object) -> bytes:
    line = {"event": event, "n": n, "session": "s", "t": 0.0, "elapsed": 0.0, "prev": "", **fields}
    return json.dumps(line).encode()[:-1] + b', "mac": "' + b"0" * 32 + b'"}\n'


def test_the_key_is_the_users_alone_and_stays(path: Path):
    Journal(path).append("one")
    key = path.with_name("journal.key")
    before = key.read_bytes()

    Journal(path).append("two")

    assert key.read_bytes() == before
    assert key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("numbered", [2, 3, 1_000_000])
def test_an_event_that_no_supervisor_wrote_does_not_count_and_displaces_none(path: Path, numbered: int):
    Journal(path).append("one")
    with path.open("ab") as file:
        file.write(forged("result", numbered))

    journal = Journal(path)
    journal.append("two")

    assert [(event["event"], event["n"]) for event in journal.events()] == [("one", 1), ("two", 2)]
    assert [each.why for each in journal.rejected] == ["it was changed, or no supervisor wrote it"]


def test_an_event_of_another_journal_does_not_count(path: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "journal.jsonl"
    Journal(other).append("zero")
    Journal(other).append("charge", usd=-5.0, tokens=0)
    Journal(path).append("one")
    with path.open("ab") as file:
        file.write(other.read_bytes().splitlines(keepends=True)[1])

    assert names(Journal(path)) == ["one"]


def test_an_event_that_is_there_twice_counts_once(path: Path):
    Journal(path).append("one")
    Journal(path).append("charge", usd=-5.0, tokens=0)
    path.write_bytes(path.read_bytes() + path.read_bytes())

    assert names(Journal(path)) == ["one", "charge"]


def test_a_flipped_byte_costs_its_own_line_and_no_other(path: Path):
    journal = Journal(path)
    for name in ("one", "two", "three"):
        journal.append(name)
    whole = path.read_bytes()
    second = whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1)

    for at in range(*second):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert names(Journal(path)) == ["one", "three"]


def test_what_another_program_appends_is_cut_off_and_kept(path: Path):
    journal = Journal(path)
    journal.append("one")
    kept = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"more\n")

    said = journal.interference()

    assert said == "5 bytes were appended to the journal that the supervisor did not write"
    assert path.read_bytes() == kept
    assert [each.read_bytes() for each in (path.parent / "quarantine").iterdir()] == [b"more\n"]
    assert journal.interference() is None


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_journal_that_loses_something_under_the_supervisor_is_noticed(path: Path, how: str):
    journal = Journal(path)
    journal.append("one")
    journal.append("two")
    whole = path.read_bytes()
    with path.open("r+b") as file:
        if how == "cut":
            file.truncate(len(whole) - 5)
        else:
            file.write(b'{"EVENT"')

    with pytest.raises(StateUnavailable, match=how):
        journal.interference()


def without_macs(path: Path) -> bytes:
    """The journal as version 0.1.0 would have written it."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    stripped = [{name: line[name] for name in line if name not in ("prev", "mac")} for line in lines]
    path.with_name("journal.key").unlink()
    return b"".join(json.dumps(line).encode() + b"\n" for line in stripped)


def test_the_journal_of_an_earlier_version_is_taken_over_once(path: Path):
    journal = Journal(path)
    journal.append("one", text="x")
    journal.append("two")
    old = without_macs(path)
    path.write_bytes(old + b"damage\n")
    assert names(Journal(path)) == ["one", "two"]

    journal = Journal(path)
    journal.append("three")

    assert [(e["event"], e["n"], e.get("text")) for e in journal.events()] == [
        ("one", 1, "x"),
        ("two", 2, None),
        ("three", 3, None),
    ]
    with path.open("ab") as file:
        file.write(old)
    assert names(Journal(path)) == ["one", "two", "three"]
    assert [each.read_bytes() for each in (path.parent / "quarantine").iterdir()] == [old + b"damage\n"]


def test_without_its_key_a_journal_is_set_aside_whole(path: Path):
    Journal(path).append("one")
    path.with_name("journal.key").unlink()

    journal = Journal(path)
    (said,) = journal.open()
    journal.append("two")

    assert names(journal) == ["two"]
    assert "the key that it was written with is lost" in said
