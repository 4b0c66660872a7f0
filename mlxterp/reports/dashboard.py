"""A dashboard of SAE features: one page that holds them all, to search, sort and read without a network.

Lives here: the plain values that a feature's entry shows, the page made of them. Does not live here: where
they come from (`mlxterp.auto_interp.dashboard`), the script that sets them (`templates/dashboard.js`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxterp.errors import ResultError
from mlxterp.reports import page as pages
from mlxterp.text import number, percent, visible

Weighted = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Excerpt:
    """A few tokens of a text with the feature's activation at each; `peak` is where it is strongest."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int
    place: str = ""


@dataclass(frozen=True)
class Examples:
    """Excerpts under one heading: the strongest ones, or those of one part of the feature's activations."""

    title: str
    excerpts: tuple[Excerpt, ...]


@dataclass(frozen=True)
class Accuracy:
    """A balanced accuracy on held-out text, with its interval, and the area under the ROC curve if known."""

    name: str
    value: float
    low: float
    high: float
    auroc: float | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureEntry:
    """What the page shows of one feature.

    Attributes:
        feature_id: its index in the SAE.
        label, description: None where no label was given, for the reason in `status`.
        facts: short statements under the heading, as (name, value): method, kind.
        confidence: of the label, between 0 and 1.
        accuracies: of the label on held-out text.
        sensitivity: "passed", "failed" or ""; `sensitivity_details` says how.
        density: the share of tokens at which it fires.
        max_activation, mean_activation: the mean is over the tokens where it fires.
        counts: a histogram of its activations between 0 and `max_activation`, parts of equal width.
        examples: excerpts in groups.
        top_tokens: where it fires, with shares of its activation.
        promoted, suppressed: the tokens whose logits it raises and lowers, with by how much.
        neighbours: features of similar direction, most similar first.
        report: where a report speaks of it, as an address; "" without one.
        prompt: what `steering` continues.
        steering: continuations by how much of the feature was added, ascending; one of them 0.
    """

    feature_id: int
    label: str | None = None
    description: str = ""
    status: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    confidence: float | None = None
    accuracies: tuple[Accuracy, ...] = ()
    sensitivity: str = ""
    sensitivity_details: str = ""
    density: float = 0.0
    max_activation: float = 0.0
    mean_activation: float = 0.0
    counts: tuple[int, ...] = ()
    examples: tuple[Examples, ...] = ()
    top_tokens: Weighted = ()
    promoted: Weighted = ()
    suppressed: Weighted = ()
    neighbours: tuple[int, ...] = ()
    report: str = ""
    prompt: str = ""
    steering: tuple[tuple[float, str], ...] = ()


def dashboard(
    features: Sequence[FeatureEntry],
    *,
    title: str = "Features",
    about: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML; `save_dashboard` of `mlxterp.auto_interp` makes it from a store and labels.

    Args:
        features: in the order in which the page lists them until it is sorted.
        about: what they were measured on; plain values.

    The features are one block of JSON, about 10 kB each; the page sets the one that is chosen. It asks for
    nothing else and holds one script, which its content security policy lets run by its hash.

    Raises:
        ResultError: no features, or one twice.
    """
    ids = [each.feature_id for each in features]
    if not ids or len(set(ids)) < len(ids):
        given = "no features" if not ids else "a feature twice"
        raise ResultError(f"a dashboard of {given}. Give at least one feature, and each once.")
    texts = _TokenTexts()
    entries = [_entry(each, texts) for each in features]
    return pages.Page("html").render(
        "dashboard",
        title=title,
        about=dict(about or {}),
        n_features=len(ids),
        data=pages.data_block({"texts": texts.every, "features": entries}),
        script=pages.script("dashboard"),
    )


def write_dashboard(path: str | Path, html: str) -> Path:
    """Writes the page in one step; its directory is made."""
    path = Path(path)
    pages.require_html(path)
    pages.write(path, html, {})
    return path


class _TokenTexts:
    """Token texts, each held once: an excerpt holds their numbers."""

    def __init__(self) -> None:
        self.every: list[str] = []
        self._at: dict[str, int] = {}

    def at(self, text: str) -> int:
        found = self._at.get(text)
        if found is None:
            found = self._at[text] = len(self.every)
            self.every.append(visible(text))
        return found


def _entry(given: FeatureEntry, texts: _TokenTexts) -> dict[str, Any]:
    best = given.accuracies[0] if given.accuracies else None
    confidence = None if given.confidence is None else percent(given.confidence)
    return {
        "id": given.feature_id,
        "label": None if given.label is None else visible(given.label),
        "description": visible(given.description),
        "status": visible(given.status),
        "facts": [[visible(name), visible(value)] for name, value in given.facts],
        "confidence": _number(given.confidence),
        "accuracy": None if best is None else _number(best.value),
        "shown": {
            "confidence": confidence,
            "accuracy": None if best is None else number(best.value),
            "density": _rate(given.density),
            "max": number(given.max_activation),
        },
        "accuracies": [
            [visible(a.name), number(a.value), f"{number(a.low)} to {number(a.high)}", _text(a.auroc)]
            for a in given.accuracies
        ],
        "sensitivity": visible(given.sensitivity),
        "sensitivityDetails": visible(given.sensitivity_details),
        "density": _number(given.density),
        "max": _number(given.max_activation),
        "numbers": [
            *([["confidence", confidence]] if confidence is not None else []),
            *([[f"balanced accuracy, {best.name}", _interval(best)]] if best is not None else []),
            ["fires at", f"{_rate(given.density)} of tokens"],
            ["largest activation", number(given.max_activation)],
            ["mean where it fires", number(given.mean_activation)],
        ],
        "counts": list(given.counts),
        "examples": [
            [visible(group.title), [_excerpt(excerpt, texts) for excerpt in group.excerpts]]
            for group in given.examples
        ],
        "tokens": _weights(given.top_tokens, texts),
        "promoted": _weights(given.promoted, texts),
        "suppressed": _weights(given.suppressed, texts),
        "neighbours": list(given.neighbours),
        "report": given.report,
        "prompt": visible(given.prompt),
        "steering": [[_short(amount), visible(text)] for amount, text in given.steering],
    }


def _rate(density: float) -> str:
    """How often it fires: a share that may be far below one in a hundred."""
    return f"{number(100 * density, 2)} %"


def _interval(given: Accuracy) -> str:
    return f"{number(given.value)} ({number(given.low)} to {number(given.high)})"


def _excerpt(given: Excerpt, texts: _TokenTexts) -> list[Any]:
    fired = [[i, _short(a)] for i, a in enumerate(given.activations) if a]
    return [[texts.at(token) for token in given.tokens], fired, given.peak, visible(given.place)]


def _weights(given: Weighted, texts: _TokenTexts) -> list[list[Any]]:
    return [[texts.at(token), _short(weight)] for token, weight in given]


def _short(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else 0.0


def _number(value: float | None) -> float | None:
    """For sorting: None where there is no number."""
    return None if value is None or not math.isfinite(value) else _short(value)


def _text(value: float | None) -> str:
    return "" if value is None else number(value)
