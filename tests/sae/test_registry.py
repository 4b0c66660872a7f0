"""Ready SAEs by name: what is listed is what is there, with what it was trained on and where it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.errors import SAEError, SAEFormatError
from mlxterp.sae import available, load_named, load_sae

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


def scope_2(folder: Path, where: str, *, skip: bool = False, **config: object) -> Path:
    """A directory of Gemma Scope 2 as it is published, small."""
    at = folder / where
    at.mkdir(parents=True)
    random = np.random.default_rng(3)
    shapes = {"w_enc": (4, 8), "b_enc": (8,), "w_dec": (8, 4), "b_dec": (4,), "threshold": (8,)}
    shapes |= {"affine_skip_connection": (4, 4)} if skip else {}
    arrays = {name: mx.array(random.normal(size=shape).astype(np.float32)) for name, shape in shapes.items()}
    mx.save_safetensors(str(at / "params.safetensors"), arrays)
    written = {
        "hf_hook_point_in": "model.layers.9.output",
        "hf_hook_point_out": "model.layers.9.output",
        "model_name": "google/gemma-3-270m-pt",
        "architecture": "jump_relu",
        "width": 8,
        "l0": 3,
        "affine_connection": skip,
        "type": "sae",
    }
    (at / "config.json").write_text(json.dumps(written | config))
    return at


def test_gemma_scope_2_names_its_model_and_place_and_computes_with_its_arrays(tmp_path):
    at = scope_2(tmp_path, "gemma-scope-2-270m-pt/resid_post/layer_9_width_16k_l0_small")
    (tmp_path / "gemma-3-270m").mkdir()  # a model beside it: a config of another kind
    (tmp_path / "gemma-3-270m" / "config.json").write_text('{"model_type": "gemma3_text"}')

    found = [each for each in available(tmp_path) if each.format == "Gemma Scope 2"]
    (listed,) = found
    sae = load_named(listed.name, tmp_path)

    assert (listed.model, listed.reads, listed.writes) == ("gemma-3-270m", "L9.resid_post", None)
    assert (sae.model, sae.hook_point, sae.is_transcoder) == ("gemma-3-270m", "L9.resid_post", False)
    arrays = {name: np.array(a) for name, a in dict(mx.load(str(at / "params.safetensors"))).items()}
    x = np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32)
    pre = x @ arrays["w_enc"] + arrays["b_enc"]
    acts = np.where(pre > arrays["threshold"], np.maximum(pre, 0), 0)
    np.testing.assert_allclose(np.array(sae.encode(mx.array(x))), acts, atol=1e-6)
    expected = acts @ arrays["w_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(np.array(sae.reconstruct(mx.array(x))), expected, atol=1e-5)


def test_a_transcoder_of_gemma_scope_2_reads_what_the_mlp_reads_and_adds_its_linear_path(tmp_path):
    at = scope_2(
        tmp_path,
        "transcoder_all/layer_5_width_16k_l0_big_affine",
        skip=True,
        hf_hook_point_in="model.layers.5.pre_feedforward_layernorm.output",
        hf_hook_point_out="model.layers.5.post_feedforward_layernorm.output",
        type="transcoder",
    )

    sae = load_sae(at)

    assert sae.hook_point == "model.layers.5.pre_feedforward_layernorm"
    assert sae.hook_point_out == "L5.mlp_out"
    skip = np.array(dict(mx.load(str(at / "params.safetensors")))["affine_skip_connection"])
    x = mx.array(np.random.default_rng(4).normal(size=(5, 4)).astype(np.float32))
    by_path = np.array(sae.reconstruct(x)) - np.array(sae.decode(sae.encode(x)))
    np.testing.assert_allclose(by_path, np.array(x) @ skip, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [{"architecture": "topk"}, {"type": "clt"}, {"type": "crosscoder"}, {"affine_connection": True}],
    ids=["another architecture", "several layers written", "several layers read", "no linear path"],
)
def test_what_cannot_be_expressed_of_gemma_scope_2_is_refused(tmp_path, config):
    with pytest.raises(SAEFormatError):
        load_sae(scope_2(tmp_path, "layer_9", **config))


def test_a_place_of_gemma_scope_2_with_another_name_has_to_be_given(tmp_path):
    at = scope_2(tmp_path, "layer_9", hf_hook_point_in="model.layers.9.mlp.gate_proj.output")

    with pytest.raises(SAEFormatError, match="Give hook_point= to load_sae"):
        load_sae(at)
    assert load_sae(at, hook_point="L9.mlp_out").hook_point == "L9.mlp_out"


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
