"""What a report says about the evidence: held-out effects, what is open, what to do next. From the log alone.

Lives here: the numbers of the closing line, retractions, failed predictions, forecasts against verdicts, what
needs a person, and the next experiments. Does not live here: one entry (`items.py`), where it stands on the
page (`investigation.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlxterp.autointerpret.entry import CLOSING
from mlxterp.results.views import Bars, Component, bars
from mlxterp.text import clip, number

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

MOST_NEXT = 5
_DECIDED = ("supported", "refuted", "ruled_out")
_MOST_EFFECTS = 24


def is_closing(entry: ExperimentEntry) -> bool:
    """Whether a line reports no experiment, and shows the held-out numbers of others."""
    return (entry.record or {}).get("verdict") == CLOSING


def held_out_numbers(entries: Iterable[ExperimentEntry]) -> dict[str, Mapping[str, Any]]:
    """By the id of an entry, what was measured of it on held-out pairs; empty before the closing line."""
    found: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        shown = entry.result.get("held_out") if is_closing(entry) else None
        if isinstance(shown, Mapping):
            found |= {str(name): each for name, each in shown.items() if isinstance(each, Mapping)}
    return found


def held_out_sentence(numbers: Mapping[str, Any] | None, declared: Mapping[str, Any]) -> str:
    """The effect with its interval, its clusters, and what it is held against; "" without numbers."""
    if numbers is None or not isinstance(numbers.get("effect"), (int, float)):
        return ""
    text = f"Held-out effect {number(numbers['effect'])}"
    if isinstance(numbers.get("low"), (int, float)) and isinstance(numbers.get("high"), (int, float)):
        text += f", interval {number(numbers['low'])} to {number(numbers['high'])}"
    text += f", on {numbers.get('n')} independent clusters that no experiment saw"
    if isinstance(declared.get("sesoi"), (int, float)):
        text += f"; the smallest effect of interest is {number(declared['sesoi'])}"
    if isinstance(numbers.get("bar"), (int, float)) and numbers.get("placebos"):
        text += f", and {numbers['placebos']} placebos set a bar of {number(numbers['bar'])}"
    return text + "."


def effects_figure(
    entries: Sequence[ExperimentEntry], numbers: Mapping[str, Mapping[str, Any]]
) -> Bars | None:
    """The held-out effects of what was decided, with their intervals: the picture of the first page."""
    shown: list[Component] = []
    for entry in entries:
        measured, record = numbers.get(entry.experiment_id), entry.record or {}
        if measured is None or record.get("verdict") not in _DECIDED:
            continue
        values = [
            float(value)
            for name in ("effect", "low", "high")
            if isinstance(value := measured.get(name), (int, float)) and math.isfinite(value)
        ]
        if len(values) == 3:
            effect, low, high = values
            label = f"{entry.experiment_id} {_what(record.get('declared') or {})}"
            shown.append(Component(label, effect, ci=(low, high)))
    if not shown:
        return None
    return bars(
        shown[:_MOST_EFFECTS],
        title="Effects on held-out pairs",
        unit="share of the gap",
        reading="Lines are intervals at the level of each claim. 0 is no effect, 1 the whole difference.",
        accented=len(shown),
    )


def _what(declared: Mapping[str, Any]) -> str:
    """What was intervened on, in a word or two: bars have room for no more."""
    sites = [str(site) for site in declared.get("site") or ()]
    return re.sub(r"\.z\.h(\d+)", r".H\1", sites[0]) if len(sites) == 1 else f"{len(sites)} sites"


def retractions(entries: Iterable[ExperimentEntry]) -> dict[str, str]:
    """The ids of findings that a later line overturned, with the id of that line."""
    found: dict[str, str] = {}
    for entry in entries:
        for name in ((entry.record or {}).get("relations") or {}).get("retracts", ()):
            found[str(name)] = entry.experiment_id
    return found


def failed_predictions(entries: Iterable[ExperimentEntry]) -> tuple[str, ...]:
    """What was stated before a run and did not come: numbers outside their interval, and verdicts that the
    forecast gave less than one chance in four. A sentence each."""
    lines = []
    for entry in entries:
        record = entry.record or {}
        for each in (record.get("predicted") or {}).get("numbers") or ():
            if isinstance(each, Mapping) and each.get("held") is False:
                lines.append(
                    f"{entry.experiment_id}: {clip(str(each.get('name')), 80)} was predicted within "
                    f"{_shown(each.get('interval'))} and came out as {_shown(each.get('measured'))}."
                )
        verdict, forecast = str(record.get("verdict")), (record.get("declared") or {}).get("forecast") or {}
        if verdict in _DECIDED and forecast.get(verdict, 1.0) < 0.25:
            came = verdict.replace("_", " ")
            lines.append(
                f"{entry.experiment_id} came out as {came}, which its forecast gave "
                f"{number(forecast[verdict], 2)}: {clip(entry.conclusion, 200)}"
            )
    return tuple(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_shown(each) for each in value)}]"
    return number(value) if isinstance(value, (int, float)) else clip(str(value), 60)


def calibration(entries: Iterable[ExperimentEntry]) -> str:
    """How the forecasts of declared claims compare with their verdicts, as a sentence; "" without any."""
    given: list[float] = []
    for entry in entries:
        record = entry.record or {}
        forecast = (record.get("declared") or {}).get("forecast") or {}
        if record.get("verdict") in _DECIDED and record["verdict"] in forecast:
            given.append(float(forecast[record["verdict"]]))
    if not given:
        return ""
    bits = sum(-math.log2(max(each, 2**-10)) for each in given) / len(given)
    return (
        f"{len(given)} forecasts gave what happened a probability of {number(sum(given) / len(given), 2)} on "
        f"average: {number(bits, 2)} bits of surprise each, where guessing among three outcomes has 1.58."
    )


def needs_a_person(entries: Sequence[ExperimentEntry]) -> tuple[str, ...]:
    """What only a person can put right, a sentence each."""
    verdicts = [str((entry.record or {}).get("verdict") or "") for entry in entries]
    reasons = [
        str(reason) for entry in entries for reason in (entry.record or {}).get("reasons") or () if reason
    ]
    found = []
    broken = verdicts.count("invalid:contract")
    if broken:
        found.append(
            f"{broken} experiments changed what they may not change: read what they did below, before you "
            "continue."
        )
    if "invalid:instrument" in verdicts:
        found.append(
            "The behaviour could not be measured: setup.py's prompts or metric need your eye before claims "
            "can be decided."
        )
    few = next((reason for reason in reasons if "independent clusters, setup.py has" in reason), None)
    if few is not None:
        found.append(f"Claims stayed open for want of prompts ({clip(few, 120)}): add pairs to setup.py.")
    if any("held-out pairs are spent" in reason for reason in reasons):
        found.append("The held-out pairs are spent: add pairs, or a confirm_pairs(n, seed), to setup.py.")
    for name, by in retractions(entries).items():
        found.append(f"{name} is retracted: {by} measured the opposite.")
    return tuple(found)


def next_experiments(entries: Sequence[ExperimentEntry]) -> tuple[str, ...]:
    """At most five experiments that the log suggests: undecided claims, rivals, leads nobody declared."""
    found: dict[str, None] = {}
    for entry in reversed(entries):
        record = entry.record or {}
        if record.get("verdict") == "inconclusive":
            why = "; ".join(str(reason) for reason in record.get("reasons") or ())
            found[f"Decide {entry.experiment_id}, which is open: {clip(why, 200)}"] = None
    for entry in reversed(entries):
        record = entry.record or {}
        if record.get("tier") == "finding" and record.get("verdict") == "supported":
            for rival in (record.get("declared") or {}).get("rivals") or ():
                found[f"Test the rival of {entry.experiment_id}: {clip(str(rival), 200)}"] = None
    declared = {
        str(site)
        for entry in entries
        for site in ((entry.record or {}).get("declared") or {}).get("site") or ()
    }
    for entry in entries:
        if (entry.record or {}).get("tier") == "lead" and not declared:
            found[f"Declare what {entry.experiment_id} suggests: {clip(entry.conclusion, 200)}"] = None
    return tuple(list(found)[:MOST_NEXT])
