"""Ready SAEs by name: what is listed is what is there, with what it was trained on and where it reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from mlxterp.errors import SAEError
from mlxterp.sae import available, load_named

SAES = Path(__file__).parent.parent / "data" / "saes"


@pytest.fixture
def shelf(tmp_path):
    """A directory with SAELens's files, a transcoder, and Gemma Scope's."""
    shutil.copytree(SAES / "saelens" / "topk", tmp_path / "some" / "topk")
    shutil.copytree(SAES / "saelens" / "transcoder", tmp_path / "transcoder")
    scope = tmp_path / "gemma-scope-2b-pt-res" / "layer_20" / "width_16k" / "average_l0_71"
    scope.mkdir(parents=True)
    arrays = {"W_enc": (4, 8), "b_enc": (8,), "W_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    np.savez(scope / "params.npz", **{name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    return tmp_path


def test_the_bundled_one_says_what_it_was_trained_on_and_where_it_reads():
    (bundled,) = available()

    assert (bundled.name, bundled.model, bundled.reads) == ("smollm2-135m", "smollm2-135m", "L15.resid_post")
    assert bundled.trained_on == "1,040,935 tokens of Brown, Austen"
    assert load_named("smollm2-135m").d_sae == 1024
    assert "trained on 1,040,935 tokens of Brown, Austen (mlxterp)" in str(bundled)


def test_every_sae_below_a_directory_is_listed_and_can_be_loaded(shelf):
    found = {each.name: each for each in available(shelf)}

    scope = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"
    assert sorted(found) == sorted(["smollm2-135m", "some/topk", "transcoder", scope])
    assert found["some/topk"].format == "SAELens"
    assert found["transcoder"].writes is not None
    assert (found[scope].model, found[scope].reads) == ("gemma-2-2b", "L20.resid_post")
    sae = load_named(scope, shelf)
    assert (sae.d_sae, sae.model, sae.hook_point) == (8, "gemma-2-2b", "L20.resid_post")
    assert load_named("some/topk", shelf).d_sae > 0


def test_directories_come_from_the_environment(shelf, monkeypatch):
    monkeypatch.setenv("MLXTERP_SAES", str(shelf))

    assert "transcoder" in {each.name for each in available()}


def test_what_is_not_there_is_refused_with_what_is(shelf):
    with pytest.raises(SAEError, match="There are: smollm2-135m, "):
        load_named("another", shelf)
    with pytest.raises(SAEError, match="no such directory"):
        available(shelf / "nowhere")
    unnamed = shelf / "plain"
    shutil.copytree(next(shelf.glob("gemma*/*/*/*")), unnamed)
    assert "an unnamed place (give hook_point=)" in str({e.name: e for e in available(shelf)}["plain"])
