from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxterp.autointerpret import ExperimentEntry


@pytest.fixture(autouse=True)
def _no_supervisor(monkeypatch):
    monkeypatch.delenv("AUTOINTERP_OUTBOX", raising=False)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory without a disk behind it, for tests of thousands of appends that are not about the disk."""
    root = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=root if root.is_dir() else None))
    yield path
    shutil.rmtree(path)


def an_entry(**changes) -> ExperimentEntry:
    values = {
        "hypothesis": "Layer 5 MLP handles factual recall",
        "method": "activation_patching",
        "result": {"layer_5_effect": 0.82, "layer_10_effect": 0.15},
        "informative": True,
        "conclusion": "Confirmed: layer 5 MLP has 82% recovery effect",
        "duration_seconds": 12.5,
    }
    return ExperimentEntry(**{**values, **changes})
