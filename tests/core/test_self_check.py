"""The probe's outcome is kept for the same weights and code, and for nothing else."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest

from mlxterp.core import self_check
from mlxterp.core.architecture.parts import Capability
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SlowWeights, UnsupportedArchitecture
from mlxterp.models import toy
from tests.tiny_models import tiny_module


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLXTERP_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """Notes each time the probe is asked."""
    times: list[str] = []
    own = self_check.switch_off_what_fails
    monkeypatch.setattr(
        self_check, "switch_off_what_fails", lambda architecture: times.append("asked") or own(architecture)
    )
    return times


def files(home):
    return sorted((home / "probes").glob("*.json"))


def test_a_model_loaded_again_has_the_same_capabilities_without_being_asked(home, asked):
    first = InterpretableModel("toy-induction")
    second = InterpretableModel("toy-induction")

    assert asked == ["asked"]
    assert second.capabilities == first.capabilities
    assert second.capabilities["mlp_out"] == Capability(
        available=False, reason="a block has no MLP (layer 0)."
    )
    assert len(files(home)) == 1


def test_other_weights_are_asked_again(home, asked):
    model = InterpretableModel("toy-induction")
    with pytest.warns(SlowWeights):
        other = InterpretableModel("toy-induction", dtype=mx.float16)

    assert asked == ["asked"] * 2
    assert other.digest != model.digest
    assert len(files(home)) == 2


@pytest.mark.parametrize("what", ["_code_of_the_core", "_machine"])
def test_other_code_or_another_machine_is_asked_again(asked, monkeypatch, what):
    InterpretableModel("toy-induction")
    monkeypatch.setattr(self_check, what, lambda: "another")

    InterpretableModel("toy-induction")

    assert asked == ["asked"] * 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": "other"}', '{"schema": "mlxterp-probe/1"}'])
def test_a_file_that_is_none_of_ours_is_asked_again_and_replaced(home, asked, content):
    InterpretableModel("toy-induction")
    (file,) = files(home)
    file.write_text(content)

    InterpretableModel("toy-induction")

    assert asked == ["asked"] * 2
    assert json.loads(file.read_text())["capabilities"]["z"] == [True, ""]


def test_where_nothing_can_be_written_the_model_is_asked_each_time(home, asked):
    (home / "probes").write_text("a file where the directory would be")

    for _ in range(2):
        assert InterpretableModel("toy-induction").capabilities["z"].available

    assert asked == ["asked"] * 2


def test_a_module_of_ones_own_is_always_asked(home, asked):
    for _ in range(2):
        InterpretableModel(*toy.load())
    InterpretableModel("toy-induction", verify=False)

    assert asked == ["asked"] * 2
    assert files(home) == []


def test_a_type_that_mlx_cannot_compute_is_refused_with_one_that_it_can():
    with mx.stream(mx.cpu), pytest.raises(UnsupportedArchitecture, match=r"dtype=mx\.float32"):
        InterpretableModel(tiny_module("mixtral"), dtype=mx.bfloat16)  # no 16-bit experts on a CPU
