"""What the operating system is asked: durable files, environments without secrets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlxterp import _files
from mlxterp_agent.platform import without_secrets


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    sync, replace, sync_directory = _files.sync, os.replace, _files.sync_directory
    monkeypatch.setattr(
        _files, "sync", lambda fd: (sync(fd), done.append(f"{os.fstat(fd).st_size} bytes on the disk"))
    )
    monkeypatch.setattr(os, "replace", lambda *names: (replace(*names), done.append("renamed")))
    monkeypatch.setattr(
        _files, "sync_directory", lambda path: (sync_directory(path), done.append("name on the disk"))
    )

    _files.write_atomically(tmp_path / "file", b"12345")

    assert done == ["5 bytes on the disk", "renamed", "name on the disk"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANTHROPIC_API_KEY", "x"),
        ("my_token", "x"),
        ("DB_PASSWORD", "x"),
        ("AWS_CREDENTIALS", "x"),
        ("PIP_INDEX_URL", "https://user@packages.example.org/simple"),
        ("HTTPS_PROXY", "http://user:word@proxy.example.org:8080"),
    ],
)
def test_what_looks_like_a_secret_is_left_out(name: str, value: str):
    assert without_secrets({name: value, "LANG": "C"}) == {"LANG": "C"}


def test_a_url_without_a_user_name_stays():
    kept = {"PIP_INDEX_URL": "https://packages.example.org/simple/@scope/x"}

    assert without_secrets(kept) == kept


def test_every_safety_line_that_is_removed_in_turn_is_there_once():
    from tests.mutate_supervisor import LINES, ROOT

    counts = {line.text: (ROOT / line.file).read_text().count(line.text) for line in LINES}

    assert {text: count for text, count in counts.items() if count != 1} == {}
    assert len(LINES) >= 40
