"""The bytes of a GGUF file: what it says of itself, and its tensors as numpy arrays in any quantisation.

Parsed here in one pass over a memory map; `gguf.GGUFReader` takes 16 s for a vocabulary of 262,144 tokens.
The formulas of every quantisation are the `gguf` package's. Does not live here: what the tensors are for
(`gguf.py`), the tokenizer (`tokenizer.py`). Knows no mlx.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlxterp.errors import ModelNotFound, UnsupportedArchitecture

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_VERSIONS = (2, 3)


class Tensor(NamedTuple):
    """One tensor as it lies in the file: its type's number, its shape, and its bytes by row."""

    kind: int
    shape: tuple[int, ...]
    data: np.ndarray[Any, np.dtype[np.uint8]]


class GgufFile(NamedTuple):
    """What a file says of itself, and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class _Cursor:
    """Values of the format, one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{count}{code}")
        found = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return found

    def text(self) -> str:
        (length,) = self.numbers("Q")
        found = self.data[self.at : self.at + length]
        if len(found) < length:
            raise ValueError("a text runs past the end of the file")
        self.at += length
        return found.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            (of,), (count,) = self.numbers("I"), self.numbers("Q")
            return (
                self.numbers(_NUMBERS[of], count)
                if of in _NUMBERS
                else [self.value(of) for _ in range(count)]
            )
        (found,) = self.numbers(_NUMBERS[kind])
        return found


def read(path: Path) -> GgufFile:
    """The file's metadata and tensors; tensors are views of a memory map, read when they are used.

    Raises:
        ModelNotFound: it is no GGUF file of version 2 or 3, or it ends too early.
        UnsupportedArchitecture: tensors of a type that the installed `gguf` package does not know.
    """
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:4] != b"GGUF":
            raise ValueError(f"it begins with {data[:4]!r}, and a GGUF file with b'GGUF'")
        cursor = _Cursor(data)
        cursor.at = 4
        (version,), (n_tensors, n_values) = cursor.numbers("I"), cursor.numbers("Q", 2)
        if version not in _VERSIONS:
            raise ValueError(f"it is of version {version}; read here are versions 2 and 3, little-endian")
        metadata = {cursor.text(): cursor.value(*cursor.numbers("I")) for _ in range(n_values)}
        entries = [_entry(cursor) for _ in range(n_tensors)]
    except (ValueError, KeyError, struct.error, OverflowError, OSError) as problem:
        raise ModelNotFound(
            f"{path} cannot be read as a GGUF file: {problem}. It is not whole, or no model "
            "file: get it again."
        ) from problem
    step = int(metadata.get("general.alignment", 32))
    start = (cursor.at + step - 1) // step * step
    return GgufFile(path, metadata, _tensors(path, np.frombuffer(data, np.uint8), start, entries))


class _Entry(NamedTuple):
    name: str
    shape: tuple[int, ...]  # as numpy has it: rows first
    kind: int
    offset: int


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.text()
    (n_axes,) = cursor.numbers("I")
    shape = cursor.numbers("Q", n_axes)[::-1]
    (kind,), (offset,) = cursor.numbers("I"), cursor.numbers("Q")
    return _Entry(name, shape, kind, offset)


def _tensors(path: Path, data: Any, start: int, entries: list[_Entry]) -> dict[str, Tensor]:
    sizes = _block_sizes()
    unknown = Counter(each.kind for each in entries if each.kind not in sizes)
    if unknown:
        raise UnsupportedArchitecture(
            f"{path.name} has {sum(unknown.values())} tensors of the types number "
            f"{', '.join(map(str, sorted(unknown)))}, which the installed gguf package does not know. "
            "`pip install -U gguf`, or load a file in another quantisation."
        )
    found = {}
    for name, shape, kind, offset in entries:
        block, size = sizes[kind]
        width = shape[-1] // block * size
        rows = int(np.prod(shape[:-1], dtype=np.int64))
        end = start + offset + rows * width
        if end > len(data):
            raise ModelNotFound(
                f"{path} cannot be read as a GGUF file: {name} runs past its end "
                f"({end:,} of {len(data):,} bytes). It is not whole: get it again."
            )
        found[name] = Tensor(kind, shape, data[start + offset : end].reshape(rows, width))
    return found


def _block_sizes() -> dict[int, tuple[int, int]]:
    """By the number of a type: weights in a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}


def type_name(kind: int) -> str:
    """`Q4_K` for 12."""
    from gguf.constants import GGMLQuantizationType

    return str(GGMLQuantizationType(kind).name)


def to_float32(tensor: Tensor, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The tensor's values.

    Raises:
        UnsupportedArchitecture: the gguf package cannot dequantise this type; names it.
    """
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, GGMLQuantizationType(tensor.kind))
    except NotImplementedError as problem:
        raise UnsupportedArchitecture(
            f"The tensor {name!r} is of the type {type_name(tensor.kind)}, which the gguf package cannot "
            "dequantise. Load a file in another quantisation, such as Q4_K_M, Q8_0 or F16."
        ) from problem
    return np.asarray(values, dtype=np.float32).reshape(tensor.shape)
