"""What a report says about the evidence: held-out effects, what is open, what to do next. From the log alone.

Lives here: the numbers of the closing line, how many sites were searched, the gate, retractions, failed
predictions, forecasts against verdicts, what needs a person, and the next experiments; each number with its
source (`sourced.py`). Does not live here: one entry (`items.py`), the circuit (`circuit_sketch.py`), where it
stands on the page (`investigation.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, TypeGuard

from mlxterp.autointerpret.entry import is_closing, retractions
from mlxterp.reports.sourced import (
    NOTHING,
    Reference,
    Sentence,
    Sourced,
    counted,
    from_line,
    joined,
    plain_id,
    pointer,
    quoted,
    sentence,
)
from mlxterp.results.base import is_result
from mlxterp.results.views import Bars, Component, bars
from mlxterp.text import clip, decimals_of, fixed, number, percent, typeset

if TYPE_CHECKING:
    from mlxterp.autointerpret.entry import ExperimentEntry

MOST_NEXT = 5
_DECIDED = ("supported", "refuted", "ruled_out")
_MOST_EFFECTS = 24
_OUTCOMES = 3


@dataclass(frozen=True)
class HeldOut:
    """What was measured of one entry on held-out pairs: `numbers`, which stand in the closing line `line`."""

    line: str
    entry_id: str
    numbers: Mapping[str, Any]

    def at(self, *keys: str, text: str | None = None) -> Sourced | None:
        """A number of the measurement with its source; None if there is none."""
        found: Any = self.numbers
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not _finite(found):
            return None
        return from_line(self.line, "result", "held_out", self.entry_id, *keys, value=found, text=text)

    def end(self, name: str) -> Sourced | None:
        """The effect or an end of its interval, with the decimals that tell the ends apart."""
        value, low, high = (self.numbers.get(each) for each in (name, "low", "high"))
        decimals = decimals_of(low, high) if _finite(low) and _finite(high) else 2
        return self.at(name, text=fixed(value, decimals)) if _finite(value) else None


def held_out_numbers(entries: Iterable[ExperimentEntry]) -> dict[str, HeldOut]:
    """By the id of an entry, what was measured of it on held-out pairs; empty before the closing line."""
    found: dict[str, HeldOut] = {}
    for entry in entries:
        shown = entry.result.get("held_out") if is_closing(entry) else None
        for name, each in (shown if isinstance(shown, Mapping) else {}).items():
            if isinstance(each, Mapping):
                found[str(name)] = HeldOut(entry.experiment_id, str(name), each)
    return found


@dataclass(frozen=True)
class EffectMarks:
    """Where the marks of an effect's picture stand, in percent of its width.

    Attributes:
        effect, low, high, zero: the estimate, the ends of its interval, no effect.
        interest: the smallest effect of interest, on both sides of no effect where the scale reaches it.
        placebo: the band of effects up to the placebo bar, from and to; None without placebos.
    """

    effect: float
    low: float
    high: float
    zero: float
    interest: tuple[float, ...]
    placebo: tuple[float, float] | None


@dataclass(frozen=True)
class Evidence:
    """What a decided claim rests on, as sentences, and its picture."""

    effect: Sentence = NOTHING
    short: Sentence = NOTHING
    level: Sentence = NOTHING
    marks: EffectMarks | None = None


def evidence_of(
    entry: ExperimentEntry, held_out: HeldOut | None, scale: tuple[float, float] | None
) -> Evidence:
    """The held-out effect with its interval, its clusters, and what it is held against.

    Args:
        scale: the smallest and the largest number of the pictures of this page.
    """
    declared = (entry.record or {}).get("declared") or {}
    effect = None if held_out is None else held_out.end("effect")
    if held_out is None or effect is None:
        return Evidence()
    low, high, n = held_out.end("low"), held_out.end("high"), held_out.at("n")
    text, short = sentence("Held-out effect ", effect), sentence(effect)
    if low is not None and high is not None:
        text = sentence(text, ", interval ", low, " to ", high)
        short = sentence(short, ", interval ", low, " to ", high)
    if n is not None:
        text = sentence(text, ", on ", n, " independent clusters that no experiment saw")
    sesoi, bar, placebos = declared.get("sesoi"), held_out.at("bar"), held_out.at("placebos")
    if _finite(sesoi):
        smallest = from_line(entry.experiment_id, "record", "declared", "sesoi", value=sesoi)
        text = sentence(text, "; the smallest effect of interest is ", smallest)
    if bar is not None and placebos is not None and placebos.value:
        text = sentence(text, ", and ", placebos, " placebos set a bar of ", bar)
    level, look = held_out.at("level"), held_out.at("look")
    details = Sentence()
    if level is not None and look is not None:
        details = sentence("The interval is at the level ", level, ", which look ", look, " decided.")
    return Evidence(sentence(text, "."), short, details, _marks(held_out, sesoi, scale))


def scale_of(
    entries: Iterable[ExperimentEntry], numbers: Mapping[str, HeldOut]
) -> tuple[float, float] | None:
    """What the pictures of decided effects have to reach, with no effect among it; None without any."""
    every = [0.0]
    for entry, ends in _decided(entries, numbers):
        every += ends
        sesoi = ((entry.record or {}).get("declared") or {}).get("sesoi")
        every += [math.copysign(sesoi, ends[0])] if _finite(sesoi) else []
    return (min(every), max(every)) if len(every) > 1 else None


def _decided(
    entries: Iterable[ExperimentEntry], numbers: Mapping[str, HeldOut]
) -> Iterator[tuple[ExperimentEntry, tuple[float, float, float]]]:
    """The entries that were decided, each with effect, low and high end of its interval."""
    for entry in entries:
        held_out = numbers.get(entry.experiment_id)
        ends = None if held_out is None else _ends(held_out)
        if ends is not None and (entry.record or {}).get("verdict") in _DECIDED:
            yield entry, ends


def _ends(held_out: HeldOut) -> tuple[float, float, float] | None:
    """Effect, low and high end of its interval; None if one is missing."""
    effect, low, high = (held_out.numbers.get(name) for name in ("effect", "low", "high"))
    if _finite(effect) and _finite(low) and _finite(high):
        return float(effect), float(low), float(high)
    return None


def _marks(held_out: HeldOut, sesoi: Any, scale: tuple[float, float] | None) -> EffectMarks | None:
    ends = _ends(held_out)
    if scale is None or scale[0] == scale[1] or ends is None:
        return None
    low, high = scale

    def at(value: float) -> float:
        return round(2 + 96 * (min(max(value, low), high) - low) / (high - low), 2)

    bar = held_out.numbers.get("bar")
    return EffectMarks(
        effect=at(ends[0]),
        low=at(ends[1]),
        high=at(ends[2]),
        zero=at(0.0),
        interest=tuple(at(each) for each in (sesoi, -sesoi) if low <= each <= high) if _finite(sesoi) else (),
        placebo=(at(-abs(bar)), at(abs(bar))) if _finite(bar) else None,
    )


def effects_figure(entries: Sequence[ExperimentEntry], numbers: Mapping[str, HeldOut]) -> Bars | None:
    """The held-out effects of what was decided, with their intervals, for a page without inline pictures."""
    shown: list[Component] = []
    for entry, (effect, low, high) in _decided(entries, numbers):
        label = f"{entry.experiment_id} {_what((entry.record or {}).get('declared') or {})}"
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
    return site_label(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"


def site_label(site: str) -> str:
    """`L9.H6` for `L9.z.h6`; other sites as they are."""
    return re.sub(r"\.z\.h(\d+)", r".H\1", site)


def sites_searched(entries: Iterable[ExperimentEntry]) -> dict[str, Sentence]:
    """By the id of a declared claim: how many sites were measured while exploring, before it was declared."""
    found: dict[str, Sentence] = {}
    sizes: dict[str, list[tuple[str, int]]] = {}
    for entry in entries:
        if (entry.record or {}).get("declared"):
            if sizes:
                found[entry.experiment_id] = _searched(sizes)
            continue
        for field, size in _sweeps(entry.result):
            sizes.setdefault(field, []).append((entry.experiment_id, size))
    return found


def _searched(sizes: Mapping[str, Sequence[tuple[str, int]]]) -> Sentence:
    parts = []
    for field, found in sizes.items():
        total = sum(size for _, size in found)
        ids = tuple(plain_id(name) for name, _ in found)
        parts.append(Sourced(number(total), value=total, entries=ids, field=field, how="sum of sizes"))
    where = dict.fromkeys(name for found in sizes.values() for name, _ in found)
    return sentence(
        "Sites searched before it was declared: ",
        joined(parts, " and "),
        ", while exploring in ",
        joined([Reference(name) for name in where]),
        ".",
    )


def _sweeps(result: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The fields of a result that hold an effect for each of many sites, with how many."""
    inside = [((), result)] if is_result(result) else [((key,), each) for key, each in result.items()]
    for keys, each in inside:
        if isinstance(each, Mapping) and isinstance(each.get("effects"), list):
            yield pointer("result", *keys, "effects"), leaves(each["effects"])


