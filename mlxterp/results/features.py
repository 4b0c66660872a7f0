"""`FeatureLabelsResult`: labels of SAE features, as a result. `mlxterp.auto_interp` makes labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import Component, Note, Show, Table, number, percent
from mlxterp.results.values import converted, plain

_SHOWN = 200
_WHY = {
    "dead": "fire nowhere",
    "too_few_examples": "fire too rarely",
    "uninterpretable": "have no label that holds",
    "refused": "were refused by the language model",
    "error": "ended in an error",
}


def _plain_labels(labels: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Labels, or their plain form, as plain values."""
    return tuple(plain(each if isinstance(each, Mapping) else each.to_dict(), "labels") for each in labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureLabelsResult(AnalysisResult):
    """Labels of features with their scores on held-out text.

    Attributes:
        labels: each `FeatureLabel` in its plain form, in the order they were asked for; labels that are given
            become so, and `FeatureLabel.from_dict` makes them labels again.
    """

    kind: ClassVar[str] = "feature_labels"
    labels: tuple[Mapping[str, Any], ...] = field(metadata=converted(_plain_labels))

    def _check(self) -> None:
        for label in self.labels:
            missing = {"feature_id", "label", "status", "confidence"} - set(label)
            if missing:
                raise ResultError(
                    f"a label without {', '.join(sorted(missing))}. Give what FeatureLabel.to_dict() returns."
                )

    @property
    def title(self) -> str:
        return f"Labels of {len(self.labels)} features"

    @property
    def named(self) -> tuple[Mapping[str, Any], ...]:
        """Those that have a label, the surest first."""
        given = [label for label in self.labels if label["label"] is not None]
        return tuple(sorted(given, key=lambda label: -label["confidence"]))

    def components(self) -> tuple[Component, ...]:
        """Each feature that has a label, `f42`, with its confidence."""
        return tuple(
            Component(f"f{label['feature_id']}", float(label["confidence"]), name="feature")
            for label in self.labels
            if label["label"] is not None
        )

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        sure = sum(label["confidence"] >= 0.9 for label in self.named)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}: {len(self.named)} have one, {sure} of them with a "
            "confidence of 90 % or more that its balanced accuracy on held-out text is 0.75 or better."
        ]
        others = Counter(label["status"] for label in self.labels if label["label"] is None)
        if others:
            lines.append("; ".join(f"{n} {_WHY.get(why, why)}" for why, n in others.most_common()) + ".")
        best = ", ".join(f"f{label['feature_id']} {label['label']}" for label in self.named[:5])
        return "\n".join([*lines, *([f"Surest: {best}."] if best else [])])

    def shows(self) -> tuple[Show, ...]:
        rows = tuple(
            (
                f"f{label['feature_id']}",
                label["label"],
                percent(label["confidence"]),
                _accuracy(label),
                f"{100 * label.get('density', 0.0):.2g} %",
                {True: "passed", False: "failed", None: ""}[label.get("sensitivity_passed")],
            )
            for label in self.named[:_SHOWN]
        )
        columns = ("feature", "label", "confidence", "balanced accuracy", "density", "sensitivity")
        caption = (
            "Confidence: the probability that the label tells where the feature fires with a balanced "
            "accuracy of 0.75 or more, given the counts on held-out text."
        )
        if len(self.named) > _SHOWN:
            caption += f" The {_SHOWN} surest of {len(self.named)}."
        shown: list[Show] = (
            [Table(title="Labels", columns=columns, rows=rows, caption=caption)] if rows else []
        )
        without = Counter(label["status"] for label in self.labels if label["label"] is None)
        if without:
            reasons = "; ".join(f"{n} {_WHY.get(why, why)}" for why, n in without.most_common())
            shown.append(Note(f"Without a label: {reasons}."))
        return tuple(shown)


def _accuracy(label: Mapping[str, Any]) -> str | None:
    """The least of the scores that a confidence is made of, with its interval."""
    scores = label.get("scores", {})
    own = [scores[name] for name in ("rule", "detection", "fuzzing") if name in scores]
    own = [score for score in own if score["balanced_accuracy"] is not None]
    if not own:
        return None
    worst = min(own, key=lambda score: float(score["balanced_accuracy"]))
    low, high = worst["interval"]
    return f"{number(worst['balanced_accuracy'])} ({number(low)} to {number(high)})"
