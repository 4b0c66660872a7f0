"""What the `result` of a log entry holds: the analyses in it, and its plain numbers as a reader sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from mlxterp.results.base import is_result
from mlxterp.text import clip, typeset

_DEEPEST = 6
_MOST_NUMBERS, _MOST_ITEMS, _LONGEST_TEXT, _LONGEST_NAME = 40, 8, 80, 120
_NO_NUMBERS = ("step", "error", "traceback", "printed")
_NONFINITE = {"NaN": "n/a", "Infinity": "infinity", "-Infinity": "−infinity"}


def analyses(value: Any, where: str = "result", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every analysis inside plain values, outermost first: where it stands, and what `to_dict` wrote."""
    if is_result(value):
        yield where, value
    elif depth < _DEEPEST and isinstance(value, Mapping):
        for key, item in value.items():
            yield from analyses(item, f"{where}.{key}", depth + 1)
    elif depth < _DEEPEST and isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from analyses(item, f"{where}[{i}]", depth + 1)


def named_numbers(result: Mapping[str, Any], *, most: int = _MOST_NUMBERS) -> Iterator[tuple[str, str]]:
    """The plain values that an entry reports, at most `most`, as (name, text).

    Those under "numbers" if there are any, else those at the top; nested names are joined, analyses and long
    texts left out.
    """
    if is_result(result):
        return
    named = result.get("numbers")
    others = {key: value for key, value in result.items() if key not in _NO_NUMBERS}
    yield from islice(_values(named if isinstance(named, Mapping) else others), most)


def _values(source: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for key, value in source.items():
        name = clip(f"{path} {str(key).replace('_', ' ')}".strip(), _LONGEST_NAME)
        if isinstance(value, Mapping):
            if depth < _DEEPEST and not is_result(value):
                yield from _values(value, name, depth + 1)
        elif isinstance(value, (list, tuple)):
            texts = [_value_text(each) for each in value[: _MOST_ITEMS + 1]]
            if len(texts) <= _MOST_ITEMS and None not in texts:
                yield name, ", ".join(map(str, texts)) or "none"
        elif (text := _value_text(value)) is not None:
            yield name, text


def _value_text(value: Any) -> str | None:
    """A single value as a reader sees it; None for what is too long for a table of numbers."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return _NONFINITE.get(value, value) if len(value) <= _LONGEST_TEXT else None
    return typeset(value) if isinstance(value, (bool, int, float)) else None
