"""A build of a store that is killed, or that another process does too: nothing is lost, nothing is mixed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SAEError, StoreError
from mlxterp.sae.feature_store import build as store_module
from mlxterp.sae.feature_store.build import build_store
from mlxterp.sae.feature_store.jobs import blocks
from mlxterp.sae.feature_store.store import FeatureStore, load_store
from tests.sae.feature_store.stores import TEXTS, random_sae, same
from tests.tiny_models import ByteTokenizer, tiny_module

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = TEXTS * 8
BATCH = 16
N_BLOCKS = len(blocks(DOCUMENTS, BATCH))


def build(
    path: Path | None, *, texts=DOCUMENTS, d_sae: int = 24, hidden_size: int = 32, progress=None, **options
) -> FeatureStore:
    module = tiny_module("llama", hidden_size=hidden_size)
    model = InterpretableModel(module, ByteTokenizer(), verify=False)
    options = {"context": 16, "batch_tokens": BATCH} | options
    return build_store(model, random_sae(d_sae), texts, path=path, progress=progress, **options)


def child(path: str, stop: str, n_texts: int) -> None:
    """What the other process runs: it says when it is at `stop`, and waits to be killed or told to go on."""

    def wait() -> None:
        sys.stdout.write("here\n")
        sys.stdout.flush()
        sys.stdin.readline()

    def progress(_: str) -> None:
        done.append(1)
        if stop == f"block {len(done)}":
            wait()

    done: list[int] = []
    write, discard = FeatureStore.write, store_module.discard
    if stop == "half of the store is written":

        def half(store: FeatureStore, folder: Path) -> None:
            (folder / "tokens.npy").write_bytes(b"half")
            wait()
            write(store, folder)

        FeatureStore.write = half  # type: ignore[method-assign]
    if stop == "the store is in its place":

        def before(at: Path) -> None:
            wait()
            discard(at)

        store_module.discard = before
    try:
        build(Path(path), texts=DOCUMENTS[:n_texts], progress=progress)
    except StoreError as problem:
        sys.stdout.write(f"{problem}\n")


@contextmanager
def another_process(path: Path, stop: str, *, n_texts: int = len(DOCUMENTS)) -> Iterator[subprocess.Popen]:
    """A process that builds the store and stands still at `stop`; it is killed at the end of the block."""
    program = (
        f"from tests.sae.feature_store.test_resume import child; child({str(path)!r}, {stop!r}, {n_texts})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "here\n"
            yield process
        finally:
            process.kill()


def goes_on(process: subprocess.Popen) -> str:
    """Lets the other process finish; what it says."""
    said, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 0
    return said


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def alone() -> FeatureStore:
    """The store, built in one go and kept nowhere."""
    return build(None)


def test_after_kill_9_the_finished_blocks_are_not_made_again(alone, tmp_path):
    with another_process(tmp_path / "store", "block 3"):
        pass
    (unfinished,) = tmp_path.iterdir()
    assert len(files(unfinished)) == 3 < N_BLOCKS

    resumed = build(tmp_path / "store")

    assert same(resumed, alone)
    assert same(load_store(tmp_path / "store"), alone)
    assert resumed.facts == alone.facts
    assert 0 < resumed.forwards < alone.forwards
    assert files(tmp_path) == ["store"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["half of the store is written", "the store is in its place"])
def test_kill_9_at_the_end_loses_nothing(alone, tmp_path, stop):
    with another_process(tmp_path / "store", stop):
        pass

    resumed = build(tmp_path / "store")

    assert resumed.forwards == 0
    assert same(load_store(tmp_path / "store"), alone)
    assert files(tmp_path) == ["store"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["block 2", "half of the store is written", "the store is in its place"])
def test_two_processes_on_one_path_leave_one_whole_store(alone, tmp_path, stop):
    with another_process(tmp_path / "store", stop) as process:
        here = build(tmp_path / "store")
        said = goes_on(process)

    assert same(here, alone)
    assert same(load_store(tmp_path / "store"), alone)
    assert said == ""
    assert files(tmp_path) == ["store"]


@pytest.mark.slow
@pytest.mark.parametrize("stop", ["block 2", "half of the store is written"])
def test_of_two_processes_with_other_texts_the_second_is_refused(alone, tmp_path, stop):
    with another_process(tmp_path / "store", stop, n_texts=30) as process:
        here = build(tmp_path / "store")
        said = goes_on(process)

    assert "was made of something else: texts_digest differs" in said
    assert same(here, alone)
    assert same(load_store(tmp_path / "store"), alone)
    assert files(tmp_path) == ["store"]


def test_a_build_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(SAEError, match="reads d_in"):
        build(tmp_path / "store", hidden_size=48)

    assert files(tmp_path) == []


class Stopped(Exception):
    """Of a progress callable: the build ends here."""


def stopped_after(n: int):
    done: list[str] = []

    def progress(line: str) -> None:
        done.append(line)
        if len(done) == n:
            raise Stopped

    return progress


@pytest.mark.parametrize(
    "other",
    [{"texts": DOCUMENTS[::-1]}, {"d_sae": 23}, {"context": 17}, {"batch_tokens": 17}, {"outlier": 9.0}],
)
def test_blocks_of_something_else_are_not_mixed_in(alone, tmp_path, other):
    with pytest.raises(Stopped):
        build(tmp_path / "store", progress=stopped_after(3), **other)

    made = build(tmp_path / "store")

    assert same(made, alone)
    assert made.forwards == alone.forwards
    assert files(tmp_path) == ["store"]


def test_a_build_that_was_interrupted_says_the_same_and_goes_on_over_threads(alone, tmp_path):
    with pytest.raises(Stopped):
        build(tmp_path / "store", progress=stopped_after(2))
    lines: list[str] = []

    with ThreadPoolExecutor(3) as executor:
        resumed = build(tmp_path / "store", progress=lines.append, executor=executor)

    assert same(resumed, alone)
    assert len(lines) == N_BLOCKS
    assert lines[-1] == f"features of {len(DOCUMENTS)} of {len(DOCUMENTS)} texts"


def flipped(data: bytes) -> bytes:
    """With one bit changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda data: b"", lambda data: data[:-20]])
def test_a_damaged_block_is_made_again(alone, tmp_path, damage):
    with pytest.raises(Stopped):
        build(tmp_path / "store", progress=stopped_after(2))
    (unfinished,) = tmp_path.iterdir()
    for block in unfinished.iterdir():
        block.write_bytes(damage(block.read_bytes()))

    made = build(tmp_path / "store")

    assert same(made, alone)
    assert made.forwards == alone.forwards
