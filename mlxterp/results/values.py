"""Plain values and numpy arrays: what the fields of a result hold, and how they are read back from JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.shows import Flags, Floats

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_array(value: Any) -> Floats:
    """A read-only float64 array; "NaN", "Infinity" and "-Infinity" become the numbers they name."""
    if type(value).__module__.split(".")[0] == "mlx":
        raise ResultError(
            "a result was given an mlx array. Results hold numpy and plain values, so that they outlive the "
            "model and load without mlx. Convert first: np.array(x.astype(mx.float32))."
        )
    if not isinstance(value, np.ndarray):
        value = _numbers(value)
    result = np.array(value, dtype=np.float64)
    result.flags.writeable = False
    return result


def to_flags(value: Any) -> Flags:
    """A read-only array of booleans; anything else than booleans is refused."""
    result = np.array(value)
    if result.dtype != np.bool_:
        raise ResultError(
            f"a field of booleans was given values of type {result.dtype}. Give True or False for each entry."
        )
    result.flags.writeable = False
    return result


def to_number(value: Any) -> float:
    """A float; the three strings for non-finite numbers become the numbers they name."""
    return float(_NONFINITE[value] if isinstance(value, str) and value in _NONFINITE else value)


def to_texts(value: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(item) for item in value)


def to_label_map(value: Mapping[str, Sequence[Any]]) -> dict[str, tuple[str, ...]]:
    return {str(axis): to_texts(labels) for axis, labels in value.items()}


def to_index_map(value: Mapping[str, Sequence[Any]]) -> dict[str, tuple[int, ...]]:
    return {str(axis): tuple(int(i) for i in indices) for axis, indices in value.items()}


def to_array_map(value: Mapping[str, Any]) -> dict[str, Floats]:
    return {str(name): to_array(item) for name, item in value.items()}


def to_number_map(value: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): to_number(item) for name, item in value.items()}


def _numbers(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return to_number(value)


def plain(value: Any, where: str = "value") -> Any:
    """The value in dicts, lists, strings, numbers, booleans and None; refuses others, naming where."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    raise ResultError(
        f"{where} holds a {type(value).__module__}.{type(value).__name__}. A result holds numpy arrays and "
        "plain values; convert it first (for an mlx array: np.array(x.astype(mx.float32)))."
    )


def json_safe(value: Any) -> Any:
    """Plain values with non-finite numbers as the strings "NaN", "Infinity" and "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_safe(item) for item in value]
    return value


def converted(convert: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """Metadata of a field whose value passes through `convert`, also when read back; None stays None."""
    return {"convert": convert}


PLAIN = converted(plain)
ARRAY = converted(to_array)
FLAGS = converted(to_flags)
NUMBER = converted(to_number)
TEXTS = converted(to_texts)
LABEL_MAP = converted(to_label_map)
INDEX_MAP = converted(to_index_map)
ARRAY_MAP = converted(to_array_map)
NUMBER_MAP = converted(to_number_map)
