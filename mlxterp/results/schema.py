"""The JSON Schema of every kind of result, made from the dataclasses that define them.

Lives here: which annotation becomes which schema. Does not live here: the JSON itself (`base.py`,
`values.py`), the published file (`docs/reference/results.schema.json`, `python -m tests.regenerate_docs`).
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import SCHEMA, AnalysisResult, kinds, result_class

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NUMBER = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
_ARRAY = {
    "description": "A numpy array of float64: numbers, or arrays of one shape.",
    "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/array"}}, {"$ref": "#/$defs/number"}],
}
_FLAGS = {
    "description": "A numpy array of booleans: booleans, or arrays of one shape.",
    "anyOf": [{"type": "array", "items": {"$ref": "#/$defs/flags"}}, {"type": "boolean"}],
}
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"$ref": "#/$defs/number"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}


def json_schema(kind: str | None = None) -> dict[str, Any]:
    """What `to_json` writes, as JSON Schema 2020-12: of every kind, or of one.

    Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity". `measured_on` is open: what
    was measured says what it depends on.

    Raises:
        ResultError: an unknown kind.
    """
    known = [each for each in kinds() if result_class(each).__module__.startswith("mlxterp.")]
    if kind is not None and kind not in known:
        raise ResultError(f"no result kind {kind!r}. Kinds are: {', '.join(known)}. Ask for one of them.")
    definitions: dict[str, Any] = {"array": _ARRAY, "number": _NUMBER}
    definitions["result"] = {"anyOf": [{"$ref": f"#/$defs/{each}"} for each in known]}
    for each in known:
        definitions[each] = _of_kind(result_class(each), definitions)
    return {
        "$schema": _DRAFT,
        "title": SCHEMA if kind is None else f"{SCHEMA}: {kind}",
        "$ref": "#/$defs/result" if kind is None else f"#/$defs/{kind}",
        "$defs": dict(sorted(definitions.items())),
    }


def _of_kind(cls: type[AnalysisResult], definitions: dict[str, Any]) -> dict[str, Any]:
    made = _of_dataclass(cls, definitions)
    made["properties"] = {"kind": {"const": cls.kind}, "schema": {"const": SCHEMA}} | made["properties"]
    made["required"] = ["kind", "schema", *made["required"]]
    return made


def _of_dataclass(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Every field is written, so every field is required."""
    hints = typing.get_type_hints(cls)
    names = [each.name for each in dataclasses.fields(cls)]
    properties = {}
    for name in names:
        try:
            properties[name] = _of(hints[name], definitions)
        except LookupError as problem:
            raise ResultError(f"{cls.__qualname__}.{name}: {problem.args[0]}") from problem
    return {
        "description": " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
    }


def _of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(each, definitions) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is np.ndarray and get_args(arguments[1]) == (np.bool_,):
        definitions.setdefault("flags", _FLAGS)
        return {"$ref": "#/$defs/flags"}
    if origin is np.ndarray:
        return {"$ref": "#/$defs/array"}
    if origin is tuple and arguments[-1] is not Ellipsis:
        exact = [_of(each, definitions) for each in arguments]
        return {"type": "array", "prefixItems": exact, "minItems": len(exact), "maxItems": len(exact)}
    if origin in (tuple, list) or (isinstance(origin, type) and origin is Sequence):
        return {"type": "array", "items": _of(arguments[0], definitions)}
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1], definitions)}
    if isinstance(hint, type) and issubclass(hint, AnalysisResult):
        return {"$ref": "#/$defs/result"}
    if dataclasses.is_dataclass(hint):
        name = getattr(hint, "__name__", str(hint))
        if name not in definitions:
            definitions[name] = {}  # a field may name the class that it belongs to
            definitions[name] = _of_dataclass(hint, definitions)
        return {"$ref": f"#/$defs/{name}"}
    raise LookupError(f"mlxterp.results.schema knows no JSON for the annotation {hint!r}")
