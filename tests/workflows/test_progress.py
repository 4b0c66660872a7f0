"""What `verbose=True` prints: a line per step on a terminal, a line per tenth in a log."""

from __future__ import annotations

import io

from rich.console import Console

from mlxterp.workflows import StepProgress
from mlxterp.workflows.progress import ProgressReporter, printer


def told(*, terminal: bool) -> str:
    out = io.StringIO()
    tell = printer(Console(file=out, force_terminal=terminal, width=40, highlight=False))
    tell(StepProgress("circuit_discovery", "acdc", 0, 0, "searching [all] 200 edges"))
    for done in range(1, 201):
        tell(StepProgress("circuit_discovery", "acdc", done, 200, f"{done} of 200 edges"))
    return out.getvalue()


def test_a_log_gets_a_line_per_tenth_and_no_control_characters():
    lines = told(terminal=False).splitlines()

    assert lines[0] == "circuit_discovery  acdc: searching [all] 200 edges"
    assert [line.split()[-4] for line in lines[1:]] == [str(n) for n in range(20, 201, 20)]
    assert "\r" not in told(terminal=False)


def test_a_terminal_gets_one_line_that_changes():
    text = told(terminal=True)

    assert text.count("\n") == 1
    assert text.count("\r") == 200
    assert text.rstrip().endswith("200 of 200 edges")


def test_a_callable_of_the_callers_own_gets_the_steps_instead_of_the_printer(capsys):
    seen = []

    ProgressReporter("circuit_discovery", seen.append, verbose=True).counter("acdc", "edges")(3, 10)

    assert seen == [StepProgress("circuit_discovery", "acdc", 3, 10, "3 of 10 edges")]
    assert capsys.readouterr().err == ""


def test_what_a_workflow_ran_is_counted_whether_it_is_reported_or_not():
    reporter = ProgressReporter("circuit_discovery", None)

    reporter.counter("acdc", "edges")(3, 10)

    assert reporter.ran == {"acdc edges": 10}
