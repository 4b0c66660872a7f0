"""Plain values and numpy arrays: what the fields of a result hold, and how they are read back from JSON.

A field's annotation says how a given value is converted: `Floats` becomes a read-only array, `float` a number
(also from "NaN"), `tuple[int, ...]` a tuple of ints, a tuple of dataclasses a tuple of these dataclasses.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias, Union, get_args, get_origin

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.views import Flags, Floats

_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
Converter: TypeAlias = Callable[[Any], Any]


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


def _numbers(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_numbers(item) for item in value]
    return to_number(value)


@cache
def converters(cls: type) -> Mapping[str, Converter]:
    """By field of a dataclass, what makes the value that it holds; fields that take any value are left out.

    `metadata={"convert": function}` of a field takes the place of what its annotation says.
    """
    try:
        hints = typing.get_type_hints(cls)
    except NameError as problem:
        raise ResultError(
            f"the fields of {cls.__qualname__} cannot be read: {problem}. Annotations say how fields are "
            "converted, so import what they name at the top of the module, also at run time."
        ) from problem
    found: dict[str, Converter] = {}
    for each in dataclasses.fields(cls):
        convert = each.metadata.get("convert") or _converter(hints[each.name], each.name)
        if convert is not None:
            found[each.name] = convert
    return found


def _converter(hint: Any, where: str) -> Converter | None:
    """What an annotation makes of a value that is not None; None if it stays as it is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is float:
        return to_number
    if origin is np.ndarray:
        return to_flags if get_args(arguments[1]) == (np.bool_,) else to_array
    if origin in (Union, types.UnionType):
        others = [each for each in arguments if each is not type(None)]
        return _converter(others[0], where) if len(others) == 1 else None
    if origin is tuple and arguments[-1] is Ellipsis:
        item = _item(arguments[0], where)
        return lambda value: tuple(map(item, value))
    if origin is tuple:
        items = [_item(each, where) for each in arguments]
        return lambda value: tuple(convert(each) for convert, each in zip(items, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if arguments[1] is Any:
            return lambda value: plain(value, where)
        item = _item(arguments[1], where)
        return lambda value: {str(name): item(each) for name, each in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: _record(hint, value)
    return None


def _item(hint: Any, where: str) -> Converter:
    """The same for the items of a tuple or a mapping, where words and whole numbers are converted too."""
    if hint in (int, str):
        return hint  # type: ignore[no-any-return]
    return _converter(hint, where) or (lambda value: value)


def _record(cls: type, value: Any) -> Any:
    """A dataclass from its fields by name, or from another one of its class."""
    data = dict(vars(value) if isinstance(value, cls) else value)
    for name, convert in converters(cls).items():
        if data.get(name) is not None:
            data[name] = convert(data[name])
    return cls(**data)


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
