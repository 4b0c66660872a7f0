"""Notices that experiment.py may have changed, and reads it.

An event of the file system only means "look": what counts is the content, and its digest says whether it has
been run (`loop.py`). Other programs write in the project, so nothing here follows a link.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import threading
import time
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from watchdog.events import (
    EVENT_TYPE_CLOSED,
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from mlxterp.autointerpret.contract import EXPERIMENT, STEER, digest
from mlxterp_agent.platform import NotRegular, read_regular

STOP = "STOP"
SCAFFOLD_TEXT = (
    f"{EXPERIMENT} still holds the scaffold's own text, which nobody proposed; write your experiment first"
)
MAX_SOURCE = 256 * 1024
"""Bytes of an experiment.py that is read."""

# Reading a file is an event too ("opened", "closed without writing"), and our own reading is no change.
_CHANGES = frozenset(
    {EVENT_TYPE_CREATED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED, EVENT_TYPE_CLOSED, EVENT_TYPE_DELETED}
)
_POLL = 0.1
_SETTLED_NS = 1_000_000_000


@dataclass(frozen=True)
class Candidate:
    """What experiment.py holds now.

    Attributes:
        source: its bytes; empty if it could not be read.
        sha: their digest.
        error: why it cannot be run, in one line; None if it parses.
    """

    source: bytes
    sha: str
    error: str | None


def read_experiment(project: Path) -> Candidate:
    """Reads and parses experiment.py; nothing in it is executed.

    A file that does not parse is not run: agents and editors save in several steps.
    """
    try:
        source = read_regular(project / EXPERIMENT, limit=MAX_SOURCE)
    except FileNotFoundError:
        return Candidate(b"", "", f"{EXPERIMENT} is missing")
    except NotRegular as problem:
        return Candidate(b"", "", f"{EXPERIMENT} is {problem}")
    except OSError as problem:
        return Candidate(b"", "", f"{EXPERIMENT} cannot be read: {os.strerror(problem.errno or 0)}")
    return Candidate(source, digest(source), _problem(source) or _imported_file(source, project))


class ExperimentFile:
    """experiment.py of one project; it is read and parsed again only when the file was written to."""

    def __init__(self, project: Path) -> None:
        self._project = project
        self._stamp: tuple[int, ...] | None = None
        self._candidate = Candidate(b"", "", f"{EXPERIMENT} is missing")

    def read(self) -> Candidate:
        """What it holds now."""
        try:
            status = os.lstat(self._project / EXPERIMENT)
        except OSError:
            self._stamp = None
            return read_experiment(self._project)
        # The time of the last change is set by the kernel. A file that has just been written may be written
        # again within the clock's resolution, so it is read until it is a moment old.
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mode, status.st_ctime_ns)
        if stamp != self._stamp:
            self._candidate = read_experiment(self._project)
            self._stamp = stamp if time.time_ns() - status.st_ctime_ns > _SETTLED_NS else None
        return self._candidate


def _problem(source: bytes) -> str | None:
    try:
        source.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = source.count(b"\n", 0, problem.start) + 1
        return f"{EXPERIMENT}, line {line}: byte {problem.start + 1} is not UTF-8"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, filename=EXPERIMENT)
    except SyntaxError as problem:
        return f"{EXPERIMENT}, line {problem.lineno or 1}: {problem.msg}"
    except (ValueError, RecursionError, MemoryError) as problem:
        return f"{EXPERIMENT} cannot be parsed: {problem or 'it is nested too deeply'}"
    return None if tree.body else f"{EXPERIMENT} has nothing to run yet"


def _imported_file(source: bytes, project: Path) -> str | None:
    """Why an experiment that imports another file of the project is not run: only experiment.py is frozen,
    judged and committed, so it could not be run again from its commit."""
    there = {each.name.lower(): each.name for each in project.iterdir() if not each.name.startswith(".")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the experiment's own source
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "."] if node.level == 0 else ["."]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            file = next((there[each] for each in (f"{top.lower()}.py", top.lower()) if each in there), None)
            if top == "setup" or (top and (file is None or _is_installed(top, project))):
                continue
            what = f"{file}, a file of this project" if top else "a module beside it"
            return (
                f"{EXPERIMENT}, line {node.lineno}: it imports {what}. An experiment is this one file, which "
                f"is frozen, judged and committed: put the code into {EXPERIMENT}"
            )
    return None


def _is_installed(name: str, project: Path) -> bool:
    """Whether a module of this name is found elsewhere first."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    origin = None if spec is None else spec.origin
    return spec is not None and origin is not None and project.resolve() not in Path(origin).resolve().parents


class FileWatcher:
    """Waits for a change of a project's watched files. A context manager.

    Attributes:
        polling: why files are read ten times a second instead of being watched; None if they are watched.
    """

    def __init__(self, project: Path, names: Collection[str] = (EXPERIMENT, STOP, STEER)) -> None:
        self.polling: str | None = None
        self._project = project
        self._names = frozenset(names)
        self._changed = threading.Event()
        self._observer = Observer()
        self._seen = self._stamps()

    def __enter__(self) -> FileWatcher:
        self._observer.schedule(
            _ChangeHandler(self._names, self._changed), str(self._project), recursive=False
        )
        try:
            self._observer.start()
        except OSError as problem:
            # Watches are a limited resource of the system (fs.inotify.max_user_watches, max_user_instances).
            self.polling = f"the system watches no more files ({problem.strerror}); they are polled instead"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()

    def wait(self, timeout: float) -> bool:
        """Waits for a change at most this long; True if there was one since the last call."""
        if self.polling is None:
            changed = self._changed.wait(timeout)
            self._changed.clear()
            return changed
        until = time.monotonic() + timeout
        while True:
            now = self._stamps()
            if now != self._seen:
                self._seen = now
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._changed.wait(min(_POLL, left))

    def settle(self, quiet: float = 0.1, longest: float = 2.0) -> None:
        """Waits until nothing changed for `quiet` seconds: the steps of one save are then over."""
        until = time.monotonic() + longest
        while time.monotonic() < until and self.wait(quiet):
            pass

    def _stamps(self) -> dict[str, tuple[int, int, int]]:
        found: dict[str, tuple[int, int, int]] = {}
        for name in self._names:
            try:
                status = os.lstat(self._project / name)
            except OSError:
                continue
            found[name] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


class _ChangeHandler(FileSystemEventHandler):  # type: ignore[misc]
    def __init__(self, names: frozenset[str], changed: threading.Event) -> None:
        self._names = names
        self._changed = changed

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type not in _CHANGES:
            return
        paths = (os.fsdecode(event.src_path), os.fsdecode(event.dest_path))
        if self._names & {os.path.basename(path) for path in paths}:
            self._changed.set()
