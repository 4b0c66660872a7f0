"""Runs one experiment in a child process and says how it ended.

Covers: the time box, the size of the output, the environment, processes left behind, a hot spare that has
imported setup.py already. Does not cover: a hostile program; until there is a jail it can reach the network
and the disk.

The order is that of a run: take the spare (or start a worker), wait until setup.py is imported, say go,
watch, end it, read the outcome. An instance is used from one thread.
"""

from __future__ import annotations

import shutil
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlxterp.autointerpret.contract import digest
from mlxterp_agent.platform import Clock, Descendants, SystemClock, oom_kills
from mlxterp_agent.sandbox.child import Child, Exit
from mlxterp_agent.sandbox.frames import Problem
from mlxterp_agent.storage.state_dir import State

Status = Literal["ok", "error", "timeout", "crashed", "oom", "output_limit", "setup_error", "interrupted"]

SWEPT_BY_THE_WARDEN = sys.platform == "linux"

_TICK = 0.1
_LOOK = 0.5
_LAST_WORD = 0.25


def _never() -> None:
    """No reason to stop."""


def _quiet(_: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one experiment ended.

    Attributes:
        status: "ok" only if the experiment reported its end and its process ended with 0.
        exit_code, signal_name: of the process; None where the other applies, or when it never started.
        seconds: from go to the end.
        entries: fields of the entries it reported, valid as ExperimentEntry. They are claims.
        bad_frames: what it reported that was no report, in words.
        error, traceback: why it is not "ok".
        stdout_tail, stderr_tail: the last 64 kB; the beginning is in the run's stdout.txt and stderr.txt.
        output_bytes: all that it printed.
        peak_mb: most memory its process had; None if unknown.
        warm: setup.py had been imported before the run was asked for.
        escaped: processes outside its group that still ran at its end, and were ended then.
    """

    status: Status
    exit_code: int | None = None
    signal_name: str | None = None
    seconds: float = 0.0
    entries: tuple[dict[str, Any], ...] = ()
    bad_frames: tuple[str, ...] = ()
    error: str | None = None
    traceback: str | None = None
    stdout_tail: str = ""
    stderr_tail: str = ""
    output_bytes: int = 0
    peak_mb: float | None = None
    warm: bool = False
    escaped: int = 0


@dataclass(frozen=True, kw_only=True)
class SetupReport:
    """Whether setup.py can be imported. `facts`: model, model_digest, blas, dataset, metrics, question."""

    ok: bool
    error: str | None = None
    traceback: str | None = None
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    output_tail: str = ""


@dataclass(frozen=True)
class _Cut:
    """Why the supervisor ended the child."""

    status: Literal["timeout", "output_limit", "setup_error", "interrupted"]
    error: str


class Runner:
    """Runs experiments of one project, one at a time, each in a process of its own."""

    def __init__(
        self,
        project: Path,
        sealed_setup: Path,
        state: State,
        *,
        setup_timeout: float = 600.0,
        grace: float = 2.0,
        output_limit: int = 100_000_000,
        clock: Clock | None = None,
    ) -> None:
        self._project = project.resolve()
        self._setup = sealed_setup
        self._state = state
        self._setup_timeout = setup_timeout
        self._grace = grace
        self._output_limit = output_limit
        self._clock: Clock = clock or SystemClock()
        self._spare: Child | None = None
        for left in state.tmp_dir.iterdir():
            shutil.rmtree(left, ignore_errors=True)

    def warm(self) -> None:
        """Starts the hot spare unless there is one that imports the setup.py that is sealed now. Returns at
        once."""
        sha = digest(self._setup.read_bytes())
        if self._spare is not None and (self._spare.ended or self._spare.setup_sha != sha):
            self._drop_spare()
        if self._spare is None:
            tmp = self._state.tmp_dir / uuid.uuid4().hex[:12]
            self._spare = Child(self._project, self._setup, sha, tmp)

    def ready(self) -> bool:
        """Whether the spare has imported setup.py."""
        return self._spare is not None and self._spare.ready

    def check_setup(
        self, *, stop: Callable[[], str | None] = _never, tell: Callable[[str], None] = _quiet
    ) -> SetupReport:
        """Waits until the spare has imported setup.py, or has failed; a spare that succeeded stays.

        Args:
            stop: asked ten times a second; a text ends the wait.
            tell: gets what setup.py printed last, ten times a second: a download's progress.
        """
        self.warm()
        assert self._spare is not None
        child = self._spare
        cut = self._await_setup(child, stop, tell)
        if cut is None and child.ready:
            return SetupReport(
                ok=True, seconds=child.setup_seconds or 0.0, facts=dict(child.frames.facts or {})
            )
        self._drop_spare()
        problem = Problem(cut.error, None) if cut else _setup_problem(child)
        return SetupReport(
            ok=False,
            error=problem.error,
            traceback=problem.traceback,
            seconds=child.setup_seconds or 0.0,
            output_tail=child.stderr or child.stdout,
        )

    def run(
        self,
        snapshot: Path,
        run: int,
        *,
        time_box: float,
        run_dir: Path,
        stop: Callable[[], str | None] = _never,
    ) -> Outcome:
        """Runs the experiment in `snapshot` and returns when nothing of it is left.

        Args:
            snapshot: frozen copy of experiment.py; its bytes as they are now are what runs.
            run: number of the run, for messages.
            time_box: seconds of awake time from the moment setup.py is imported.
            run_dir: gets stdout.txt and stderr.txt.
            stop: asked ten times a second; a text ends the run with status "interrupted".
        """
        sha = digest(snapshot.read_bytes())
        self.warm()
        assert self._spare is not None
        child, self._spare = self._spare, None
        warm = child.ready
        cut: _Cut | None = None
        began: float | None = None
        seconds, strays, ooms = 0.0, 0, oom_kills()
        status: Status
        problem: Problem | None
        try:
            cut = self._await_setup(child, stop, _quiet)
            if cut is None and child.ready:
                began = self._clock.monotonic()
                child.go(snapshot, sha, run_dir)
                cut, strays = self._watch(child, began + time_box, f"run {run:04d}", time_box, stop)
                seconds = self._clock.monotonic() - began
        finally:
            child.close()
        if began is not None:
            status, problem = _verdict(child, cut, lack_of_memory=_more(ooms, oom_kills()))
        elif cut is not None:
            status, problem = cut.status, Problem(cut.error, None)
        else:
            status, problem = "setup_error", _setup_problem(child)
        return _outcome(child, status, problem, seconds=seconds, warm=warm, strays=strays)

    def close(self) -> None:
        """Ends the spare."""
        self._drop_spare()

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _await_setup(
        self, child: Child, stop: Callable[[], str | None], tell: Callable[[str], None]
    ) -> _Cut | None:
        deadline = self._clock.monotonic() + self._setup_timeout
        while not child.wait(
            lambda: child.ready or child.ended or child.frames.setup_error is not None, _TICK
        ):
            tell(child.last_line)
            reason = stop()
            if reason is not None:
                return _Cut("interrupted", reason)
            if child.output_bytes > self._output_limit:
                return _Cut("setup_error", f"setup.py printed more than {self._output_limit:,} bytes")
            if self._clock.monotonic() >= deadline:
                return _Cut(
                    "setup_error", f"setup.py was not imported within {self._setup_timeout:g} seconds"
                )
        return None

    def _watch(
        self, child: Child, deadline: float, name: str, time_box: float, stop: Callable[[], str | None]
    ) -> tuple[_Cut | None, int]:
        """Waits for the end, or brings it about: why, and how many strays the warden could not see."""
        strays = None if SWEPT_BY_THE_WARDEN or child.pid is None else Descendants(child.pid)
        next_look = 0.0
        cut: _Cut | None = None
        while cut is None:
            left = deadline - self._clock.monotonic()
            if child.wait(
                lambda: child.ended or child.output_bytes > self._output_limit, min(_TICK, max(left, 0))
            ):
                if child.ended:
                    break
                cut = _Cut("output_limit", f"{name} printed more than {self._output_limit:,} bytes")
                continue
            now = self._clock.monotonic()
            if strays is not None and now >= next_look:
                strays.read_project()
                next_look = now + _LOOK
            reason = stop()
            if reason is not None:
                cut = _Cut("interrupted", reason)
            # This process may have been stopped past the deadline while the child ended in time: what the
            # child has to say comes first.
            elif now >= deadline and not child.wait(lambda: child.ended, _LAST_WORD):
                cut = _Cut("timeout", f"{name} did not end within its time box of {time_box:g} seconds")
        if cut is not None and cut.status != "output_limit":
            child.terminate()
            child.wait(lambda: child.ended, self._grace)
        if cut is not None and not child.ended:
            child.kill()
        return cut, 0 if strays is None else strays.end()


def _setup_problem(child: Child) -> Problem:
    if child.frames.setup_error is not None:
        return child.frames.setup_error
    how = _end_in_words(child.exit) if child.exit else "its process was lost"
    return Problem(f"setup.py did not finish: {how}", None)


def _verdict(child: Child, cut: _Cut | None, *, lack_of_memory: bool) -> tuple[Status, Problem | None]:
    """What the end means; first match wins."""
    done, exit_ = child.frames.done, child.exit
    if cut is not None:
        where = done.problem.traceback if done and done.problem else None
        return cut.status, Problem(cut.error, where)
    if exit_ is None:
        return "crashed", Problem("the process that watches over the experiment was ended", None)
    if exit_.signal:
        # Nobody but the kernel sends SIGKILL here when memory runs out; macOS does not count how often it
        # did.
        oom = exit_.signal == signal.SIGKILL and lack_of_memory
        words = "it was ended for lack of memory" if oom else _end_in_words(exit_)
        return "oom" if oom else "crashed", Problem(words, None)
    if done is None:
        return "crashed", Problem(f"ended without reporting: {_end_in_words(exit_)}", None)
    if done.problem is not None:
        oom = done.problem.error.startswith("MemoryError")
        return "oom" if oom else "error", done.problem
    if exit_.code != 0:
        return "crashed", Problem(f"reported success, but {_end_in_words(exit_)}", None)
    return "ok", None


def _outcome(
    child: Child, status: Status, problem: Problem | None, *, seconds: float, warm: bool, strays: int
) -> Outcome:
    exit_ = child.exit
    return Outcome(
        status=status,
        exit_code=exit_.code if exit_ and not exit_.signal else None,
        signal_name=signal.Signals(exit_.signal).name if exit_ and exit_.signal else None,
        seconds=seconds,
        entries=tuple(child.frames.entries),
        bad_frames=tuple(child.frames.bad),
        error=problem.error if problem else None,
        traceback=problem.traceback if problem else None,
        stdout_tail=child.stdout,
        stderr_tail=child.stderr,
        output_bytes=child.output_bytes,
        peak_mb=exit_.peak_mb if exit_ else None,
        warm=warm,
        escaped=strays + (exit_.escaped if exit_ else 0),
    )


def _end_in_words(exit_: Exit) -> str:
    if exit_.signal:
        return f"its process was ended by {signal.Signals(exit_.signal).name}"
    return f"its process ended with exit code {exit_.code}"


def _more(before: int | None, after: int | None) -> bool:
    return before is None or after is None or after > before
