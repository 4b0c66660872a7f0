import json

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, models, pre_tokenizers

from mlxterp.core.model import InterpretableModel
from mlxterp.errors import ModelError, ModelNotFound
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

    model = InterpretableModel(str(folder))

    assert model.to_tokens("the cat sat").tolist() == [[1, 2, 3]]
    assert model.to_single_token("cat") == 2
    assert [name for name, c in model.capabilities.items() if not c.available] == []
    assert mx.array_equal(model.logits([1, 2, 3]), module(mx.array([[1, 2, 3]])))


def test_the_same_weights_have_the_same_digest_wherever_they_come_from(saved):
    folder, module = saved

    assert InterpretableModel(str(folder)).digest == InterpretableModel(module).digest


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


def test_quantised_weights_are_asked_for_only_where_there_is_a_choice(saved):
    with pytest.raises(ModelError, match="as it is stored"):
        InterpretableModel(str(saved[0]), quantized=True)


def test_progress_is_told_what_is_loaded(saved):
    told = []

    InterpretableModel(str(saved[0]), progress=told.append)

    assert [line for line in told if "mlx-lm" in line]
