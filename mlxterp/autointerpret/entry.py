"""One experiment as the log holds it: the guide's fields, and under supervision the evidence in `record`.

Lives here: the fields, their types, an entry as a line and back. Does not live here: the file (`log.py`), how
values become plain (`encoding.py`), when an entry is kept (`keep_rule.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mlxterp.autointerpret.encoding import MAX_LINE, Plain, clean_text, encode_object, plain
from mlxterp.errors import EntryError

REQUIRED = ("hypothesis", "method", "result", "informative", "conclusion")
FIELDS = (
    "experiment_id",
    "timestamp",
    "hypothesis",
    "method",
    "result",
    "informative",
    "conclusion",
    "duration_seconds",
    "metadata",
    "record",
)
"""The keys of a line of results.jsonl, in their order."""

CLOSING = "closing"
"""Verdict and method of the line that shows held-out numbers at the end of an investigation."""

_RESULT = 'a dict of names to values, as in {"effect": 0.82}'
_LONG_TEXT = 20_000
_WORTH_OMITTING = 200
# Room for the record that the supervisor adds to an entry that has already been made to fit.
_ROOM = MAX_LINE - 200_000


@dataclass(frozen=True)
class ExperimentEntry:
    """What was asked, what was done, what came out.

    Attributes:
        hypothesis, method, conclusion: texts.
        result: names to values. Values may be numpy or mlx arrays, results of analyses, nested dicts and
            lists; a result of an analysis may also be given itself. They become plain when the entry is
            logged.
        informative: whether the experiment shows something. By hand the researcher decides it; under
            supervision it is a claim, and the logged value is what the keep rule decided.
        duration_seconds: None when unknown.
        experiment_id: given by the log; "" until then, and while a supervisor has it.
        timestamp: seconds since 1970, given by the log when None.
        metadata: anything else. The log adds `nonfinite`, `unserialisable` and `omitted`:
            the paths of values that could not be written as they were.
        record: the supervisor's evidence; None when run by hand.

    Raises:
        EntryError: naming the field, the value and the type it must have.
    """

    hypothesis: str
    method: str
    result: dict[str, Any]
    informative: bool
    conclusion: str
    duration_seconds: float | None
    experiment_id: str = ""
    timestamp: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("hypothesis", "method", "conclusion", "experiment_id"):
            _expect(isinstance(getattr(self, name), str), name, getattr(self, name), "a text")
        self._set("informative", _as_bool(self.informative))
        for name in ("duration_seconds", "timestamp"):
            self._set(name, _as_seconds(name, getattr(self, name)))
        _expect(isinstance(self.metadata, Mapping), "metadata", self.metadata, "a dict")
        if not isinstance(self.result, Mapping):
            converted = plain(self.result, "result")
            _expect(isinstance(converted.value, dict), "result", self.result, _RESULT)
            self._set("metadata", _flagged(self.metadata, converted.flags()))
            self._set("result", converted.value)
        _expect(
            self.record is None or isinstance(self.record, Mapping), "record", self.record, "a dict or None"
        )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def plain(self) -> ExperimentEntry:
        """This entry in JSON's own types, small enough for a line; what was changed is in its metadata."""
        result, metadata = plain(self.result, "result"), plain(self.metadata, "metadata")
        record = None if self.record is None else plain(self.record).value
        entry = replace(
            self,
            hypothesis=clean_text(self.hypothesis),
            method=clean_text(self.method),
            conclusion=clean_text(self.conclusion),
            result=result.value,
            metadata=_flagged(_flagged(metadata.value, metadata.flags()), result.flags()),
            record=record,
        )
        return entry if len(encode_object(entry.to_dict())) <= _ROOM else _made_to_fit(entry)

    def to_dict(self) -> dict[str, Any]:
        """The fields in the log's order; `record` only if there is one."""
        values = {name: getattr(self, name) for name in FIELDS}
        if values["record"] is None:
            del values["record"]
        return values

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> ExperimentEntry:
        """The inverse of `to_dict`. Keys this version does not know are kept in `metadata["_extra"]`."""
        missing = [name for name in REQUIRED if name not in data]
        if missing:
            raise EntryError(f"an entry without {', '.join(map(repr, missing))}; it has {_listed(data)}.")
        known = {name: data[name] for name in FIELDS if name in data}
        known.setdefault("duration_seconds", None)
        if known.get("metadata") is None:
            known["metadata"] = {}
        extra = {name: value for name, value in data.items() if name not in FIELDS}
        if extra and isinstance(known["metadata"], Mapping):
            known["metadata"] = {**known["metadata"], "_extra": extra}
        return ExperimentEntry(**known)


