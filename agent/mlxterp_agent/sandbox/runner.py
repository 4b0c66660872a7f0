"""Runs one experiment in a child process and says how it ended.

Covers: the time box, the size of the output, the environment, processes left behind, a hot spare that has
imported setup.py already. Does not cover: a hostile program, which can reach the network
and the disk.

The order is that of a run: take the spare (or start a worker), wait until setup.py is imported, start the
experiment, watch it, end it, read how it ended. An instance is used from one thread.
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
from mlxterp_agent.storage.record import Execution, Status
from mlxterp_agent.storage.state_dir import State

SWEPT_BY_THE_WARDEN = sys.platform == "linux"

_TICK = 0.1
_LOOK = 0.5
_LAST_WORD = 0.25


def _never() -> None:
    """No reason to stop."""


def _ignore(_: str) -> None:
    """Progress that is not shown."""


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
        self, *, stop: Callable[[], str | None] = _never, progress: Callable[[str], None] = _ignore
    ) -> SetupReport:
        """Waits until the spare has imported setup.py, or has failed; a spare that succeeded stays.

        Args:
            stop: asked ten times a second; a text ends the wait.
            progress: gets what setup.py printed last, ten times a second, such as the state of a download.
        """
        self.warm()
        assert self._spare is not None
        child = self._spare
        cut = self._await_setup(child, stop, progress)
        if cut is None and child.ready:
            return SetupReport(
                ok=True, seconds=child.setup_seconds or 0.0, facts=dict(child.frames.facts or {})
            )
        self._drop_spare()
        problem = Problem(cut.error) if cut else _setup_problem(child)
        return SetupReport(
            ok=False,
            error=problem.error,
            traceback=problem.traceback,
            seconds=child.setup_seconds or 0.0,
            output_tail=child.stderr or child.stdout,
        )

    def run(
        self, frozen: Path, run: int, *, time_box: float, stop: Callable[[], str | None] = _never
    ) -> Execution:
        """Runs an experiment and returns when nothing of it is left.

        Args:
            frozen: the copy of experiment.py whose bytes run. What the run prints goes to stdout.txt and
                stderr.txt beside it.
            run: number of the run, for messages.
            time_box: seconds of awake time from the moment setup.py is imported.
            stop: asked ten times a second; a text ends the run with status "interrupted".
        """
        sha = digest(frozen.read_bytes())
        self.warm()
        assert self._spare is not None
        child, self._spare = self._spare, None
        warm = child.ready
        cut: _Cut | None = None
        began: float | None = None
        seconds, strays, ooms = 0.0, 0, oom_kills()
        try:
            cut = self._await_setup(child, stop, _ignore)
            if cut is None and child.ready:
                began = self._clock.monotonic()
                child.go(frozen, sha, frozen.parent)
                cut, strays = self._watch(child, began + time_box, f"run {run:04d}", time_box, stop)
                seconds = self._clock.monotonic() - began
        finally:
            child.close()
        ended = child.exit
        status, problem = _ending(
            child, cut, began=began is not None, lack_of_memory=_more(ooms, oom_kills())
        )
        return Execution(
            status=status,
            exit_code=ended.code if ended and not ended.signal else None,
            signal=signal.Signals(ended.signal).name if ended and ended.signal else None,
            seconds=round(seconds, 3),
            peak_mb=round(ended.peak_mb, 1) if ended else None,
            warm=warm,
            error=problem.error if problem else None,
            traceback=problem.traceback if problem else None,
            bad_frames=tuple(child.frames.bad),
            entries=tuple(child.frames.entries),
            stdout_tail=child.stdout,
            stderr_tail=child.stderr,
            output_bytes=child.output_bytes,
            escaped=strays + (ended.escaped if ended else 0),
        )

    def close(self) -> None:
        """Ends the spare."""
        self._drop_spare()

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _await_setup(
        self, child: Child, stop: Callable[[], str | None], progress: Callable[[str], None]
    ) -> _Cut | None:
        deadline = self._clock.monotonic() + self._setup_timeout
        while not child.wait(
            lambda: child.ready or child.ended or child.frames.setup_error is not None, _TICK
        ):
            progress(child.last_line)
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
        """Waits for the end, or ends the child: why, and how many processes the warden could not see were
        left."""
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
                strays.observe()
                next_look = now + _LOOK
            reason = stop()
            if reason is not None:
                cut = _Cut("interrupted", reason)
            # This process may have been stopped past the deadline while the child ended in time: what the
            # child reported is read first.
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
    how = _describe(child.exit) if child.exit else "its process was lost"
    return Problem(f"setup.py did not finish: {how}")


def _ending(
    child: Child, cut: _Cut | None, *, began: bool, lack_of_memory: bool
) -> tuple[Status, Problem | None]:
    """What the end of a run means; first match wins."""
    done, ended = child.frames.done, child.exit
    if cut is not None:
        where = done.problem.traceback if done and done.problem else None
        return cut.status, Problem(cut.error, where)
    if not began:
        return "setup_error", _setup_problem(child)
    if ended is None:
        return "crashed", Problem("the process that watches over the experiment was ended")
    if ended.signal:
        # Only the kernel sends SIGKILL here, when memory runs out; macOS does not count how often it did.
        if ended.signal == signal.SIGKILL and lack_of_memory:
            return "oom", Problem("it was ended for lack of memory")
        return "crashed", Problem(_describe(ended))
    if done is None:
        return "crashed", Problem(f"ended without reporting: {_describe(ended)}")
    if done.problem is not None:
        return "oom" if done.problem.error.startswith("MemoryError") else "error", done.problem
    if ended.code != 0:
        return "crashed", Problem(f"reported success, but {_describe(ended)}")
    return "ok", None


def _describe(ended: Exit) -> str:
    if ended.signal:
        return f"its process was ended by {signal.Signals(ended.signal).name}"
    return f"its process ended with exit code {ended.code}"


def _more(before: int | None, after: int | None) -> bool:
    return before is None or after is None or after > before