def leaves(value: Any) -> int:
    """How many single values nested lists hold."""
    return sum(map(leaves, value)) if isinstance(value, list) else 1


def gate_sentence(entry: ExperimentEntry, held_out: HeldOut | None) -> Sentence:
    """Whether the behaviour is there to be explained, and that a model with shuffled weights lacks it."""
    if (entry.record or {}).get("checks", {}).get("positive_control") is not True:
        return Sentence()
    preference = None if held_out is None else _share(held_out, "gate", "model", "preference")
    t = None if held_out is None else held_out.at("gate", "model", "t")
    text = sentence("Gate passed: the behaviour is there on held-out pairs")
    if preference is not None:
        text = sentence(text, ", the answer is preferred in ", preference, " of runs")
    if t is not None:
        text = sentence(text, ", the gap is ", t, " standard errors from zero")
    twin = None if held_out is None else _share(held_out, "gate", "twin", "preference")
    if twin is not None:
        text = sentence(
            text, "; with shuffled weights the answer is preferred in ", twin, " and the gate fails"
        )
    return sentence(text, ".")


def _share(held_out: HeldOut, *keys: str) -> Sourced | None:
    found = held_out.at(*keys)
    return None if found is None or found.value is None else held_out.at(*keys, text=percent(found.value))


def failed_predictions(entries: Iterable[ExperimentEntry]) -> tuple[Sentence, ...]:
    """What was stated before a run and did not come: numbers outside their interval, and verdicts that the
    forecast gave less than one chance in four. A sentence each."""
    lines = []
    for entry in entries:
        record, name = entry.record or {}, entry.experiment_id
        for i, each in enumerate((record.get("predicted") or {}).get("numbers") or ()):
            if isinstance(each, Mapping) and each.get("held") is False:
                at = ("record", "predicted", "numbers", i)
                lines.append(
                    sentence(
                        Reference(name),
                        ": ",
                        quoted(name, *at, "name", text=clip(str(each.get("name")), 80)),
                        " was predicted within ",
                        _value(each.get("interval"), name, *at, "interval"),
                        " and came out as ",
                        _value(each.get("measured"), name, *at, "measured"),
                        ".",
                    )
                )
        verdict, forecast = str(record.get("verdict")), (record.get("declared") or {}).get("forecast") or {}
        if verdict in _DECIDED and forecast.get(verdict, 1.0) < 0.25:
            share = from_line(name, "record", "declared", "forecast", verdict, value=forecast[verdict])
            came = verdict.replace("_", " ")
            lines.append(
                sentence(
                    Reference(name),
                    f" came out as {came}, which its forecast gave ",
                    share,
                    ": ",
                    quoted(name, "conclusion", text=clip(entry.conclusion, 200)),
                )
            )
    return tuple(lines)


