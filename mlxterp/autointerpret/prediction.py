"""The number that an experiment predicts before it runs, and what became of it.

    PREDICTION = {"name": "L1.H1", "value": 0.8, "interval": [0.6, 1.0]}

A literal at the top level of experiment.py, read and registered like a HYPOTHESIS before anything runs; a
list of them predicts several. `name` is that of a number which the experiment will log, in `result` or in
`result["numbers"]`; the interval is where it lies with 90 % probability.

Lives here: reading it, and comparing it with an entry. Does not live here: what follows for a verdict
(`keep_rule.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxterp.autointerpret.contract import digest
from mlxterp.autointerpret.encoding import clean_text
from mlxterp.autointerpret.literals import assigned, excerpt, parse_module, read_literal, refuse

NAME = "PREDICTION"
EXAMPLE = 'PREDICTION = {"name": "L1.H1", "value": 0.8, "interval": [0.6, 1.0]}'
COVERAGE = 0.9
"""The probability that a researcher gives to its interval."""

_FIELDS = ("name", "value", "interval")
_MOST = 8


@dataclass(frozen=True)
class Prediction:
    """A number that an entry is to hold, and the 90 % interval around it."""

    name: str
    value: float
    low: float
    high: float

    def compare(self, result: Mapping[str, Any]) -> ComparedPrediction | None:
        """The prediction beside what an entry's `result` says; None if it does not say this number."""
        found = _number(result, self.name)
        return None if found is None else ComparedPrediction(self, found)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "interval": [self.low, self.high]}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Prediction:
        low, high = data["interval"]
        return Prediction(str(data["name"]), float(data["value"]), float(low), float(high))


@dataclass(frozen=True)
class ComparedPrediction:
    """A prediction and what was measured; NaN where the number was logged and is not finite."""

    prediction: Prediction
    measured: float

    @property
    def held(self) -> bool:
        """Whether the number lies in the interval."""
        return self.prediction.low <= self.measured <= self.prediction.high


def read_predictions(source: bytes) -> tuple[Prediction, ...]:
    """The predictions that this module states; empty if it states none.

    Raises:
        DeclarationError: naming the line, what stands there and what to write.
    """
    found = assigned(parse_module(source), NAME, EXAMPLE)
    if found is None:
        return ()
    value = read_literal(found.value, NAME)
    listed = value if isinstance(value, list) else [value]
    if not 0 < len(listed) <= _MOST:
        refuse(found.line, f"{NAME} lists {len(listed)} predictions. Write 1 to {_MOST}, as in {EXAMPLE}.")
    read = tuple(_read(each, found.line, excerpt(found.value)) for each in listed)
    names = [each.name for each in read]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        refuse(found.line, f"{NAME} predicts {twice!r} twice. Predict each number once.")
    return read


def predictions_digest(predictions: Sequence[Prediction]) -> str:
    """The sha256 by which predictions are registered."""
    return digest(json.dumps([each.to_dict() for each in predictions], sort_keys=True).encode())


def compare_predictions(
    predictions: Sequence[Prediction], results: Sequence[Mapping[str, Any]], entry: int
) -> list[dict[str, Any]]:
    """What an entry's line says of the predictions: each with `measured` and `held`.

    A prediction belongs to the first entry that holds its number; one that no entry holds has failed, and
    belongs to the first: a number that was predicted and then not logged is no success.

    Args:
        results: the `result` of every entry of the run.
        entry: the index of the entry that is asked about.
    """
    lines = []
    for each in predictions:
        compared = [(i, found) for i, result in enumerate(results) if (found := each.compare(result))]
        where, found = compared[0] if compared else (0, None)
        if where == entry:
            lines.append(
                {
                    **each.to_dict(),
                    "measured": None if found is None else found.measured,
                    "held": found is not None and found.held,
                }
            )
    return lines


def _read(value: Any, line: int, shown: str) -> Prediction:
    if not isinstance(value, Mapping) or set(value) != set(_FIELDS):
        refuse(line, f"{NAME} is {shown}. Its fields are name, value and interval: write {EXAMPLE}.")
    name, number, interval = (value[field] for field in _FIELDS)
    if not isinstance(name, str) or not name.strip() or clean_text(name) != name:
        refuse(line, f"{NAME} has the name {name!r}. Name a number that will be logged, as in {EXAMPLE}.")
    if not isinstance(interval, (list, tuple)) or len(interval) != 2 or not all(map(_is_finite, interval)):
        refuse(line, f"{NAME} has the interval {interval!r}. Write two numbers, as in {EXAMPLE}.")
    if not _is_finite(number) or not interval[0] <= number <= interval[1]:
        refuse(
            line,
            f"{NAME} has the value {number!r} for the interval {list(interval)!r}. Write a number inside its "
            f"interval, as in {EXAMPLE}.",
        )
    return Prediction(name, float(number), float(interval[0]), float(interval[1]))


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _number(result: Mapping[str, Any], name: str) -> float | None:
    numbers = result.get("numbers")
    for holder in (numbers if isinstance(numbers, Mapping) else {}, result):
        value = holder.get(name)
        if isinstance(value, bool):
            return float(value)
        if isinstance(value, (int, float)):
            return float(value)
        if value in ("NaN", "Infinity", "-Infinity"):
            return math.nan
    return None
