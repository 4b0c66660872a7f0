"""Progress without being asked for: a bar after two seconds where somebody watches, never elsewhere."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from mlxterp import progress
from mlxterp.causal import ablate, activation_patching
from mlxterp.core.model import InterpretableModel
from mlxterp.workflows.progress import ProgressReporter, StepProgress, after_seconds

CLEAN, CORRUPTED = "cat dog fish moon cat dog", "cat sun fish moon cat dog"


@pytest.fixture(scope="module")
def toy() -> InterpretableModel:
    return InterpretableModel("toy-induction")


def ticking(*seconds: float) -> Callable[[], float]:
    times = iter(seconds)
    return lambda: next(times)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=80)


def test_what_takes_two_seconds_shows_a_bar_with_its_name_and_counts():
    console = terminal()

    with progress.reporting(None, "patching [z]", console=console, clock=ticking(0, 1, 2.5)) as shown:
        shown(1, 10)
        before = console.file.getvalue()
        shown(4, 10)

    assert before == ""
    assert "patching [z]" in console.file.getvalue()
    assert "4/10" in console.file.getvalue()


def test_what_is_done_before_two_seconds_shows_nothing():
    console = terminal()

    with progress.reporting(None, "patching", console=console, clock=ticking(0, 1.9)) as shown:
        shown(10, 10)

    assert console.file.getvalue() == ""


def test_an_analysis_inside_another_has_no_bar_of_its_own():
    with (
        progress.reporting(None, "outer", console=terminal()) as outer,
        progress.reporting(None, "inner", console=terminal()) as inner,
    ):
        assert inner is None
    with progress.reporting(None, "next", console=terminal()) as following:
        assert following is not None

    assert outer is not None


def test_false_is_silence_and_a_callable_is_called(toy):
    counted = []

    activation_patching(toy, CLEAN, CORRUPTED, answer=" fish", progress=lambda *n: counted.append(n))
    ablate(toy, [CLEAN], [(1, 1)], kind="zero", metric="prob", answer=" fish", progress=False)

    assert counted[-1][0] == counted[-1][1] > 0
    with progress.reporting(False, "patching", console=terminal()) as shown:
        assert shown is None


@pytest.mark.parametrize("watched", [True, False])
def test_somebody_watches_a_terminal_and_no_pipe(watched):
    code = "from mlxterp.progress import is_watched; import sys; sys.exit(10 + is_watched())"
    first, second = pty.openpty()
    try:
        stderr = second if watched else subprocess.DEVNULL
        ended = subprocess.run([sys.executable, "-c", code], stderr=stderr, check=False, timeout=60)
    finally:
        os.close(first)
        os.close(second)

    assert ended.returncode == 10 + watched


def test_a_workflow_shows_its_steps_from_the_second_second_on():
    seen: list[str] = []
    late = after_seconds(lambda step: seen.append(step.step), ticking(0, 1, 3))

    late(StepProgress("w", "first", 1, 2, "1 of 2"))
    late(StepProgress("w", "second", 1, 2, "1 of 2"))

    assert seen == ["second"]


def test_a_workflow_that_is_piped_or_silenced_prints_nothing(capsys, monkeypatch):
    ProgressReporter("w", None).report("step", "words")
    monkeypatch.setattr("mlxterp.workflows.progress.is_watched", lambda: True)
    ProgressReporter("w", False, verbose=False).report("step", "words")

    assert capsys.readouterr().err == ""
