"""What the tests of the machinery share: a project without a model, and a state directory that is thrown
away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxterp_agent.sandbox.jail import protection
from mlxterp_agent.supervisor.prepare import ALLOW_UNSANDBOXED_ENV
from tests.agent.fakes import make_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A contract-complete project; its supervisor's private files are beside it."""
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session", autouse=True)
def _without_a_jail_where_there_is_none() -> Iterator[None]:
    """On a machine that offers no jail, everything but the tests of the jail runs without one."""
    with pytest.MonkeyPatch.context() as patch:
        if protection().kind == "none":
            patch.setenv(ALLOW_UNSANDBOXED_ENV, "1")
        yield
