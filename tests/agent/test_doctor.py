"""What `autointerp doctor` says of a machine: each check on a case that is well and one that is not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlxterp_agent import doctor
from mlxterp_agent.doctor import Finding, examine
from mlxterp_agent.researchers.claude_code import TESTED_VERSION
from tests.agent.fakes import git, make_project


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))


def said_of(monkeypatch: pytest.MonkeyPatch, printed: str | None) -> None:
    monkeypatch.setattr(doctor, "_text", lambda _: printed)


def test_a_directory_that_is_not_there_yet_is_examined_too(tmp_path):
    assert "git" in {found.name for found in examine(tmp_path / "new" / "one")}


def test_a_repository_that_cannot_be_read_is_a_problem(tmp_path):
    project = make_project(tmp_path / "project")
    git(project, "init", "--quiet")
    assert doctor._git(project).result == "ok"
    (project / ".git" / "HEAD").write_bytes(b"")

    found = doctor._git(project)

    assert found.result == "problem"
    assert "cannot be used" in found.text


@pytest.mark.parametrize(
    ("printed", "result", "words"),
    [
        ("Device(gpu, 0) 6e-07 True\n", "ok", "6e-07"),
        ("Device(gpu, 0) 0.0004 True\n", "problem", "MLX_ENABLE_TF32=0"),
        ("Device(gpu, 0) 6e-07 False\n", "note", "other bits"),
        (None, "problem", "cannot multiply"),
    ],
)
def test_a_device_that_computes_with_fewer_bits_is_a_problem(monkeypatch, printed, result, words):
    said_of(monkeypatch, printed)

    found = doctor._numerics()

    assert found.result == result
    assert words in found.text


@pytest.mark.parametrize(
    ("printed", "result"),
    [(" standby 1\n sleep   0 (prevented by x)\n", "ok"), (" sleep  15\n", "note"), (None, "note")],
)
def test_a_mac_that_falls_asleep_is_named_with_the_command_against_it(monkeypatch, printed, result):
    monkeypatch.setattr(sys, "platform", "darwin")
    said_of(monkeypatch, printed)

    found = doctor._sleep()

    assert found.result == result
    assert ("caffeinate -i" in found.text) == (result == "note")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's list of power supplies")
def test_a_machine_with_a_battery_may_sleep(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_BATTERIES", tmp_path)
    assert doctor._sleep().result == "ok"
    (tmp_path / "BAT0").mkdir()

    assert "systemd-inhibit" in doctor._sleep().text


@pytest.mark.parametrize(
    ("printed", "result"),
    [(f"{TESTED_VERSION} (Claude Code)\n", "ok"), ("3.0.0 (Claude Code)\n", "note"), (None, "note")],
)
def test_another_version_of_claude_code_than_the_tested_one_is_named(monkeypatch, printed, result):
    monkeypatch.setattr(doctor, "find_claude", lambda: "/usr/bin/claude")
    said_of(monkeypatch, printed)

    assert doctor._claude_code().result == result


def test_a_folder_that_is_synchronised_is_a_note(tmp_path):
    folder = tmp_path / "Dropbox (Personal)"
    folder.mkdir()

    (found, *_) = doctor._file_system(folder, folder)

    assert found == Finding("file system", "note", found.text)
    assert "synchronised" in found.text


def test_too_little_room_for_a_night_is_a_problem(monkeypatch, tmp_path):
    assert doctor._disk("directory", tmp_path).result == "ok"
    monkeypatch.setattr(doctor, "_ENOUGH_GB", 1e9)

    assert doctor._disk("directory", tmp_path).result == "problem"
