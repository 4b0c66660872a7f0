"""The supervisor's key is in nothing that the kernel shows of its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlxterp_agent.platform import take_keys

CANARY = "canary-4711"

SHOWS = """
import os, sys
from mlxterp_agent.platform import hide_keys, take_keys
hide_keys()
if sys.platform == "linux":
    import ctypes
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
    print(open("/proc/self/environ", "rb").read().decode())
print("key:", take_keys()["ANTHROPIC_API_KEY"], "arguments:", sys.argv[1:], sorted(os.environ))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows the environment of a process on Linux only")
def test_the_key_leaves_the_environment_that_the_kernel_shows(tmp_path: Path):
    said = subprocess.run(
        [sys.executable, "-c", SHOWS, "a", "b c"],
        env={**os.environ, "ANTHROPIC_API_KEY": CANARY},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    shown, _, own = said.partition("key: ")
    assert shown.startswith("0\n")
    assert CANARY not in shown
    assert own.startswith(f"{CANARY} arguments: ['a', 'b c']")
    assert "AUTOINTERP_KEYS_FD" not in own
    assert "ANTHROPIC_API_KEY" not in own


def test_without_a_key_nothing_is_started_again(tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC")}
    program = (
        "import os; from mlxterp_agent.platform import hide_keys; before = os.getpid(); hide_keys(); print(1)"
    )

    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert said.stdout == "1\n"


def test_a_key_that_was_taken_is_inherited_by_no_child(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)

    assert take_keys()["ANTHROPIC_API_KEY"] == CANARY

    assert "ANTHROPIC_API_KEY" not in os.environ
    assert take_keys()["ANTHROPIC_API_KEY"] == CANARY
