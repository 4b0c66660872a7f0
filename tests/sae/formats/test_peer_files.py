"""SAEs as SAELens and sparsify write them give here what they give there; the rest is refused by name.

`tests/data/saes` was written by these packages (`tests/regenerate_sae_files.py`); `expected.npz` says by
which versions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.errors import SAEFormatError
from mlxterp.sae import SAE, JumpRelu, Relu, TopK, load_sae, save_sae

DATA = Path(__file__).parents[2] / "data" / "saes"
EXPECTED = {package: np.load(DATA / package / "expected.npz") for package in ("saelens", "sparsify")}
FOLDERS = [
    (package, name.rpartition(".")[0])
    for package, expected in EXPECTED.items()
    for name in sorted(expected.files)
    if name.endswith(".encoded")
]
REFUSALS = {
    "saelens/refused_abstopk": "the architecture 'abstopk' is not known here",
    "saelens/refused_matching_pursuit": "the architecture 'matching_pursuit' is not known here",
    "saelens/refused_layer_norm": "normalize_activations = 'layer_norm'.*each token is normalised by itself",
    "saelens/refused_constant_norm": "'constant_norm_rescale'.*each token is scaled to one norm",
    "saelens/refused_expected_average": "'expected_average_only_in'.*fold_activation_norm_scaling_factor",
    "sparsify/refused_groupmax": "the activation 'groupmax' is not known here",
}


def folder(package: str, name: str) -> Path:
    """sparsify's SAEs are in folders named after their place."""
    here = DATA / package / name
    return here if package == "saelens" else next(here.iterdir())


def read(package: str, name: str) -> SAE:
    said = {"hook_point": "L3.resid_mid", "hook_point_out": "L3.mlp_out"}
    asked = said if package == "sparsify" and "transcoder" in name else {}
    return load_sae(folder(package, name), **asked)


@pytest.mark.parametrize(("package", "name"), FOLDERS)
def test_what_another_package_wrote_gives_here_what_it_gives_there(package, name):
    expected = EXPECTED[package]
    x = mx.array(expected["x"])

    sae = read(package, name)

    np.testing.assert_allclose(np.array(sae.encode(x)), expected[f"{name}.encoded"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        np.array(sae.reconstruct(x)), expected[f"{name}.reconstructed"], rtol=1e-5, atol=2e-5
    )
    assert sae.hook_point == ("L3.resid_mid" if "transcoder" in name else "L3.resid_post")
    assert sae.hook_point_out == ("L3.mlp_out" if "transcoder" in name else None)


@pytest.mark.parametrize(("package", "name"), FOLDERS)
def test_what_another_package_wrote_is_the_same_after_being_saved_here(package, name, tmp_path):
    sae = read(package, name)

    assert load_sae(save_sae(sae, tmp_path)).digest == sae.digest


def test_every_folder_is_either_read_or_refused():
    there = {f"{p}/{entry.name}" for p in EXPECTED for entry in (DATA / p).iterdir() if entry.is_dir()}

    assert there == {f"{package}/{name}" for package, name in FOLDERS} | set(REFUSALS)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_meaning_on_raw_activations_is_refused_and_named(name):
    package, _, rest = name.partition("/")

    with pytest.raises(SAEFormatError, match=REFUSALS[name]) as refused:
        load_sae(folder(package, rest))

    assert any(advice in str(refused.value) for advice in ("Use this SAE with", "save again"))


def test_the_goldens_tell_conventions_apart():
    """Each convention changes what comes out, so that reading one as another would be seen."""
    saelens = EXPECTED["saelens"]
    sae = read("saelens", "topk_rescaled")
    as_plain = load_sae(folder("saelens", "topk"))

    norms = mx.linalg.norm(sae.W_dec, axis=1)
    np.testing.assert_allclose(np.array(norms), 1, atol=1e-5)
    assert (np.abs(np.array(mx.linalg.norm(as_plain.W_dec, axis=1)) - 1) > 0.1).any()
    assert [
        type(read("saelens", name).activation) for name in ("standard", "topk", "batchtopk", "gated")
    ] == [
        Relu,
        TopK,
        JumpRelu,
        JumpRelu,
    ]
    assert read("saelens", "standard").subtract_b_dec
    assert not read("saelens", "standard_b_dec_stays").subtract_b_dec
    for name in ("gated", "jumprelu", "batchtopk"):
        active = (saelens[f"{name}.encoded"] > 0).sum(axis=1)
        assert 0 < active.min() < 16, name


def test_a_checkpoint_of_a_batchtopk_training_holds_its_threshold_in_float64():
    raw = (folder("saelens", "batchtopk_checkpoint") / "sae_weights.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])

    assert header["topk_threshold"]["dtype"] == "F64"
    assert load_sae(folder("saelens", "batchtopk_checkpoint")).W_enc.dtype == mx.float32


@pytest.mark.parametrize("bytes_left", [40, -10])
def test_a_file_that_is_cut_short_says_so(bytes_left, tmp_path):
    shutil.copytree(folder("saelens", "topk"), tmp_path / "sae")
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:bytes_left])

    with pytest.raises(SAEFormatError, match="cut short"):
        load_sae(tmp_path / "sae")


def test_a_decoder_row_of_zeros_is_a_feature_that_never_fires(tmp_path):
    shutil.copytree(folder("saelens", "topk_rescaled"), tmp_path / "sae")
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    arrays = dict(mx.load(str(weights)))
    mx.eval(arrays)
    arrays["W_dec"] = arrays["W_dec"] * (mx.arange(16) != 5)[:, None]
    mx.save_safetensors(str(weights), arrays)

    sae = load_sae(tmp_path / "sae")

    x = mx.array(EXPECTED["saelens"]["x"])
    assert mx.isfinite(sae.reconstruct(x)).all()
    assert not (sae.encode(x)[:, 5] > 0).any()


@pytest.mark.parametrize("skipped", [True, False])
def test_a_skip_path_goes_with_what_the_config_says(skipped, tmp_path):
    shutil.copytree(folder("sparsify", "skip" if skipped else "topk"), tmp_path / "layers.3")
    config = json.loads((tmp_path / "layers.3" / "cfg.json").read_text())
    config["skip_connection"] = not skipped
    (tmp_path / "layers.3" / "cfg.json").write_text(json.dumps(config))

    with pytest.raises(SAEFormatError, match=r"\['W_skip'\] do not go with" if skipped else "without W_skip"):
        load_sae(tmp_path / "layers.3")
