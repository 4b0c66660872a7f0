"""The screen as a person sees it, in a terminal emulator: at several widths, without colour, piped, as
JSON."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest
from rich.console import Console

from mlxterp_agent.display.terminal import LiveScreen
from mlxterp_agent.events import Decided, Progress, Running, SetupReady, Spending, Started
from mlxterp_agent.researchers.base import BudgetState
from tests.agent.display.test_events import entry
from tests.agent.fakes import source

WIDTHS = (60, 80, 120, 200)
HEIGHT = 30
COMMAND = [sys.executable, "-m", "mlxterp_agent.cli"]

BUDGET = BudgetState(
    experiments=8,
    experiments_left=32,
    seconds=60.0,
    seconds_left=540.0,
    usd=1.2,
    usd_left=3.8,
    tokens=123_456,
    tokens_left=1_000,
)
EVENTS = (
    Started(
        "/home/person/opposites", "How does it find an opposite? " * 8, "smollm2-135m", "scripted", 1, {}
    ),
    SetupReady("smollm2-135m", 1.5, "openblas", "8 independent clusters to explore, 48 to decide claims on"),
    Decided(entry(conclusion="heads 9.6 and 9.9 move the answer to the last position " * 5)),
    Spending(BUDGET),
    Running(
        9,
        "ab" * 32,
        120.0,
        "Which heads carry the answer to the last position, and how many of them are there?",
    ),
)


def lines_of(screen: pyte.Screen) -> list[str]:
    return [line.rstrip() for line in screen.display if line.strip()]


def drawn(width: int, *, color: bool = True, events: tuple[object, ...] = EVENTS) -> tuple[list[str], str]:
    """What an emulator of this width shows eight seconds into an experiment, and what was written to it."""
    out, now = io.StringIO(), [0.0]
    console = Console(
        file=out,
        force_terminal=True,
        color_system="256",
        width=width,
        height=HEIGHT,
        no_color=not color,
    )
    live = LiveScreen(console, clock=lambda: now[0])
    for event in events:
        live(event)  # type: ignore[arg-type]
    now[0] = 8.0
    live._live.refresh()
    written = out.getvalue()
    live.close()
    screen = pyte.Screen(width, HEIGHT)
    pyte.Stream(screen).feed(written.replace("\n", "\r\n"))
    return lines_of(screen), written


@pytest.mark.parametrize("width", WIDTHS)
def test_the_screen_fits_and_its_labels_and_numbers_are_whole_at_every_width(width):
    lines, _ = drawn(width)

    frame = [line for line in lines if line[0] in "╭│╰"]
    assert frame == lines
    assert {len(line) for line in frame} == {width - 4}
    labels = [re.match(r"│ (\w+) {2,}", line) for line in frame]
    assert [m[1] for m in labels if m] == [
        *("question", "model", "researcher", "now", "experiment", "experiments", "time", "dollars", "tokens"),
        "verdicts",
    ]
    text = "\n".join(lines)
    for words in (
        "8.0 s of 2 min",
        "8 of 40",
        "1 min 8 s, 8 min 52 s left",
        "$1.20 of $5.00",
        "123,456 spent",
    ):
        assert words in text
    assert all("…" in line for line in frame if "How does it find" in line)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_download_says_how_far_it_is_and_ends_when_the_next_thing_begins(width):
    fetching = (EVENTS[0], Progress("fetching smollm2-135m", 20e6, 93e6))

    during, _ = drawn(width, events=fetching)
    after, _ = drawn(width, events=(*fetching, Progress("importing setup.py, which loads smollm2-135m …")))

    assert any("20 of 93 MB" in line for line in during)
    assert not any("download" in line or "MB" in line for line in after)
    assert any("importing setup.py" in line for line in after)


def test_without_colour_nothing_is_coloured():
    _, coloured = drawn(80)
    _, plain = drawn(80, color=False)

    # 30 to 49 and 90 to 107 are colours; others are bold and faint.
    colour = re.compile(r"\x1b\[[\d;]*\b(3\d|4\d|9\d|10\d)\b[\d;]*m")
    assert colour.search(coloured)
    assert not colour.search(plain)


def test_the_clock_never_goes_back():
    out, now = io.StringIO(), [0.0]
    live = LiveScreen(Console(file=out, force_terminal=True, width=80), clock=lambda: now[0])
    shown = []
    for at, event in ((0.0, Spending(BudgetState(seconds=60.0))), (9.0, Spending(BudgetState(seconds=64.0)))):
        now[0] = at
        live(event)
        now[0] = at + 8.0
        shown.append(live._seconds())
    live.close()

    assert shown == [68.0, 72.0]


def on_terminal(width: int, *arguments: str, env: dict[str, str]) -> tuple[int, pyte.HistoryScreen]:
    """A command on a real pseudo terminal of this width: its exit code, and the emulator that showed it."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=follower, stdout=follower, stderr=follower, env=env, close_fds=True
    )
    os.close(follower)
    screen = pyte.HistoryScreen(width, HEIGHT, history=1000)
    stream = pyte.ByteStream(screen)
    for data in _read(leader):
        stream.feed(data)
    return process.wait(), screen


def _read(leader: int) -> Iterator[bytes]:
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        yield data
    os.close(leader)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    return {**kept, "TERM": "xterm-256color", "AUTOINTERP_STATE_DIR": str(tmp_path / "state")}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_run_on_a_terminal_leaves_one_frame_that_fits(project, environment, width):
    (project / "experiment.py").write_text(source("alpha"))

    code, screen = on_terminal(width, "watch", str(project), "--max-experiments", "1", env=environment)

    lines = lines_of(screen)
    assert code == 0
    assert all(len(line) <= width for line in lines)
    frame = lines[next(i for i, line in enumerate(lines) if line[0] == "╭") :]
    assert frame[-1][0] == "╰"
    assert {line[0] for line in frame[1:-1]} == {line[-1] for line in frame[1:-1]} == {"│"}
    text = " ".join(line.strip("│ ") for line in frame)
    for words in ("Stopped: the budget of 1 experiments", "0001 lead: alpha was found", "Report:", "Go on:"):
        assert words in text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_color_is_obeyed_on_a_terminal(project, environment):
    (project / "experiment.py").write_text(source("alpha"))

    code, screen = on_terminal(
        80, "watch", str(project), "--max-experiments", "1", env={**environment, "NO_COLOR": "1"}
    )

    colours = {cell.fg for row in screen.buffer.values() for cell in row.values()}
    assert code == 0
    assert colours <= {"default"}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("columns", ["60", "200"])
def test_without_a_terminal_there_are_plain_lines_or_json_and_no_escape(project, environment, columns):
    (project / "experiment.py").write_text(source("alpha"))
    env = {**environment, "COLUMNS": columns}

    lines = subprocess.run(
        [*COMMAND, "watch", str(project), "--max-experiments", "1"], env=env, capture_output=True, text=True
    )
    (project / "experiment.py").write_text(source("beta"))
    objects = subprocess.run(
        [*COMMAND, "watch", str(project), "--max-experiments", "2", "--json"],
        env=env,
        capture_output=True,
        text=True,
    )

    assert (lines.returncode, objects.returncode) == (0, 0)
    assert "\x1b" not in lines.stdout + objects.stdout
    assert "importing setup.py" in lines.stdout
    assert [json.loads(line)["event"] for line in objects.stdout.splitlines()][-1] == "ended"
