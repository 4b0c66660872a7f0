"""Plain values: any value of an experiment to JSON and back, and the numbers inside a plain result.

What is written can be read, and what is read means only one thing. Lives here: making any value plain, a
strict reader of one line, counting and comparing a result's numbers. Does not live here: the fields of a line
(`entry.py`), the file (`log.py`), what follows from the numbers (`keep_rule.py`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import sys
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from pathlib import PurePath
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from mlxterp.statistics.duplicates import ResultNumbers, result_numbers

MAX_LINE = 4_000_000
"""Bytes of one line, line feed included. A longer one is not parsed."""

MAX_DEPTH = 64
"""How deep values may be nested when written; a line read may be four times as deep."""

NONFINITE = ("NaN", "Infinity", "-Infinity")

NOT_MEASURED = frozenset({"measured_on", "labels", "duration_seconds", "seconds"})
"""Keys whose numbers describe the measurement and are not its outcome."""

_MAX_PATHS = 20
_MAX_INT_BITS = 1024
_REPR = reprlib.Repr()
_REPR.maxother = 1000


class LineError(ValueError):
    """What is wrong with a line, as the end of a sentence that names the line."""


@dataclasses.dataclass(frozen=True)
class Plain:
    """A value in JSON's own types, and the paths inside it that could not be carried over as they were."""

    value: Any
    nonfinite: tuple[str, ...] = ()
    unserialisable: tuple[str, ...] = ()
    omitted: tuple[str, ...] = ()

    def flags(self) -> dict[str, list[str]]:
        """What the entry's metadata says about this value: only the lists that are not empty."""
        lists = {"nonfinite": self.nonfinite, "unserialisable": self.unserialisable, "omitted": self.omitted}
        return {name: _shortened(paths) for name, paths in lists.items() if paths}


def plain(value: Any, path: str = "") -> Plain:
    """`value` in dicts with string keys, lists, strings, finite numbers, booleans and None.

    numpy and mlx values, dataclasses and results of analyses become what they hold. NaN and the infinities
    become the strings of `NONFINITE`; what has no JSON form becomes its repr. Both are reported by path,
    neither is an error: a log that refuses an odd value loses the experiment that produced it.
    """
    walk = _Walk()
    return Plain(walk.convert(value, path), tuple(walk.nonfinite), tuple(walk.unserialisable))


