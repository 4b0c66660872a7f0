"""Float32 weights in place of quantised and 16-bit ones, where MLX computes on a CPU.

MLX multiplies quantised and 16-bit matrices on a CPU by loops of its own, not by a BLAS: at the shape of
Llama 3.2 1B (4 bits, 2 cores of an AMD EPYC) a forward of 10 tokens takes 96 to 105 s, and 0.8 s with the
same weights in float32. So a model of mlx-lm is dequantised when it is loaded, if the memory allows. Does not
live here: GGUF files, which are read into float32 (`gguf.py`); measurements of 16-bit models
(`core/architecture/parts.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import psutil
from mlx.utils import tree_flatten

from mlxterp.errors import SlowWeights

ROOM = 1.25
"""Free memory that a conversion takes, in sizes of the float32 weights: the packed ones are there until its
end, and a run needs some."""

COST = (
    "Without a GPU MLX multiplies such weights by loops of its own: 10 to 100 times slower than float32 (at "
    "the shape of Llama 3.2 1B in 4 bits a forward of 10 tokens takes 100 s, and 0.8 s in float32)."
)


class Storage(NamedTuple):
    """How a model's weights are stored: in words, and how many bytes they would be in float32."""

    says: str
    float32_bytes: int

    @property
    def is_slow(self) -> bool:
        """Whether some of the weights are neither float32 nor integers."""
        return self.says != "float32"


def storage(module: nn.Module) -> Storage:
    """How the weights are stored, from shapes and types alone: nothing is loaded."""
    bits, size, kinds = set(), 0, set()
    packed: set[str] = set()
    for name, part in _packed_parts(module):
        bits.add(part.bits)
        size += 4 * part.weight.size * 32 // part.bits
        packed |= {f"{name}.{leaf}" for leaf in ("weight", "scales", "biases")}
    for path, value in tree_flatten(module.parameters()):
        if path not in packed and mx.issubdtype(value.dtype, mx.floating):
            size += 4 * value.size
            kinds.add(str(value.dtype).removeprefix("mlx.core."))
    named = [f"{b}-bit" for b in sorted(bits)] + sorted(
        kinds - {"float32"} if bits or len(kinds) > 1 else kinds
    )
    return Storage(" and ".join(named) or "float32", size)


def computes_on_cpu() -> bool:
    """Whether MLX's default device is a CPU."""
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def to_float32(module: nn.Module, name: str, progress: Callable[[str], None] | None) -> bool:
    """Makes the weights float32 in place if they are not and the memory allows; whether it did.

    Quantised weights are dequantised with float32 scales, so the logits are those of the quantised model
    within float32 rounding. Says through `progress` first what it takes; warns if the memory is too small.
    """
    stored = storage(module)
    if not stored.is_slow:
        return False
    needed, free = int(ROOM * stored.float32_bytes), psutil.virtual_memory().available
    size = _gb(stored.float32_bytes)
    if needed > free:
        warnings.warn(
            f"{name} keeps its weights in {stored.says}: as float32 they would take {size}, "
            f"{_gb(needed)} while they are converted, and {_gb(free)} are free. {COST}",
            SlowWeights,
            stacklevel=2,
        )
        return False
    if progress:
        progress(f"Converting {name} from {stored.says} to float32: {size} of {_gb(free)} that are free")
    from mlx_lm.utils import dequantize_model

    for _, part in _packed_parts(module):
        if mx.issubdtype(part.scales.dtype, mx.floating):
            part.scales = part.scales.astype(mx.float32)
            if part.biases is not None:
                part.biases = part.biases.astype(mx.float32)
    dequantize_model(module)
    module.set_dtype(mx.float32)
    mx.eval(module.parameters())
    return True


def warn_of_cost(module: nn.Module, name: str) -> None:
    """Warns that weights which were kept as they are make a CPU slow, if they do."""
    stored = storage(module)
    if stored.is_slow and computes_on_cpu():
        warnings.warn(
            f"{name} keeps its weights in {stored.says}, as asked. {COST} Leave quantized= and dtype= out to "
            "have them converted.",
            SlowWeights,
            stacklevel=2,
        )


def _packed_parts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The quantised layers by their paths."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear

    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
    return ((name, part) for name, part in module.named_modules() if isinstance(part, kinds))


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
