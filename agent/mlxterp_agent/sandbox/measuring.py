"""One measurement of the judge in a process of its own, seen from the supervisor.

Lives here: starting it in the jail, waiting for it within time and memory, reading its result. Does not live
here: what is measured (`mlxterp.remeasure`), what follows from the numbers (`mlxterp_agent.judge`).

The process gets a copy of the sealed setup.py and a job, and nothing of the agent's. It is jailed like an
experiment, because setup.py may import what it likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

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

_MEASURER = Path(__file__).resolve().parent / "measurer.py"
_MAX_OUTPUT = 100_000_000
_TICK = 0.05
_LAST_WAIT = 10.0


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
class Laboratory:
    """Where measurements of one project are made.

    Attributes:
        setup: the sealed setup.py.
        longest: seconds that one measurement may take.
    """

    project: Path
    state: State
    setup: Path
    isolation: Isolation
    longest: float = LONGEST

    def measure(self, job: Mapping[str, Any], *, stop: Callable[[], str | None]) -> dict[str, Any]:
        """The result of a job about the sealed setup.py; fields as in `mlxterp.remeasure.job`, without those
        about setup.py.

        Args:
            stop: asked twenty times a second; a text ends the measurement.

        Raises:
            MeasurementFailed: with its kind.
        """
        tmp = self.state.tmp_dir / uuid.uuid4().hex[:12]
        tmp.mkdir(mode=0o700)
        try:
            return self._measure_in(tmp, job, stop)
        finally:
            remove_tree(tmp)

    def _measure_in(
        self, tmp: Path, job: Mapping[str, Any], stop: Callable[[], str | None]
    ) -> dict[str, Any]:
        source = self.setup.read_bytes()
        copy = tmp / SETUP
        copy.write_bytes(source)
        policy = None
        if self.isolation != "none":
            policy = experiment_policy(
                project=self.project, state=self.state.root, scratch=tmp, caches=caches()
            )
        start = ChildStart(
            project=self.project,
            source=source,
            setup_sha=digest(source),
            tmp=tmp,
            policy=policy,
            secret=self.setup,
            fixed=self.project / SETUP,
        )
        order = {"jail": start.order()["jail"], "max_file": _MAX_OUTPUT, "memory": _memory()}
        about = {"setup": str(copy), "sha256": start.setup_sha, "name": str(self.project / SETUP)}
        program = [sys.executable, "-I", "-B", str(_MEASURER)]
        if policy is not None and sys.platform == "darwin":
            program = macos.command(policy, program)
        with contextlib.ExitStack() as stack:
            asked, out, err = (
                stack.enter_context(tempfile.TemporaryFile(dir=self.state.tmp_dir)) for _ in range(3)
            )
            asked.write(json.dumps(order).encode() + b"\n" + json.dumps({**about, **job}).encode())
            asked.seek(0)
            code = self._run(program, start, (asked, out, err), stop)
            out.seek(0)
            err.seek(0)
            return _read_result(out.read(_MAX_OUTPUT), err.read()[-2000:], code)

    def _run(
        self,
        program: list[str],
        start: ChildStart,
        streams: tuple[IO[bytes], IO[bytes], IO[bytes]],
        stop: Callable[[], str | None],
    ) -> int:
        """Waits for the end of the process, or brings it about: its exit code."""
        lifeline, mine = os.pipe()
        environment = child_environment(os.environ, outbox=-1, tmp=start.tmp) | start.environment()
        del environment[OUTBOX_ENV]  # what setup.py logs here is nobody's entry
        try:
            try:
                process = subprocess.Popen(
                    warden_command(program, lifeline=lifeline, when_alone="kill"),
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    cwd=start.project,
                    env=environment,
                    start_new_session=True,
                    pass_fds=(lifeline,),
                )
            finally:
                os.close(lifeline)
            note_started(process.pid)
            deadline = time.monotonic() + self.longest
            why: tuple[str, str] | None = None
            while why is None and process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK)
                reason = stop()
                if reason is not None:
                    why = ("interrupted", reason)
                elif time.monotonic() >= deadline and process.poll() is None:
                    why = ("timeout", f"it took longer than {self.longest:g} s")
        finally:
            os.close(mine)  # the warden ends what still runs
        try:
            process.wait(_LAST_WAIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if why is not None:
            raise MeasurementFailed(*why)
        return process.returncode


def _read_result(out: bytes, err: bytes, code: int) -> dict[str, Any]:
    try:
        result = json.loads(out)
    except ValueError:
        result = None
    if not isinstance(result, dict):
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise MeasurementFailed("crashed", one_line(f"its process ended with exit code {code}: {last}", 500))
    error = result.get("error")
    if error is not None:
        raise MeasurementFailed(str(error["kind"]), str(error["message"]))
    return result


def _memory() -> int | None:
    """Bytes that the process may use: what the machine has. None where that cannot be limited."""
    if sys.platform != "linux":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
