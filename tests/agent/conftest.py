"""What the tests of the machinery share: a project without a model, and a state directory that is thrown
away."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxterp_agent import platform
from tests.agent.fakes import make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A contract-complete project; its supervisor's private files are beside it."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    return make_project(tmp_path / "project")


@pytest.fixture(autouse=True)
def no_keys_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process remembers the keys that it took out of its environment."""
    monkeypatch.setattr(platform, "_taken", {})