def is_closing(entry: ExperimentEntry) -> bool:
    """Whether this line reports no experiment, and shows the held-out numbers of others."""
    return (entry.record or {}).get("verdict") == CLOSING


def retractions(entries: Iterable[ExperimentEntry]) -> dict[str, str]:
    """The ids of findings that a later line overturned, with the id of that line. No line is rewritten, so a
    retracted one still says what it said."""
    found: dict[str, str] = {}
    for entry in entries:
        for name in ((entry.record or {}).get("relations") or {}).get("retracts", ()):
            found[str(name)] = entry.experiment_id
    return found


def _expect(fits: object, name: str, value: Any, wanted: str) -> None:
    if not fits:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise EntryError(f"{name} is {shown}, a {type(value).__name__}. Give {wanted}.")


def _as_bool(value: Any) -> bool:
    converted = value if type(value) is bool else plain(value).value
    _expect(type(converted) is bool, "informative", value, "True or False")
    return bool(converted)


def _as_seconds(name: str, value: Any) -> float | None:
    number = value if type(value) is int else plain(value).value
    if number is None:
        return None
    _expect(
        type(number) in (int, float) and number >= 0,
        name,
        value,
        "seconds, a finite number from 0 up, or None",
    )
    return float(number)


def _listed(data: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, list(data)[:12])) if data else "no key at all"


def _flagged(metadata: Mapping[str, Any], flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """The metadata with these paths added to the flags it has already."""
    merged = dict(metadata)
    for name, paths in flags.items():
        before = merged.get(name)
        merged[name] = [*(before if isinstance(before, list) else []), *paths]
    return merged


def _made_to_fit(entry: ExperimentEntry) -> ExperimentEntry:
    """A plain entry cut to the length of a line: long texts end in "…", then the largest values are left out
    by name.
    """
    texts = {name: getattr(entry, name) for name in ("hypothesis", "method", "conclusion")}
    cut = {name: t if len(t) <= _LONG_TEXT else t[: _LONG_TEXT - 1] + "…" for name, t in texts.items()}
    values = {"result": entry.result, "metadata": entry.metadata}
    over = len(encode_object({**entry.to_dict(), **cut})) - _ROOM
    omitted: list[str] = []
    for leaf in sorted(_leaves(values, ""), key=lambda each: -each.size):
        if over <= 0 or leaf.size < _WORTH_OMITTING:
            break
        leaf.holder[leaf.name] = f"left out: {leaf.size:,} bytes, and a line of the log has {MAX_LINE:,}"
        omitted.append(leaf.path)
        over -= leaf.size - _WORTH_OMITTING
    if over > 0:
        values = {name: {} for name in values}
        omitted = ["result", "metadata"]
    metadata = _flagged(values["metadata"], Plain(None, omitted=tuple(omitted)).flags())
    return replace(entry, **cut, result=values["result"], metadata=metadata)


class _Leaf(NamedTuple):
    holder: dict[str, Any]
    name: str
    path: str
    size: int


def _leaves(values: dict[str, Any], path: str) -> Iterator[_Leaf]:
    """Everything inside nested dicts that is not a dict itself."""
    for name, value in values.items():
        below = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from _leaves(value, below)
        else:
            yield _Leaf(values, name, below, len(json.dumps(value)))