def _value(value: Any, entry_id: str, *keys: str | int) -> Sentence:
    if value is None:
        return sentence("nothing")
    if isinstance(value, (list, tuple)):
        inside = [_value(each, entry_id, *keys, i) for i, each in enumerate(value)]
        return sentence("[", joined(inside), "]")
    if _finite(value):
        return sentence(from_line(entry_id, *keys, value=value))
    return sentence(quoted(entry_id, *keys, text=clip(str(value), 60)))


def calibration(entries: Iterable[ExperimentEntry]) -> Sentence:
    """How the forecasts of declared claims compare with their verdicts, as a sentence; empty without any."""
    chances: dict[str, float] = {}
    for entry in entries:
        record = entry.record or {}
        forecast = (record.get("declared") or {}).get("forecast") or {}
        if record.get("verdict") in _DECIDED and record["verdict"] in forecast:
            chances[entry.experiment_id] = float(forecast[record["verdict"]])
    if not chances:
        return Sentence()
    mean = sum(chances.values()) / len(chances)
    bits = mean_bits(chances.values())
    at: dict[str, Any] = {
        "entries": tuple(map(plain_id, chances)),
        "field": pointer("record", "declared", "forecast"),
    }
    verb = "forecast" if len(chances) == 1 else "forecasts"
    better = "better" if bits < math.log2(_OUTCOMES) else "no better"
    return sentence(
        counted(list(chances)),
        f" {verb} gave what happened a probability of ",
        Sourced(typeset(mean, 2), value=mean, how="mean", **at),
        " on average: ",
        Sourced(typeset(bits, 2), value=bits, how="mean bits", **at),
        f" bits of surprise each, {better} than guessing evenly among the three outcomes.",
    )


