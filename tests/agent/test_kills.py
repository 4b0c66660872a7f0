"""Kills at named points, within writes and at random moments: nothing that was promised is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.agent.kills import campaign


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOINTERP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(8, 1), *(pytest.param(250, seed, marks=pytest.mark.slow) for seed in (2, 3, 4, 5))],
)
def test_no_acknowledged_line_is_lost_or_doubled(tmp_path: Path, kills: int, seed: int):
    score = campaign(tmp_path, kills, seed)

    assert score.problems == ()
    assert (score.kills, score.lost, score.doubled) == (kills, 0, 0)
