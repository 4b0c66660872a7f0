"""Files of SAEs: read as their writers mean them, by numbers computed by hand; unknown ones refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxterp.errors import SAEFormatError
from mlxterp.sae import SAE, JumpRelu, Relu, TopK, load_sae, save_sae

W_ENC = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=np.float32)  # [d_in, d_sae]
W_DEC = np.array([[2.0, 0.0], [0.0, 1.0], [0.5, 0.0]], dtype=np.float32)  # [d_sae, d_out]
B_ENC = np.array([0.0, 0.0, -1.0], dtype=np.float32)
B_DEC = np.array([1.0, 0.0], dtype=np.float32)
X = mx.array([[3.0, 1.0]])
SKIP = np.array(
    [[0.0, 10.0], [1.0, 0.0]], dtype=np.float32
)  # [d_out, d_in]: 10 x1 to the first, x0 to the second
# pre-activations: of x − b_dec = [2, 1]: [2, 1, 2]; of x = [3, 1]: [3, 1, 3]


def saelens(folder: Path, arrays: dict[str, np.ndarray] | None = None, **config: Any) -> Path:
    weights = {"W_enc": W_ENC, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC} | (arrays or {})
    said = {"d_in": 2, "d_sae": 3, "apply_b_dec_to_input": True, "normalize_activations": "none"} | config
    said.setdefault("metadata", {"hook_name": "blocks.7.hook_resid_post", "model_name": "gpt2"})
    mx.save_safetensors(
        str(folder / "sae_weights.safetensors"), {name: mx.array(value) for name, value in weights.items()}
    )
    (folder / "cfg.json").write_text(json.dumps(said))
    return folder


def test_a_standard_saelens_sae_takes_the_bias_off_its_input(tmp_path):
    sae = load_sae(saelens(tmp_path, architecture="standard"))

    assert (sae.hook_point, sae.model) == ("L7.resid_post", "gpt2")
    assert sae.encode(X).tolist() == [[2.0, 1.0, 2.0]]
    assert sae.reconstruct(X).tolist() == [[6.0, 1.0]]  # 2·2 + 2·0.5 + 1, 1


def test_without_apply_b_dec_to_input_it_does_not(tmp_path):
    sae = load_sae(saelens(tmp_path, architecture="standard", apply_b_dec_to_input=False))

    assert sae.encode(X).tolist() == [[3.0, 1.0, 3.0]]


def test_topk_chooses_after_scaling_by_decoder_norms_if_the_file_says_so(tmp_path):
    plain = load_sae(saelens(tmp_path, architecture="topk", k=1, apply_b_dec_to_input=False, b=0))
    scaled = load_sae(
        saelens(
            tmp_path, architecture="topk", k=1, apply_b_dec_to_input=False, rescale_acts_by_decoder_norm=True
        )
    )

    assert (np.array(plain.encode(X)) > 0).sum() == 1
    assert scaled.encode(X).tolist() == [[6.0, 0.0, 0.0]]  # norms 2, 1, 0.5: 6, 1, 1.5
    assert scaled.reconstruct(X).tolist() == [[7.0, 0.0]]


def test_jumprelu_keeps_what_is_above_its_threshold(tmp_path):
    threshold = np.array([2.0, 0.5, 1.0], dtype=np.float32)
    sae = load_sae(saelens(tmp_path, {"threshold": threshold}, architecture="jumprelu"))

    assert sae.encode(X).tolist() == [[0.0, 1.0, 2.0]]


def test_batchtopk_is_read_with_its_threshold_and_refused_without(tmp_path):
    sae = load_sae(
        saelens(tmp_path, {"topk_threshold": np.array(1.5, dtype=np.float32)}, architecture="batchtopk")
    )
    assert sae.encode(X).tolist() == [[2.0, 0.0, 2.0]]

    with pytest.raises(SAEFormatError, match="depend on the batch"):
        load_sae(saelens(tmp_path, architecture="batchtopk"))


def test_a_skip_transcoder_reads_here_writes_there_and_passes_its_input_by(tmp_path):
    sae = load_sae(
        saelens(
            tmp_path,
            {"W_skip": SKIP},
            architecture="skip_transcoder",
            d_out=2,
            apply_b_dec_to_input=False,
            metadata={"hook_name": "blocks.2.hook_resid_mid", "hook_name_out": "blocks.2.hook_mlp_out"},
        )
    )

    assert (sae.hook_point, sae.hook_point_out) == ("L2.resid_mid", "L2.mlp_out")
    assert sae.encode(X).tolist() == [[3.0, 1.0, 3.0]]
    assert sae.reconstruct(X).tolist() == [[18.5, 4.0]]  # 6 + 1.5 + 1 + 10, 1 + 3


def test_sparsify_keeps_its_encoder_transposed_and_its_decoder_as_rows(tmp_path):
    folder = tmp_path / "layers.4"
    folder.mkdir()
    arrays = {"encoder.weight": W_ENC.T, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    mx.save_safetensors(
        str(folder / "sae.safetensors"), {n: mx.array(np.ascontiguousarray(a)) for n, a in arrays.items()}
    )
    (folder / "cfg.json").write_text(json.dumps({"k": 2, "d_in": 2, "normalize_decoder": True}))

    sae = load_sae(folder, model="pythia")

    assert sae.hook_point == "L4.resid_post"
    assert sae.encode(X).tolist() == [[2.0, 0.0, 2.0]]
    assert sae.reconstruct(X).tolist() == [[6.0, 0.0]]


def test_gemma_scope_leaves_the_bias_on_its_input(tmp_path):
    np.savez(
        tmp_path / "params.npz",
        W_enc=W_ENC,
        W_dec=W_DEC,
        b_enc=B_ENC,
        b_dec=B_DEC,
        threshold=np.full(3, 2.0, np.float32),
    )

    sae = load_sae(tmp_path / "params.npz", model="gemma-2-2b", hook_point="L20.resid_post")

    assert sae.encode(X).tolist() == [[3.0, 0.0, 3.0]]
    assert load_sae(tmp_path, hook_point="L20.resid_post").digest != sae.digest  # another model's name


def random_sae(activation: Any, **differs: Any) -> SAE:
    key = mx.random.key(0)
    parts = {
        "W_enc": mx.random.normal((6, 10), key=key),
        "b_enc": mx.random.normal((10,), key=key),
        "W_dec": mx.random.normal((10, 6), key=key),
        "b_dec": mx.random.normal((6,), key=key),
        "hook_point": "L1.z",
        "model": "m",
        "metadata": {"trained": {"tokens": 12}},
    }
    return SAE(activation=activation, **(parts | differs))


@pytest.mark.parametrize(
    "sae",
    [
        random_sae(Relu(), subtract_b_dec=True),
        random_sae(TopK(3)),
        random_sae(JumpRelu(mx.random.uniform(shape=(10,), key=mx.random.key(1)))),
        random_sae(TopK(2), hook_point_out="L1.mlp_out"),
        random_sae(
            Relu(),
            hook_point_out="L1.mlp_out",
            W_dec=mx.random.normal((10, 4), key=mx.random.key(2)),
            b_dec=mx.zeros(4),
            W_skip=mx.random.normal((6, 4), key=mx.random.key(3)),
        ),
    ],
    ids=["relu", "topk", "jumprelu", "transcoder", "skip transcoder"],
)
def test_what_is_saved_is_read_back_to_the_bit(sae, tmp_path):
    again = load_sae(save_sae(sae, tmp_path / "here"))

    assert again.digest == sae.digest
    assert dict(again.metadata) == {"trained": {"tokens": 12}}


def test_saelens_is_told_where_it_reads_and_writes(tmp_path):
    sae = random_sae(Relu(), hook_point="L1.resid_mid", hook_point_out="L1.mlp_out")

    said = json.loads((save_sae(sae, tmp_path) / "cfg.json").read_text())["metadata"]

    # Without the version, SAELens 6 drops the names (found by running it on such a file).
    assert said["sae_lens_version"].startswith("6.")
    assert (said["hook_name"], said["hook_name_out"]) == ("blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out")


@pytest.mark.parametrize(
    "sae",
    [
        random_sae(Relu(), hook_point_out="L1.mlp_out", subtract_b_dec=True),
        random_sae(TopK(2), subtract_b_dec=True, W_skip=mx.random.normal((6, 6), key=mx.random.key(4))),
        random_sae(Relu(), W_dec=mx.ones((10, 4)), b_dec=mx.zeros(4)),
    ],
    ids=["transcoder that takes b_dec off", "skip path at one place", "another width at one place"],
)
def test_what_saelens_has_no_place_for_is_read_back_here_too(sae, tmp_path):
    again = load_sae(save_sae(sae, tmp_path))

    assert again.digest == sae.digest
    assert again.hook_point_out == sae.hook_point_out


def test_bfloat16_takes_half_the_space_and_is_read_as_float32(tmp_path):
    sae = random_sae(TopK(3))
    exact, short = save_sae(sae, tmp_path / "a"), save_sae(sae, tmp_path / "b", dtype=mx.bfloat16)

    again = load_sae(short)

    sizes = [(folder / "sae_weights.safetensors").stat().st_size for folder in (exact, short)]
    assert sizes[1] < 0.75 * sizes[0]
    assert again.W_enc.dtype == mx.float32
    assert float(mx.abs(again.W_enc - sae.W_enc).max()) < 0.02


@pytest.mark.parametrize(
    ("config", "arrays", "says"),
    [
        ({"architecture": "abstopk"}, {}, "'abstopk' is not known here. Known: standard, topk"),
        ({"architecture": "gated"}, {}, "without b_gate, b_mag, r_mag"),
        ({"architecture": "jumprelu"}, {}, "without threshold. It holds W_dec, W_enc, b_dec, b_enc"),
        ({"architecture": "topk"}, {}, "has no 'k'"),
        ({"activation_fn": "topk"}, {}, "activation_fn_kwargs have no 'k'"),
        ({"architecture": "transcoder"}, {}, "apply_b_dec_to_input = True in a transcoder"),
        ({"d_sae": 4}, {}, r"W_enc \(2, 3\) and not \(2, 4\); b_enc"),
        ({"normalize_activations": "layer_norm"}, {}, "not for raw activations"),
        ({"normalize_activations": "expected_average_only_in"}, {}, "number that is not in the file"),
        ({"activation_fn": "tanh-relu"}, {}, "'tanh-relu' is not known here"),
        (
            {},
            {"scaling_factor": np.ones(3, np.float32)},
            r"\['scaling_factor'\], which a standard SAE does not have",
        ),
        ({}, {"threshold": np.ones(3, np.float32)}, r"\['threshold'\], which a standard SAE does not"),
        ({}, {"W_skip": SKIP}, r"\['W_skip'\], which a standard SAE does not have"),
        ({"metadata": {}}, {}, "Give hook_point= to load_sae"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused_and_named(tmp_path, config, arrays, says):
    with pytest.raises(SAEFormatError, match=says):
        load_sae(saelens(tmp_path, arrays, **config))


def test_a_config_without_a_width_says_so(tmp_path):
    folder = saelens(tmp_path, architecture="standard")
    (folder / "cfg.json").write_text(json.dumps({"architecture": "standard", "d_in": 2}))

    with pytest.raises(SAEFormatError, match="has no d_sae"):
        load_sae(folder)


def test_a_place_without_an_sae_says_what_is_there_and_what_can_be_read(tmp_path):
    (tmp_path / "ae.pt").touch()

    with pytest.raises(
        SAEFormatError, match=r"there is ae.pt. Read are: cfg.json with sae_weights.safetensors"
    ):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_the_name_of_their_array(tmp_path, name, bad):
    values = {"W_enc": W_ENC, "b_dec": B_DEC}[name].copy()
    values.flat[1] = bad

    with pytest.raises(SAEFormatError, match=rf"{name} holds 1 values of {values.size} that are NaN"):
        load_sae(saelens(tmp_path, {name: values}))


@pytest.mark.parametrize("out", [None, "L1.mlp_out"])
def test_a_skip_path_is_saved_with_the_width_it_writes(out, tmp_path):
    sae = random_sae(Relu(), hook_point_out=out, W_skip=mx.eye(6))

    config = json.loads((save_sae(sae, tmp_path) / "cfg.json").read_text())

    assert config["d_out"] == 6
