"""Runs one experiment in a child process and says how it ended.

Covers: the time box, the size of the output, the environment, the jail, processes left behind, a hot spare
that has imported setup.py already. Does not cover: what the jail allows (`jail/policy.py`).

Before the first run with a setup.py and a version of the library, a child that may also write to the caches
imports setup.py once: what is computed once is there afterwards, and every run only reads it.

The order is that of a run: take the spare (or start a worker), wait until setup.py is imported, start the
experiment, watch it, end it, read how it ended. An instance is used from one thread.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlxterp._files import write_atomically
from mlxterp._version import __version__
from mlxterp.autointerpret.contract import SETUP, digest
from mlxterp.models.fetch import cache_dir
from mlxterp_agent.platform import Clock, Descendants, SystemClock, oom_kills
from mlxterp_agent.sandbox.child import Child, ChildStart, Exit
from mlxterp_agent.sandbox.child_messages import Problem
from mlxterp_agent.sandbox.jail import Isolation, caches, experiment_policy
from mlxterp_agent.sandbox.scratch_files import WrittenFiles, remove_tree
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
    """Whether setup.py can be imported. `facts`: model, model_digest, blas, dataset, metrics, question.

    `jail_error`: why the jail could not be closed; None if it was, or none was wanted.
    """

    ok: bool
    jail_error: str | None = None
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
    """Runs experiments of one project, one at a time, each in a process of its own.

    Args:
        isolation: the jail they run in, as `jail.protection` offers it; "none" for none.
    """

    def __init__(
        self,
        project: Path,
        sealed_setup: Path,
        state: State,
        *,
        isolation: Isolation,
        setup_timeout: float = 600.0,
        grace: float = 1.5,
        output_limit: int = 100_000_000,
        clock: Clock | None = None,
    ) -> None:
        self._project = project.resolve()
        self._setup = sealed_setup
        self._state = state
        self._isolation: Isolation = isolation
        self._setup_timeout = setup_timeout
        self._grace = grace
        self._output_limit = output_limit
        self._clock: Clock = clock or SystemClock()
        self._spare: Child | None = None
        for left in state.tmp_dir.iterdir():
            remove_tree(left)

    def warm(self) -> None:
        """Starts the hot spare unless there is one that imports the setup.py that is sealed now. Returns at
        once."""
        sha = digest(self._setup.read_bytes())
        if self._spare is not None and (self._spare.ended or self._spare.setup_sha != sha):
            self._drop_spare()
        if self._spare is None:
            self._spare = self._start(prepare=False)

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
        failed = self._prepare_caches(stop, progress)
        if failed is not None:
            return failed
        self.warm()
        assert self._spare is not None
        child = self._spare
        cut = self._await_setup(child, stop, progress)
        if cut is None and child.ready:
            return SetupReport(
                ok=True, seconds=child.setup_seconds or 0.0, facts=dict(child.frames.facts or {})
            )
        self._drop_spare()
        return _failed_setup(child, cut)

    def run(
        self,
        frozen: Path,
        run: int,
        *,
        time_box: float,
        stop: Callable[[], str | None] = _never,
        explore: Sequence[int] | None = None,
    ) -> Execution:
        """Runs an experiment and returns when nothing of it is left.

        Args:
            frozen: the copy of experiment.py whose bytes run. What the run prints goes to stdout.txt and
                stderr.txt beside it.
            run: number of the run, for messages.
            time_box: seconds of awake time from the moment setup.py is imported.
            stop: asked ten times a second; a text ends the run with status "interrupted".
            explore: the pairs of `setup.dataset` that it sees; None for all.
        """
        source = frozen.read_bytes()
        sha = digest(source)
        self.warm()
        assert self._spare is not None
        child, self._spare = self._spare, None
        warm = child.ready
        cut: _Cut | None = None
        began: float | None = None
        seconds, strays, ooms = 0.0, 0, oom_kills()
        written = WrittenFiles()
        try:
            cut = self._await_setup(child, stop, _ignore)
            if cut is None and child.ready:
                began = self._clock.monotonic()
                child.go(source, sha, frozen.parent, explore=explore)
                cut, strays = self._watch(child, began + time_box, f"run {run:04d}", time_box, stop)
                seconds = self._clock.monotonic() - began
        finally:
            written = child.close(files_to=None if began is None else frozen.parent / "files")
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
            cpu_seconds=round(ended.cpu_seconds, 2) if ended else None,
            warm=warm,
            error=problem.error if problem else None,
            traceback=problem.traceback if problem else None,
            bad_frames=tuple(child.frames.bad),
            entries=tuple(child.frames.entries),
            measured=tuple(child.frames.measured),
            held_out=tuple(sorted(child.frames.held_out)),
            forwards=None if child.frames.done is None else child.frames.done.forwards,
            stdout_tail=child.stdout,
            stderr_tail=child.stderr,
            output_bytes=child.output_bytes,
            escaped=strays + (ended.escaped if ended else child.orphans),
            isolation=self._isolation,
            files=written.kept,
            files_left_out=written.left_out,
        )

    def close(self) -> None:
        """Ends the spare."""
        self._drop_spare()

    def _start(self, *, prepare: bool) -> Child:
        source = self._setup.read_bytes()
        tmp = self._state.tmp_dir / uuid.uuid4().hex[:12]
        policy = None
        if self._isolation != "none":
            policy = experiment_policy(
                project=self._project, state=self._state.root, scratch=tmp, caches=caches(), prepare=prepare
            )
        return Child(
            ChildStart(
                project=self._project,
                source=source,
                setup_sha=digest(source),
                tmp=tmp,
                policy=policy,
                secret=self._setup,
                fixed=self._project / SETUP,
            )
        )

    def _prepare_caches(
        self, stop: Callable[[], str | None], progress: Callable[[str], None]
    ) -> SetupReport | None:
        """Imports setup.py once in a child that may write to the caches.

        What fails with them may succeed without them: only an interruption, a timeout or a jail that does not
        hold is a failure of the setup itself.
        """
        marker = self._state.root / "prepared"
        key = f"{digest(self._setup.read_bytes())} {__version__}".encode()
        if self._isolation == "none" or (marker.is_file() and marker.read_bytes() == key):
            return None
        with contextlib.suppress(OSError):
            cache_dir().mkdir(parents=True, exist_ok=True)
        child = self._start(prepare=True)
        try:
            cut = self._await_setup(child, stop, progress)
            prepared = child.ready
        finally:
            child.close()
        if cut is not None or child.jail_error is not None:
            return _failed_setup(child, cut)
        if prepared:
            write_atomically(marker, key)
        return None

    def _drop_spare(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _await_setup(
        self, child: Child, stop: Callable[[], str | None], progress: Callable[[str], None]
    ) -> _Cut | None:
        deadline, said = self._clock.monotonic() + self._setup_timeout, ""
        while not child.wait(
            lambda: child.ready or child.ended or child.frames.setup_error is not None, _TICK
        ):
            if child.last_line != said:
                # It says what it does, so it does not hang: reading texts may take longer on a busy machine.
                said, deadline = child.last_line, self._clock.monotonic() + self._setup_timeout
            progress(said)
            reason = stop()
            if reason is not None:
                return _Cut("interrupted", reason)
            if child.output_bytes > self._output_limit:
                return _Cut("setup_error", f"setup.py printed more than {self._output_limit:,} bytes")
            if self._clock.monotonic() >= deadline:
                return _Cut(
                    "setup_error",
                    f"setup.py was not imported, and said nothing for {self._setup_timeout:g} seconds",
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


def _failed_setup(child: Child, cut: _Cut | None) -> SetupReport:
    problem = Problem(cut.error) if cut else _setup_problem(child)
    return SetupReport(
        ok=False,
        jail_error=child.jail_error,
        error=problem.error,
        traceback=problem.traceback,
        seconds=child.setup_seconds or 0.0,
        output_tail=child.stderr or child.stdout,
    )


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
