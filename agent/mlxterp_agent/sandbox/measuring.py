"""The judge's measurements in processes of their own, seen from the supervisor.

Lives here: starting such a process in the jail, asking it within time and memory, ending it. Does not live
here: what is measured (`mlxterp.remeasure`), what follows from the numbers (`mlxterp_agent.judge`).

A process gets a copy of the sealed setup.py and jobs, and nothing of the agent's: that is why one may serve
the claims of a whole night. It is jailed like an experiment, because setup.py may import what it likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp.autointerpret.contract import SETUP, digest
from mlxterp.autointerpret.log import OUTBOX_ENV
from mlxterp_agent.platform import child_environment
from mlxterp_agent.sandbox.child import ChildStart, warden_command
from mlxterp_agent.sandbox.jail import Isolation, caches, experiment_policy, macos
from mlxterp_agent.sandbox.orphans import note_started
from mlxterp_agent.sandbox.scratch_files import remove_tree
from mlxterp_agent.storage.state_dir import State
from mlxterp_agent.text import one_line

LONGEST = 600.0
"""Seconds that one measurement may take."""
MODELS_AT_ONCE = 4
"""A process lives on where memory holds it so many times over: beside it an experiment or its spare, a fresh
process for a replay, and what else runs on the machine."""

_MEASURER = Path(__file__).resolve().parent / "measurer.py"
_MAX_OUTPUT = 100_000_000
_CHUNK = 1 << 16
_TICK = 0.05
_LAST_WAIT = 10.0
_MAY_BE_THE_PROCESS = ("crashed", "out_of_memory")
"""Failures that a process which measured before may owe to its age, or to whoever ended it meanwhile."""

Stop = Callable[[], str | None]


class MeasurementFailed(Exception):
    """There is no result. `kind` is one of `mlxterp.remeasure.job.ERROR_KINDS`, or:

    no_jail      the jail does not hold
    timeout      it took too long
    crashed      its process ended without a result
    interrupted  a person ended the run
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and with what measurements of one project are made.

    Attributes:
        setup: the sealed setup.py.
        longest: seconds that one measurement may take.
    """

    project: Path
    state: State
    setup: Path
    isolation: Isolation
    longest: float = LONGEST


class Measurer:
    """Measures for the judge of one project. Used from one thread.

    One process serves one job after another. It is ended when a job fails, when setup.py is sealed anew,
    where memory does not hold it beside what else runs, and by `close`.

    Attributes:
        cpu_seconds: that its processes have computed, theirs for importing setup.py included.
    """

    def __init__(self, place: Place) -> None:
        self.cpu_seconds = 0.0
        self._place = place
        self._process: _Process | None = None

    def measure(self, job: Mapping[str, Any], *, stop: Stop) -> dict[str, Any]:
        """The result of a job about the sealed setup.py; fields as in `mlxterp.remeasure.job`, without those
        about setup.py. The numbers are those that a fresh process gives.

        Args:
            stop: asked twenty times a second; a text ends the measurement.

        Raises:
            MeasurementFailed: with its kind.
        """
        if self._process is not None and self._process.setup_sha != digest(self._place.setup.read_bytes()):
            self.close()
        began_before = self._process is not None
        try:
            result = self._ask(job, stop)
        except MeasurementFailed as problem:
            if not began_before or problem.kind not in _MAY_BE_THE_PROCESS:
                raise
            result = self._ask(job, stop)
        if self._process is not None and not _has_room_for(self._process.peak_mb):
            self.close()
        return result

    def measure_cold(self, jobs: Sequence[Mapping[str, Any]], *, stop: Stop) -> list[dict[str, Any]]:
        """The results of these jobs in a process that has measured nothing before, and ends after them.

        Raises:
            MeasurementFailed: with its kind.
        """
        process = _Process(self._place)
        try:
            return [process.ask(job, stop) for job in jobs]
        finally:
            self.cpu_seconds += process.cpu_seconds
            process.close()

    def close(self) -> None:
        """Ends the process that lives on."""
        if self._process is not None:
            process, self._process = self._process, None
            process.close()

    def _ask(self, job: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
        if self._process is None:
            self._process = _Process(self._place)
        before = self._process.cpu_seconds
        try:
            result = self._process.ask(job, stop)
        except BaseException:
            self.close()
            raise
        self.cpu_seconds += self._process.cpu_seconds - before
        return result


class _Process:
    """A jailed process that imports the sealed setup.py and answers jobs.

    Attributes:
        setup_sha: of the setup.py that it imports.
        cpu_seconds, peak_mb: computed, and the most memory used, up to its last answer.
    """

    def __init__(self, place: Place) -> None:
        source = place.setup.read_bytes()
        self.setup_sha = digest(source)
        self.cpu_seconds = self.peak_mb = 0.0
        self._place = place
        self._tmp = place.state.tmp_dir / uuid.uuid4().hex[:12]
        self._tmp.mkdir(mode=0o700)
        self._asked = self._answered = b""
        copy = self._tmp / SETUP
        copy.write_bytes(source)
        self._about = {"setup": str(copy), "sha256": self.setup_sha, "name": str(place.project / SETUP)}
        policy = None
        if place.isolation != "none":
            policy = experiment_policy(
                project=place.project, state=place.state.root, scratch=self._tmp, caches=caches()
            )
        start = ChildStart(
            project=place.project,
            source=source,
            setup_sha=self.setup_sha,
            tmp=self._tmp,
            policy=policy,
            secret=place.setup,
            fixed=place.project / SETUP,
        )
        program = [sys.executable, "-I", "-B", str(_MEASURER)]
        if policy is not None and sys.platform == "darwin":
            program = macos.command(policy, program)
        environment = child_environment(os.environ, outbox=-1, tmp=self._tmp) | start.environment()
        del environment[OUTBOX_ENV]  # what setup.py logs here is nobody's entry
        self._errors = tempfile.TemporaryFile(dir=place.state.tmp_dir)  # noqa: SIM115 - `close` closes it
        lifeline, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                warden_command(program, lifeline=lifeline, when_alone="kill"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                cwd=place.project,
                env=environment,
                start_new_session=True,
                pass_fds=(lifeline,),
            )
        except BaseException:
            os.close(self._lifeline)
            self._errors.close()
            remove_tree(self._tmp)
            raise
        finally:
            os.close(lifeline)
        note_started(self._process.pid)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._results = self._process.stdin, self._process.stdout
        for stream in (self._jobs, self._results):
            os.set_blocking(stream.fileno(), False)
        self._send({"jail": start.order()["jail"], "max_file": _MAX_OUTPUT, "memory": _memory()})

    def ask(self, job: Mapping[str, Any], stop: Stop) -> dict[str, Any]:
        """The result of a job.

        Raises:
            MeasurementFailed: with its kind. The process is then of no more use.
        """
        self._send({**self._about, **job})
        deadline = time.monotonic() + self._place.longest
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            while not self._answered.endswith(b"\n"):
                self._write()
                if selector.select(_TICK):
                    self._read()
                reason = stop()
                if reason is not None:
                    raise MeasurementFailed("interrupted", reason)
                if time.monotonic() >= deadline and not self._answered.endswith(b"\n"):
                    raise MeasurementFailed("timeout", f"it took longer than {self._place.longest:g} s")
        return self._take_answer()

    def close(self) -> None:
        """Ends it, whatever it does, and frees everything it used."""
        os.close(self._lifeline)  # its warden ends it
        try:
            self._process.wait(_LAST_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._jobs.close()
        self._results.close()
        self._errors.close()
        remove_tree(self._tmp)

    def _send(self, what: Mapping[str, Any]) -> None:
        self._asked += json.dumps(what).encode() + b"\n"

    def _write(self) -> None:
        """Writes as much as the pipe takes now."""
        try:
            while self._asked:
                self._asked = self._asked[os.write(self._jobs.fileno(), self._asked[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._asked = b""  # it has ended: the end of its results says so

    def _read(self) -> None:
        chunk = os.read(self._results.fileno(), _CHUNK)
        self._answered += chunk
        if not chunk:
            raise MeasurementFailed("crashed", self._last_words())
        if len(self._answered) > _MAX_OUTPUT:
            raise MeasurementFailed("crashed", f"it wrote more than {_MAX_OUTPUT:,} bytes")

    def _take_answer(self) -> dict[str, Any]:
        try:
            result = json.loads(self._answered)
        except ValueError:
            result = None
        if not isinstance(result, dict):
            raise MeasurementFailed("crashed", "what it wrote is no JSON object")
        self._answered = b""
        # A jail that does not hold is said before there is anything to compute.
        used = result.pop("process", {"cpu_seconds": 0.0, "peak_mb": 0.0})
        self.cpu_seconds += float(used["cpu_seconds"])
        self.peak_mb = float(used["peak_mb"])
        error = result.get("error")
        if error is not None:
            raise MeasurementFailed(str(error["kind"]), str(error["message"]))
        return result

    def _last_words(self) -> str:
        """How it ended, and the last line of its standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WAIT)
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 2000))
        last = self._errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return one_line(f"its process ended with exit code {self._process.returncode}: {last}", 500)


def _has_room_for(peak_mb: float) -> bool:
    """Whether this machine's memory holds a process of this size `MODELS_AT_ONCE` times."""
    return MODELS_AT_ONCE * peak_mb * 1024**2 <= _physical_memory()


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory() -> int | None:
    """Bytes that the process may use: what the machine has. None where that cannot be limited."""
    return _physical_memory() if sys.platform == "linux" else None
