"""The live screen on a terminal: what runs now, how long it may, what came out, what is left.

Drawn four times a second from the values in `events.py`; it decides nothing and reads no file. Text from
experiments is stripped of escapes and never read as markup.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlxterp.autointerpret.entry import ExperimentEntry
from mlxterp_agent.events import (
    Committed,
    Decided,
    Event,
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
from mlxterp_agent.storage.record import is_kept, verdict_of
from mlxterp_agent.text import duration, one_line, plain

_BAR = 32
_SHORTEST_BAR = 6
_LABEL = len("experiments")
_FRAME = 8
"""Columns of the border, its padding, and between label and value."""
_SHOWN = 5


class LiveScreen:
    """One screen for one run. Call it with events; `close` leaves the terminal as it was."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console()
        self._clock = clock
        self._title = "autointerp"
        self._question = ""
        self._researcher = ""
        self._doing = "starting"
        self._model = ""
        self._note = ""
        self._tally: Counter[str] = Counter()
        self._kept: list[ExperimentEntry] = []
        self._budget = BudgetState()
        self._budget_at = clock()
        self._seconds_shown = 0.0
        self._run: tuple[Running, float] | None = None
        self._share: tuple[float, float] | None = None
        self._live = Live(
            console=self._console, get_renderable=self.picture, refresh_per_second=4, transient=True
        )
        self._live.start()

    def __call__(self, event: Event) -> None:
        match event:
            case Started():
                self._title = event.project
                self._question, self._researcher = event.question, event.researcher
                self._tally, self._kept = Counter(event.tally), list(event.kept)
            case Progress():
                self._doing = event.text
                known = event.done is not None and event.total
                self._share = (event.done or 0.0, event.total or 1.0) if known else None
            case SetupReady():
                self._model, self._doing, self._share = event.model, "waiting for an experiment", None
                self._note = event.evidence
            case Turn():
                self._doing = event.text or self._doing
            case Running():
                self._run = (event, self._clock())
                self._doing = event.about or f"running experiment {event.run:04d}"
            case Decided():
                self._tally[verdict_of(event.entry)] += 1
                if is_kept(event.entry):
                    self._kept = [*self._kept, event.entry][-_SHOWN:]
                self._run, self._doing = None, f"logging and committing {event.entry.experiment_id}"
            case Spending():
                self._budget, self._budget_at, self._run = event.budget, self._clock(), None
                self._doing = "choosing the next experiment" if self._model else self._doing
            case Committed():
                self._note = f"{event.id} committed as {event.sha[:10]}"
            case Repaired():
                self._say(f"repaired: {event.what}")
            case Violated():
                self._say(f"contract violated: {event.what}")
            case Waiting():
                self._note = event.text
            case Stopped():
                self._doing = event.reason

    def close(self) -> None:
        """Takes the screen down."""
        self._live.stop()

    def picture(self) -> RenderableType:
        """What is on the screen now."""
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="dim", no_wrap=True, min_width=_LABEL)
        value = self._width() - _FRAME - _LABEL + 1
        rows.add_column(no_wrap=True, overflow="ellipsis", max_width=value)
        rows.add_row("question", Text(one_line(self._question, 200)))
        rows.add_row("model", Text(one_line(self._model or "importing setup.py …", 100)))
        rows.add_row("researcher", Text(one_line(self._researcher, 200)))
        rows.add_row("now", Text(one_line(self._doing, 200)))
        rows.add_row("experiment" if self._share is None else "download", self._experiment())
        for name, spent, total, words in self._bars():
            rows.add_row(name, self._bar(spent, total, words))
        if self._budget.seconds_left is None:
            rows.add_row("time", Text(duration(self._seconds())))
        if self._budget.usd_left is None and self._budget.usd is not None:
            tokens = f" for {self._budget.tokens:,} tokens" if self._budget.tokens else ""
            rows.add_row("cost", Text(f"${self._budget.usd:.2f}{tokens}"))
        counts = "  ".join(f"{verdict} {count}" for verdict, count in self._tally.items())
        rows.add_row("verdicts", Text(counts or "none yet"))
        parts: list[RenderableType] = [rows]
        if self._kept:
            parts += [Text(), *(_kept_line(entry) for entry in reversed(self._kept))]
        if self._note:
            parts += [Text(), Text(one_line(self._note, 300), style="dim", no_wrap=True, overflow="ellipsis")]
        title = Text(one_line(self._title, 80))
        return Panel(Group(*parts), title=title, title_align="left", width=self._width())

    def _width(self) -> int:
        # Room for the "^C" that a terminal prints at the cursor: it must not begin another line.
        return max(40, self._console.width - 4)

    def _bar(self, done: float, total: float, words: str) -> RenderableType:
        """A bar and its numbers on one line: on a narrow screen the bar is shorter, or left out."""
        length = min(_BAR, self._width() - _FRAME - _LABEL - len(words))
        if length < _SHORTEST_BAR:
            return Text(words, no_wrap=True, overflow="ellipsis")
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(total, 1e-9), completed=min(done, total), width=length)
        grid.add_row(bar, Text(words, no_wrap=True))
        return grid

    def _say(self, text: str) -> None:
        self._console.print(Text(plain(text)))

    def _experiment(self) -> RenderableType:
        if self._run is not None:
            event, began = self._run
            elapsed = self._clock() - began
            words = f"run {event.run:04d}, {duration(elapsed)} of {duration(event.time_box)}"
            return self._bar(elapsed, event.time_box, words)
        if self._share is not None:
            done, total = self._share
            return self._bar(done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
        return Text("none running")

    def _seconds(self) -> float:
        """The time that is spent. What the journal counts is a little less than what was shown before it
        counted; the clock stands still until it is past that, and never goes back."""
        now = self._budget.seconds + self._clock() - self._budget_at
        self._seconds_shown = max(self._seconds_shown, now)
        return self._seconds_shown

    def _bars(self) -> list[tuple[str, float, float, str]]:
        budget = self._budget
        rows: list[tuple[str, float, float, str]] = []
        spent = self._seconds()
        if budget.experiments_left is not None:
            total = budget.experiments + budget.experiments_left
            rows.append(("experiments", budget.experiments, total, f"{budget.experiments} of {total}"))
        if budget.seconds_left is not None:
            total_time = budget.seconds + budget.seconds_left
            left = max(0.0, total_time - spent)
            rows.append(("time", spent, total_time, f"{duration(spent)}, {duration(left)} left"))
        if budget.usd_left is not None:
            usd = budget.usd or 0.0
            rows.append(
                ("dollars", usd, usd + budget.usd_left, f"${usd:.2f} of ${usd + budget.usd_left:.2f}")
            )
        if budget.tokens_left is not None:
            tokens = budget.tokens or 0
            rows.append(("tokens", tokens, tokens + budget.tokens_left, f"{tokens:,} spent"))
        return rows


def _kept_line(entry: ExperimentEntry) -> Text:
    line = f"{entry.experiment_id} {verdict_of(entry)}: {one_line(entry.conclusion, 300)}"
    return Text(line, style="green", no_wrap=True, overflow="ellipsis")