def mean_bits(chances: Iterable[float]) -> float:
    """The mean surprise of what had these probabilities, at most ten bits each."""
    bits = [-math.log2(max(each, 2**-10)) for each in chances]
    return sum(bits) / len(bits)


def needs_a_person(entries: Sequence[ExperimentEntry]) -> tuple[Sentence, ...]:
    """What only a person can put right, a sentence each."""
    by_verdict: dict[str, list[str]] = {}
    reasons: list[tuple[str, int, str]] = []
    for entry in entries:
        record = entry.record or {}
        by_verdict.setdefault(str(record.get("verdict") or ""), []).append(entry.experiment_id)
        listed = record.get("reasons") or ()
        reasons += [(entry.experiment_id, i, str(reason)) for i, reason in enumerate(listed) if reason]
    found = []
    broken = by_verdict.get("invalid:contract")
    if broken:
        found.append(
            sentence(
                counted(broken),
                f" {'experiment' if len(broken) == 1 else 'experiments'} changed what they may not change: "
                "read what they did below, before you continue.",
            )
        )
    if "invalid:instrument" in by_verdict:
        found.append(
            sentence(
                "The behaviour could not be measured: setup.py's prompts or metric need your eye before "
                "claims can be decided."
            )
        )
    few = next((each for each in reasons if "independent clusters, setup.py has" in each[2]), None)
    if few is not None:
        name, i, text = few
        said = quoted(name, "record", "reasons", i, text=clip(text, 120))
        found.append(sentence("Claims stayed open for want of prompts (", said, "): add pairs to setup.py."))
    if any("held-out pairs are spent" in text for _, _, text in reasons):
        found.append(
            sentence("The held-out pairs are spent: add pairs, or a confirm_pairs(n, seed), to setup.py.")
        )
    for name, by in retractions(entries).items():
        found.append(sentence(Reference(name), " is retracted: ", Reference(by), " measured the opposite."))
    return tuple(found)


def next_experiments(entries: Sequence[ExperimentEntry]) -> tuple[Sentence, ...]:
    """At most five experiments that the log suggests: undecided claims, rivals of findings, predictions that
    failed, leads that nobody declared; one of each kind before the second of any."""
    kinds = (_undecided(entries), _rivals(entries), _unexplained(entries), _undeclared(entries))
    found: dict[str, Sentence] = {}
    for each in (one for row in zip_longest(*kinds) for one in row if one is not None):
        found.setdefault(str(each), each)
    return tuple(islice(found.values(), MOST_NEXT))


def _undecided(entries: Sequence[ExperimentEntry]) -> Iterator[Sentence]:
    for entry in reversed(entries):
        record = entry.record or {}
        if record.get("verdict") == "inconclusive":
            name = entry.experiment_id
            why = [
                quoted(name, "record", "reasons", i, text=clip(str(reason), 200))
                for i, reason in enumerate(record.get("reasons") or ())
            ]
            yield sentence("Decide ", Reference(name), ", which is open: ", joined(why, "; "))


def _rivals(entries: Sequence[ExperimentEntry]) -> Iterator[Sentence]:
    gone = retractions(entries)
    for entry in reversed([each for each in entries if each.experiment_id not in gone]):
        record = entry.record or {}
        if record.get("tier") in ("finding", "claim") and record.get("verdict") == "supported":
            name = entry.experiment_id
            for i, rival in enumerate((record.get("declared") or {}).get("rivals") or ()):
                said = quoted(name, "record", "declared", "rivals", i, text=clip(str(rival), 200))
                yield sentence("Test the rival of ", Reference(name), ": ", said)


def _unexplained(entries: Sequence[ExperimentEntry]) -> Iterator[Sentence]:
    for entry in reversed(entries):
        numbers = ((entry.record or {}).get("predicted") or {}).get("numbers") or ()
        if any(isinstance(each, Mapping) and each.get("held") is False for each in numbers):
            yield sentence(
                "Find out why ", Reference(entry.experiment_id), " came out otherwise than predicted."
            )


def _undeclared(entries: Sequence[ExperimentEntry]) -> Iterator[Sentence]:
    if any(((entry.record or {}).get("declared") or {}).get("site") for entry in entries):
        return
    for entry in entries:
        if (entry.record or {}).get("tier") == "lead":
            name = entry.experiment_id
            said = quoted(name, "conclusion", text=clip(entry.conclusion, 200))
            yield sentence("Declare what ", Reference(name), " suggests: ", said)


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
