"""`autointerp verify`: a whole investigation agrees with itself, and every single change is found and
named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mlxterp.autointerpret.contract import state_dir
from mlxterp_agent.integrity.verify import verify
from mlxterp_agent.storage.state_dir import State
from tests.agent.fakes import finished_run, git


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An investigation that has ended, with its private state beside it."""
    project, _, _ = finished_run(tmp_path_factory.mktemp("finished"), ["alpha", "dull", "beta"])
    return project.parent


@pytest.fixture
def investigation(finished: Path, tmp_path: Path) -> tuple[Path, State]:
    """A copy to spoil."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    (state,) = (tmp_path / "copy" / "state").iterdir()
    return tmp_path / "copy" / "project", State(state)


def problems(investigation: tuple[Path, State]) -> list[str]:
    return [f"{check.name}: {check.text}" for check in verify(*investigation) if check.result == "problem"]


def test_an_investigation_that_was_not_changed_agrees_with_itself(investigation):
    assert [check.result for check in verify(*investigation)] == ["ok"] * 6


def test_a_changed_line_is_named(investigation):
    log = investigation[0] / "results.jsonl"
    log.write_bytes(log.read_bytes().replace(b"dull was found", b"DULL was found"))

    found = problems(investigation)

    assert any(text.startswith("log: line 3: ") for text in found)
    assert any("journal" in text for text in found)


def test_a_change_of_the_last_line_is_found_by_the_journal(investigation):
    log = investigation[0] / "results.jsonl"
    log.write_bytes(log.read_bytes().replace(b"beta was found", b"BETA was found"))

    assert any("journal" in text for text in problems(investigation))


def test_a_changed_setup_py_is_found(investigation):
    (investigation[0] / "setup.py").write_text("dataset = []\n")

    (found,) = problems(investigation)
    assert found.startswith("setup.py: setup.py is not the sealed one; copy ")


def test_a_changed_copy_of_what_ran_is_found(investigation):
    (investigation[0] / ".autointerp" / "runs" / "0002" / "experiment.py").write_text("x = 1\n")

    assert problems(investigation) == [
        "experiments: 0002: .autointerp/runs/0002/experiment.py is not what ran"
    ]


def test_a_changed_finding_is_found(investigation):
    result = investigation[0] / "findings" / "0001-alpha-was-found" / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "conclusion": "better"}))

    assert problems(investigation) == [
        "findings: 0001: findings/0001-alpha-was-found/result.json is not the line of the log; "
        "remove the folder, `autointerp start` makes it again"
    ]


def test_a_commit_that_is_gone_is_found(investigation):
    git(investigation[0], "reset", "--quiet", "--soft", "HEAD~1")

    first, second = problems(investigation)
    assert first == "git: 0003: kept, but in no commit; `autointerp start` commits it"
    assert "is not in the current branch" in second


def test_a_commit_that_claims_what_the_log_does_not_keep_is_found(investigation):
    git(
        investigation[0],
        *("-c", "user.name=p", "-c", "user.email=p@x"),
        *("commit", "--quiet", "--allow-empty", "-m", "claims\n\nAutointerp-Experiment: 0099"),
    )

    assert any("claims experiment 0099" in text for text in problems(investigation))


def test_without_a_journal_the_rest_is_still_checked(investigation, tmp_path):
    elsewhere = State(tmp_path / "nothing")

    results = {check.name: check.result for check in verify(investigation[0], elsewhere)}

    assert results == {
        "log": "ok",
        "journal": "unchecked",
        "setup.py": "unchecked",
        "experiments": "ok",
        "findings": "ok",
        "git": "ok",
    }


def test_what_has_no_copy_here_is_said_to_be_unchecked_and_not_wrong(investigation, tmp_path):
    shutil.rmtree(investigation[0] / ".autointerp" / "runs" / "0002")

    checks = verify(investigation[0], State(tmp_path / "nothing"))

    (said,) = [check for check in checks if check.name == "experiments"]
    assert said.result == "unchecked"
    assert said.text.startswith("0002: no copy of what ran is on this machine")
    assert "nothing is wrong with the lines" in said.text


def test_the_state_directory_of_a_project_is_found_by_its_identity(finished, monkeypatch):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(finished / "state"))

    assert state_dir(finished / "project").is_dir()


def commit(project: Path, *options: str) -> None:
    identity = ("-c", "user.name=u", "-c", "user.email=u@example.org")
    git(project, *identity, "commit", "-q", *options)


def test_a_commit_of_another_program_that_changes_a_finding_is_named_with_its_repair(investigation):
    project, _ = investigation
    (finding,) = (project / "findings").glob("0001-*")
    (finding / "finding.md").write_text("better\n")
    commit(project, "-am", "improve")

    (found,) = problems(investigation)

    sha = git(project, "rev-parse", "HEAD")[:10]
    assert found.startswith(f'git: commit {sha} ("improve") changes results.jsonl or findings/')
    assert f"git revert {sha}" in found


def test_a_persons_own_commit_of_other_files_is_no_problem(investigation):
    project, _ = investigation
    (project / "notes.txt").write_text("mine\n")
    git(project, "add", "notes.txt")
    commit(project, "-m", "notes")

    assert problems(investigation) == []


def test_an_amended_commit_is_named_with_its_repair(investigation):
    project, _ = investigation
    head = git(project, "rev-parse", "HEAD")[:10]
    commit(project, "--amend", "-m", "amended")

    assert any(f"git checkout -B main {head}" in found for found in problems(investigation))


def test_a_switched_head_is_named_with_its_repair(investigation):
    project, _ = investigation
    head = git(project, "rev-parse", "HEAD")[:10]
    git(project, "checkout", "-q", "-b", "other", "HEAD~1")

    assert any(f"git checkout -B main {head}" in found for found in problems(investigation))