class _Walk:
    def __init__(self) -> None:
        self.nonfinite: list[str] = []
        self.unserialisable: list[str] = []
        self._open: list[int] = []
        # A value can only be of one of these libraries' types if the library is loaded; importing them to
        # find out would cost seconds, and mlx must stay out of the supervisor.
        self._numpy = sys.modules.get("numpy")
        self._mlx = sys.modules.get("mlx.core")
        self._results = sys.modules.get("mlxterp.results")

    def convert(self, value: Any, path: str) -> Any:
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Enum):
            return self.convert(value.value, path)
        if isinstance(value, str):
            return clean_text(str.__str__(value))
        if isinstance(value, int):
            return (
                int(value) if value.bit_length() <= _MAX_INT_BITS else self._as_text(value, path, hex(value))
            )
        if isinstance(value, float):
            return self._number(float(value), path)
        if self._numpy is not None and isinstance(value, (self._numpy.generic, self._numpy.ndarray)):
            return self._from_numpy(self._numpy, value, path)
        if isinstance(value, PurePath):
            return clean_text(str(value))
        return self._compound(value, path)

    def _compound(self, value: Any, path: str) -> Any:
        if id(value) in self._open or len(self._open) >= MAX_DEPTH:
            return self._as_text(value, path)
        self._open.append(id(value))
        try:
            if self._mlx is not None and isinstance(value, self._mlx.array):
                return self.convert(value.tolist(), path)
            if self._results is not None and isinstance(value, self._results.AnalysisResult):
                return self.convert(value.to_dict(), path)
            if isinstance(value, Mapping):
                return self._mapping(value, path)
            if isinstance(value, (list, tuple, range)):
                return [self.convert(item, f"{path}[{i}]") for i, item in enumerate(value)]
            if isinstance(value, Set):
                return [
                    self.convert(item, f"{path}[{i}]") for i, item in enumerate(sorted(value, key=_REPR.repr))
                ]
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
                return self._mapping(fields, path)
            return self._as_text(value, path)
        finally:
            self._open.pop()

    def _from_numpy(self, numpy: ModuleType, value: Any, path: str) -> Any:
        if isinstance(value, numpy.ndarray):
            items = value.tolist()
            simple = value.dtype.kind in "biu" or (value.dtype.kind == "f" and value.dtype.itemsize <= 8)
            if simple and bool(numpy.isfinite(value).all()):
                return items
            return self.convert(items, path) if value.ndim == 0 else self._compound(items, path)
        if isinstance(value, numpy.bool_):
            return bool(value)
        if isinstance(value, numpy.integer):
            return int(value)
        if isinstance(value, numpy.floating):
            return self._number(float(value), path)
        return self._as_text(value, path)

    def _mapping(self, value: Mapping[Any, Any], path: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = self._key(key)
            while name in result:
                name += "'"
            result[name] = self.convert(item, f"{path}.{name}" if path else name)
        return result

    def _key(self, key: Any) -> str:
        if isinstance(key, tuple):
            return ",".join(self._key(part) for part in key)
        if key is None or isinstance(key, (str, bool, int, float)):
            return clean_text(str(key))
        # A hook point or a numpy number is known by its own text, "L9.z" or "3".
        return clean_text(str(key)[: _REPR.maxother])

    def _number(self, number: float, path: str) -> float | str:
        if math.isfinite(number):
            return number
        self.nonfinite.append(path)
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"

    def _as_text(self, value: Any, path: str, text: str | None = None) -> str:
        self.unserialisable.append(path)
        return clean_text(_REPR.repr_instance(value, 1) if text is None else text[: _REPR.maxother])


def clean_text(text: str) -> str:
    """`text`, with half surrogate pairs written out: no UTF-8 file can hold them."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encode_object(value: Mapping[str, Any]) -> bytes:
    """One line, line feed included: ASCII, keys in the given order, no bare NaN."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"


def decode_object(line: bytes) -> dict[str, Any]:
    """The JSON object in these bytes. LineError for anything that another reader could take for something
    else: bare NaN or infinity, a number too large, a key given twice, invalid UTF-8, half a surrogate pair,
    depth, length.
    """
    if len(line) > MAX_LINE:
        raise LineError(f"it has {len(line):,} bytes, and a line may have {MAX_LINE:,}")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise LineError(f"byte {problem.start + 1} is not UTF-8") from None
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_duplicates
        )
    except RecursionError:
        raise LineError(f"it is nested deeper than {4 * MAX_DEPTH} levels") from None
    except json.JSONDecodeError as problem:
        raise LineError(f"it is not JSON: {problem.msg} at character {problem.pos + 1}") from None
    except LineError:
        raise
    except ValueError:
        raise LineError("it holds an integer of thousands of digits") from None
    if type(value) is not dict:
        raise LineError(f"it is a JSON {_JSON_NAMES[type(value)]}, and an object is needed")
    if ("\\ud" in text or "\\uD" in text) and not is_utf8(json.dumps(value, ensure_ascii=False)):
        raise LineError("it holds half of a surrogate pair, which is no text")
    if text.count("[") + text.count("{") > 4 * MAX_DEPTH and _depth(value) > 4 * MAX_DEPTH:
        raise LineError(f"it is nested deeper than {4 * MAX_DEPTH} levels")
    return value


_JSON_NAMES = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _refuse_constant(name: str) -> NoReturn:
    raise LineError(f'it holds a bare {name}; non-finite numbers are written as the string "{name}"')


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise LineError(f"it holds {digits[:40]}, which no 64-bit number can hold")
    return number


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise LineError(f"the key {twice!r} is given twice")
    return result


def is_utf8(text: str) -> bool:
    """Whether a UTF-8 file can hold this text: half a surrogate pair has no encoding."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        deepest = max(deepest, level)
        children = item.values() if type(item) is dict else item if type(item) is list else ()
        waiting += [(child, level + 1) for child in children if type(child) in (dict, list)]
    return deepest


def _shortened(paths: tuple[str, ...]) -> list[str]:
    if len(paths) <= _MAX_PATHS:
        return list(paths)
    return [*paths[:_MAX_PATHS], f"and {len(paths) - _MAX_PATHS} more"]


class Counted(NamedTuple):
    """How many numbers a result holds, and how many of them are NaN or infinite."""

    total: int
    nonfinite: int


def count(result: Any) -> Counted:
    """Counts the numbers of a plain result, including the strings that stand for non-finite ones."""
    every = list(numbers(result))
    return Counted(len(every), sum(isinstance(number, str) for number in every))


def compared(result: Any) -> ResultNumbers:
    """A result's numbers as they are compared with those of another, whatever their names."""
    return result_numbers(float(each) for each in numbers(result))


def numbers(value: Any) -> Iterator[int | float | str]:
    """The outcome's numbers, depth first; NaN and infinities as strings, no booleans and no other strings."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)) or (isinstance(value, str) and value in NONFINITE):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in NOT_MEASURED:
                yield from numbers(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers(item)
