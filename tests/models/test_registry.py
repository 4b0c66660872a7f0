import json
import shutil
from collections import namedtuple

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ModelNotFound, SlowWeights
from mlxterp.models import precision
from tests.tiny_models import SIZES, tiny_module

WORDS = {word: i for i, word in enumerate(["<unk>", "the", "cat", "sat"])}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A 4-bit llama as mlx-lm stores it."""
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "head_dim": 32, "intermediate_size": 64}
    module = tiny_module("llama", **sizes)
    nn.quantize(module, group_size=32, bits=4)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(module.parameters())))
    quantization = {"group_size": 32, "bits": 4}
    config = {"model_type": "llama", **SIZES, **sizes, "quantization": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder, module


@pytest.mark.usefixtures("pinned_threads")
def test_a_directory_in_mlx_lms_format_loads_with_its_tokenizer_and_all_hook_points(saved):
    folder, module = saved

    with pytest.warns(SlowWeights):
        model = InterpretableModel(str(folder), quantized=True)

    assert model.to_tokens("the cat sat").tolist() == [[1, 2, 3]]
    assert model.to_single_token("cat") == 2
    assert [name for name, c in model.capabilities.items() if not c.available] == []
    assert mx.array_equal(model.logits([1, 2, 3]), module(mx.array([[1, 2, 3]])))


def test_the_same_weights_have_the_same_digest_wherever_they_come_from(saved):
    folder, module = saved

    with pytest.warns(SlowWeights):
        kept = InterpretableModel(str(folder), quantized=True)

    assert kept.digest == InterpretableModel(module).digest


def test_the_toy_needs_nothing_but_the_package():
    model = InterpretableModel("toy-induction")

    assert model.name == "toy-induction"
    assert model.n_layers == 2
    assert not model.capabilities["mlp_out"].available


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "/nowhere/at/all"])
def test_an_unknown_name_is_an_error_that_says_what_needs_no_download(name):
    with pytest.raises(
        ModelNotFound, match=r"smollm2-135m, gemma3-270m, toy-induction.*'toy-induction' needs no download"
    ):
        InterpretableModel(name)


def test_an_unreachable_hub_id_is_an_error_that_says_what_was_tried(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(
        ModelNotFound, match=r"tried the Hugging Face hub id.*needs access to huggingface\.co"
    ):
        InterpretableModel("nobody/nothing")


def test_a_directory_that_holds_no_model_says_what_is_needed(tmp_path):
    with pytest.raises(ModelNotFound, match=r"tried the directory.*needs config\.json"):
        InterpretableModel(str(tmp_path))


def test_a_gguf_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ModelNotFound, match=r"nothing\.gguf"):
        InterpretableModel(str(tmp_path / "nothing.gguf"))


def test_without_a_gpu_quantised_weights_become_float32_with_the_same_logits(saved):
    folder, module = saved
    said = []

    model = InterpretableModel(str(folder), progress=said.append)

    kinds = {value.dtype for _, value in tree_flatten(model.model.parameters())}
    assert kinds == {mx.float32}
    expected = module(mx.array([[1, 2, 3]]))  # the fixture's scales are float32
    assert mx.abs(model.logits([1, 2, 3]) - expected).max() <= 1e-4 * mx.abs(expected).max()
    assert model.facts["weights"] == "float32, stored in 4-bit"
    assert [line for line in said if "from 4-bit to float32: 0.0 GB of" in line]


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_without_a_gpu_16_bit_weights_become_float32_with_the_same_values(saved, tmp_path, dtype):
    shutil.copytree(saved[0], tmp_path / "half")
    original = tiny_module("llama")
    original.set_dtype(dtype)
    weights = dict(tree_flatten(original.parameters()))
    mx.save_safetensors(str(tmp_path / "half" / "model.safetensors"), weights)
    (tmp_path / "half" / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))

    model = InterpretableModel(str(tmp_path / "half"))

    found = dict(tree_flatten(model.model.parameters()))
    assert {value.dtype for value in found.values()} == {mx.float32}
    assert all(mx.array_equal(found[name], value.astype(mx.float32)) for name, value in weights.items())


@pytest.mark.parametrize("options", [{"quantized": True}, {"dtype": mx.bfloat16}])
def test_weights_that_are_kept_as_they_are_come_with_a_warning_of_their_cost(saved, options):
    with pytest.warns(SlowWeights, match=r"keeps its weights in 4-bit.*, as asked.*slower than float32"):
        model = InterpretableModel(str(saved[0]), **options)

    assert isinstance(model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)


def test_without_memory_for_float32_the_weights_stay_and_the_warning_says_how_much_is_missing(
    saved, monkeypatch
):
    free = namedtuple("free", "available")(1_000)
    monkeypatch.setattr(precision.psutil, "virtual_memory", lambda: free)

    with pytest.warns(
        SlowWeights, match=r"would take 0\.0 GB, 0\.0 GB while they are converted, and 0\.0 GB are free"
    ):
        model = InterpretableModel(str(saved[0]))

    assert isinstance(model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)


def test_on_a_gpu_the_weights_stay_as_they_are_stored(saved, monkeypatch):
    monkeypatch.setattr(precision, "computes_on_cpu", lambda: False)

    model = InterpretableModel(str(saved[0]))

    assert isinstance(model.model.layers[0].mlp.up_proj, nn.QuantizedLinear)


def test_the_size_in_float32_is_known_from_shapes(saved):
    folder, module = saved
    stored = precision.storage(module)

    converted = InterpretableModel(str(folder)).model

    assert stored.says == "4-bit"
    assert stored.float32_bytes == sum(value.nbytes for _, value in tree_flatten(converted.parameters()))
    assert precision.storage(converted) == ("float32", stored.float32_bytes)


def test_progress_is_told_what_is_loaded(saved):
    told = []

    InterpretableModel(str(saved[0]), progress=told.append)

    assert [line for line in told if "mlx-lm" in line]
