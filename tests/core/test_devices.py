"""At load, a GPU whose logits are not the CPU's is refused. The GPU here is the CPU under another name."""

from __future__ import annotations

from contextlib import contextmanager

import mlx.core as mx
import pytest

from mlxterp.core import self_check
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import DeviceDisagrees, ModelError
from tests.tiny_models import ByteTokenizer, tiny_module


class Machine:
    """A machine whose default device calls itself a GPU, and multiplies logits by `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
        self.module = tiny_module("llama")
        self.in_cpu, self.cpu_runs = False, 0
        monkeypatch.setattr(self_check, "computing", lambda: mx.Device(mx.gpu, 0))
        monkeypatch.setattr(self_check, "on_cpu", self.on_cpu)
        own = type(self.module)

        def forward(module, *args, **kwargs):
            self.cpu_runs += self.in_cpu
            return own.__call__(module, *args, **kwargs) * (1.0 if self.in_cpu else error)

        self.module.__class__ = type("Model", (own,), {"__call__": forward, "__module__": own.__module__})

    @contextmanager
    def on_cpu(self):
        self.in_cpu = True
        try:
            yield
        finally:
            self.in_cpu = False


def test_a_gpu_that_computes_what_the_cpu_computes_is_used(monkeypatch):
    machine = Machine(monkeypatch, error=1.0)

    model = InterpretableModel(machine.module, ByteTokenizer())

    assert machine.cpu_runs == 1
    assert model.capabilities["unembedding"].available


@pytest.mark.parametrize("error", [1.01, -1.0, float("nan")])
def test_a_gpu_that_computes_something_else_is_refused_with_the_difference(monkeypatch, error):
    machine = Machine(monkeypatch, error)

    with pytest.raises(
        DeviceDisagrees, match=r"Device\(gpu, 0\) the logits of 5 tokens .*set_default_device"
    ) as e:
        InterpretableModel(machine.module, ByteTokenizer())

    assert isinstance(e.value, ModelError)


def test_rounding_is_no_disagreement_in_16_bits_but_is_in_32(monkeypatch):
    machine = Machine(monkeypatch, error=1.01)
    machine.module.set_dtype(mx.bfloat16)

    off = self_check.compare_devices(*asked(machine))

    assert 0 < off < self_check.TOLERANCE_HALF


def test_without_verification_nothing_is_compared(monkeypatch):
    machine = Machine(monkeypatch, error=2.0)

    InterpretableModel(machine.module, ByteTokenizer(), verify=False)

    assert machine.cpu_runs == 0


def test_on_a_cpu_nothing_is_compared_with_itself(tiny_llama):
    if self_check.computing().type == mx.cpu:
        assert self_check.compare_devices(tiny_llama.architecture, mx.array([[1, 2, 3]])) is None
    else:
        off = self_check.compare_devices(tiny_llama.architecture, mx.array([[1, 2, 3]]))
        assert off <= self_check.TOLERANCE


def asked(machine: Machine):
    model = InterpretableModel(machine.module, ByteTokenizer(), verify=False)
    return model.architecture, mx.array([[1, 2, 3, 4, 5]])
