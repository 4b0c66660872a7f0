"""What a run looks like: on a terminal, as plain lines, as JSON lines. Foreign text never reaches a terminal
raw."""

from __future__ import annotations

import io
import json

from rich.console import Console

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.display.json_lines import JsonLines
from mlxterp_agent.display.plain import PlainLines
from mlxterp_agent.display.terminal import LiveScreen
from mlxterp_agent.events import (
    Committed,
    Decided,
    Progress,
    Repaired,
    Running,
    SetupReady,
    Spending,
    Started,
    Stopped,
    Turn,
    Violated,
    Waiting,
)
from mlxterp_agent.researchers.base import BudgetState
from mlxterp_agent.text import cut, duration, one_line, plain, slug

ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J \u202eevil\u2066 [bold]markup[/bold]"


def entry(verdict: str = "lead", conclusion: str = "heads 9.6 and 9.9 move the answer") -> ExperimentEntry:
    return ExperimentEntry(
        hypothesis="h",
        method="activation_patching",
        result={},
        informative=verdict == "lead",
        conclusion=conclusion,
        duration_seconds=3.25,
        experiment_id="0007",
        record={"verdict": verdict, "tier": verdict, "reasons": ["r"], "run": "0007"},
    )


EVENTS = (
    Started("/p", "How does it recall?", "smollm2-135m", "scripted (asked for)", 1, {"note": 1}),
    Repaired("a torn line was set aside"),
    Progress("fetching smollm2-135m", 20e6, 93e6),
    SetupReady("smollm2-135m", 1.5, "openblas"),
    Turn("writing the residual sweep"),
    Running(8, "ab" * 32, 120.0, "Which heads?"),
    Decided(entry()),
    Spending(BudgetState(experiments=8, experiments_left=32, seconds=60.0, seconds_left=540.0)),
    Committed("0007", "cd" * 20),
    Violated("setup.py was changed"),
    Waiting("git: busy"),
    Stopped("the budget of 40 experiments is used up", 0),
)


def lines_of(printer: type[PlainLines] | type[JsonLines]) -> list[str]:
    out = io.StringIO()
    tell = printer(out)
    for event in EVENTS:
        tell(event)
    return out.getvalue().splitlines()


def screen_text(*events: object, now: float = 0.0) -> str:
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=False, record=True)
    clock = [0.0]
    screen = LiveScreen(console, clock=lambda: clock[0])
    try:
        for event in events:
            screen(event)  # type: ignore[arg-type]
        clock[0] = now
        console.print(screen.picture())
        return console.export_text()
    finally:
        screen.close()


def test_plain_lines_tell_each_thing_once_in_the_order_it_happened():
    lines = lines_of(PlainLines)

    assert lines[0].startswith(
        "investigating /p: How does it recall? [scripted (asked for), resuming after 1"
    )
    assert "fetching smollm2-135m 22 %" in lines
    assert "run 0008 started, time box 2 min: Which heads?" in lines
    assert "0007 lead (3.2 s): heads 9.6 and 9.9 move the answer" in lines
    assert lines[-1] == "stopped: the budget of 40 experiments is used up"


def test_every_json_line_is_one_object_that_names_its_event():
    lines = [json.loads(line) for line in lines_of(JsonLines)]

    assert len(lines) == len(EVENTS)
    assert [line["event"] for line in lines] == [type(event).__name__.lower() for event in EVENTS]
    assert lines[6]["experiment_id"] == "0007"
    assert lines[6]["verdict"] == "lead"


def test_the_screen_shows_the_experiment_the_budget_the_tally_and_what_is_kept():
    text = screen_text(*EVENTS[:-1])

    assert "How does it recall?" in text
    assert "note 1  lead 1" in text
    assert "8 of 40" in text
    assert "9 min left" in text
    assert "heads 9.6 and 9.9 move the answer" in text


def test_the_screen_counts_the_running_experiment_towards_its_time_box():
    text = screen_text(EVENTS[0], EVENTS[5], now=30.0)

    assert "run 0008, 30 s of 2 min" in text
    assert "Which heads?" in text


def test_the_screen_has_a_bar_for_a_download():
    text = screen_text(EVENTS[0], EVENTS[2])

    assert "fetching smollm2-135m" in text
    assert "20 of 93 MB" in text


def test_no_escape_sequence_of_an_experiment_reaches_the_terminal():
    hostile = Decided(entry(conclusion=ESCAPES))
    out = io.StringIO()
    PlainLines(out)(hostile)
    shown = out.getvalue() + screen_text(EVENTS[0], hostile, Waiting(ESCAPES), Repaired(ESCAPES))

    assert not {"\x1b", "\x9b", "\u202e", "\u2066", "\x07"} & set(shown)
    assert "[bold]markup[/bold]" in shown


def test_plain_keeps_lines_and_words_and_drops_what_a_terminal_acts_on():
    assert plain(ESCAPES) == "red  evil [bold]markup[/bold]"
    assert plain("a\tb\r\nc") == "a   b\nc"
    assert plain("über 漢字 → ⟨bos⟩") == "über 漢字 → ⟨bos⟩"


def test_a_slug_is_safe_as_part_of_a_path():
    assert slug("../../etc/passwd --exec=sh\x00") == "etc-passwd-exec-sh"
    assert slug("Ünïcode Text") == "unicode-text"
    assert len(slug("word " * 100)) <= 40
    assert slug("日本語") == "entry"


def test_texts_are_shortened_where_they_are_shown():
    assert one_line("a\n b\t c", 20) == "a b c"
    assert one_line("word " * 50, 20).endswith("…")
    assert len(one_line("word " * 50, 20)) <= 20
    assert len(cut("ü" * 500, 100).encode()) <= 100


def test_durations_are_said_as_people_say_them():
    said = [duration(seconds) for seconds in (0.25, 12.4, 60, 200, 7 * 3600 + 12 * 60)]

    assert said == ["0.25 s", "12 s", "1 min", "3 min 20 s", "7 h 12 min"]
