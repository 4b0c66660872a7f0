"""A night of many experiments, some of which go wrong: see `soak.py`, which is also a command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.agent.soak import soak


@pytest.mark.parametrize("count", [pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.timeout(1200)
def test_a_night_with_faults_loses_nothing_and_costs_the_same_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
):
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))

    report = soak(tmp_path, count, seed=3)

    assert report.problems == []
