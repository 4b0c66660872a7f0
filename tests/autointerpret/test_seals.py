"""A seal covers every byte before its line, so a change anywhere is found at the next supervised line."""

from __future__ import annotations

import hashlib
import json

import pytest

from mlxterp.autointerpret import ExperimentLog, Seal
from mlxterp.errors import EntryError
from tests.autointerpret.conftest import an_entry


@pytest.fixture
def log(tmp_path) -> ExperimentLog:
    """Lines 1, 2, 4 and 5 are sealed; line 3 was appended by hand."""
    log = ExperimentLog(tmp_path / "results.jsonl", clock=lambda: 1790000000.0)
    for i in range(5):
        if i == 2:
            log.append(an_entry(hypothesis="h2"))
        else:
            log.append_sealed(an_entry(hypothesis=f"h{i}"), {"uid": f"u{i}", "verdict": "note"})
    return log


def test_a_sealed_line_carries_its_number_its_offset_and_the_digest_of_what_is_before_it(log):
    raw = log.raw()
    at = len(b"".join(raw.splitlines(keepends=True)[:3]))

    record = log.entries()[3].record

    assert record == {
        "schema": "autointerp/1",
        "seq": 4,
        "uid": "u3",
        "at": at,
        "seal": hashlib.sha256(raw[:at]).hexdigest(),
        "verdict": "note",
    }
    assert list(json.loads(raw.splitlines()[3])) == [
        "experiment_id",
        "timestamp",
        "hypothesis",
        "method",
        "result",
        "informative",
        "conclusion",
        "duration_seconds",
        "metadata",
        "record",
    ]


def test_an_untouched_log_verifies(log):
    assert log.verify() == []
    assert log.verify([log.seal(), Seal(0, hashlib.sha256(b"").hexdigest())]) == []


def test_a_new_reader_continues_the_seals_of_an_existing_log(log):
    ExperimentLog(log.path).append_sealed(an_entry(), {"uid": "later"})

    assert log.verify() == []


def test_any_flipped_byte_before_the_last_seal_is_found(log):
    raw = log.raw()
    sealed = len(b"".join(raw.splitlines(keepends=True)[:4]))

    for at in range(0, sealed, 7):
        log.path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert log.verify(), f"byte {at} was changed unseen"


def test_the_lines_that_changed_are_named_by_the_seals_around_them(log):
    log.path.write_bytes(log.raw().replace(b'"h2"', b'"hX"'))

    (problem,) = log.verify()

    assert problem.line == 4
    assert "lines 2 to 3 are not what they were when it was written" in problem.what


def test_a_removed_and_an_inserted_line_are_found(log):
    lines = log.raw().splitlines(keepends=True)

    log.path.write_bytes(b"".join(lines[:1] + lines[2:]))
    removed = log.verify()
    log.path.write_bytes(b"".join([*lines[:1], lines[2], *lines[1:]]))
    inserted = log.verify()

    assert removed[0].line == 3
    assert any("experiment_id '0003' is already" in problem.what for problem in inserted)
    assert any("are not what they were" in problem.what for problem in inserted)


def test_a_change_of_the_last_line_and_a_cut_need_an_anchor_kept_elsewhere(log):
    anchor, raw = log.seal(), log.raw()

    log.path.write_bytes(raw.replace(b'"h4"', b'"hX"'))
    unanchored, changed = log.verify(), log.verify([anchor])
    log.path.write_bytes(b"".join(raw.splitlines(keepends=True)[:4]))
    cut = log.verify([anchor])

    assert unanchored == []
    assert changed[0].what == "the log up to here is not what the supervisor recorded"
    assert "the log ends after" in cut[0].what


def test_a_line_that_claims_another_number_is_found(log):
    log.path.write_bytes(log.raw().replace(b'"seq": 5', b'"seq": 6'))

    assert log.verify() == [(5, "its seq is 6, and it is line 5")]


def test_unreadable_lines_and_a_torn_tail_are_reported_beside_the_seals(log):
    log.path.write_bytes(log.raw() + b"not json\n" + b'{"half')

    problems = log.verify()

    assert [(p.line, p.what.split(":")[0]) for p in problems] == [
        (6, "it cannot be read as JSON"),
        (7, "6 bytes without a line feed"),
    ]


def test_the_same_uid_offered_again_returns_the_line_that_is_there(log):
    before = log.raw()

    again = log.append_sealed(an_entry(hypothesis="reworded"), {"uid": "u1"})
    by_another_reader = ExperimentLog(log.path).append_sealed(an_entry(), {"uid": "u4"})

    assert (again.hypothesis, again.experiment_id) == ("h1", "0002")
    assert by_another_reader.hypothesis == "h4"
    assert log.raw() == before


def test_a_record_cannot_bring_its_own_seal(log):
    entry = log.append_sealed(an_entry(), {"uid": "u9", "seal": "forged", "seq": 1, "at": 0, "schema": "x"})

    assert entry.record is not None
    assert (entry.record["seq"], entry.record["schema"]) == (6, "autointerp/1")
    assert log.verify() == []


def test_a_record_needs_a_uid(log):
    with pytest.raises(EntryError, match="record\\['uid'\\] is None"):
        log.append_sealed(an_entry(), {"verdict": "note"})


def test_a_damaged_log_is_restored_from_bytes_kept_elsewhere(log):
    kept, size = log.raw(), len(log.raw())
    log.path.write_bytes(b"gone\n")

    log.restore(kept)

    assert log.prefix_bytes(size) == kept
    assert log.verify() == []
    assert log.append_sealed(an_entry(), {"uid": "next"}).experiment_id == "0006"


def test_a_line_that_claims_another_place_than_its_own_is_found(tmp_path):
    log = ExperimentLog(tmp_path / "results.jsonl")
    for number in range(2):
        log.append_sealed(an_entry(hypothesis=f"h{number}"), {"uid": f"u{number}"})
    first, last = log.path.read_bytes().splitlines(keepends=True)
    at = f'"at": {len(first)}'.encode()
    assert at in last
    log.path.write_bytes(first + last.replace(at, f'"at": {len(first) + 1}'.encode()))

    (problem,) = log.verify()

    assert problem.line == 2
