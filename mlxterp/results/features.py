"""Features of an SAE: which fire on a text, where in a corpus they fire most, and their labels.
`mlxterp.sae.analysis` and `mlxterp.auto_interp` measure them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult
from mlxterp.results.sae_quality import seen_sentence
from mlxterp.results.values import plain
from mlxterp.results.views import Component, Floats, Interval, Note, Show, Table, bars, cautions, heatmap
from mlxterp.text import number, percent

_MOST_ROWS, _MOST_POSITIONS = 20, 48


def feature_label(feature: int) -> str:
    """`f42`: how a feature is written everywhere."""
    return f"f{feature}"


def feature_component(feature: int, effect: float, hook_point: str, ci: Interval | None = None) -> Component:
    """A feature as a component of the model, at the hook point of its SAE."""
    layer, _, name = hook_point.rpartition(".")
    numbered = layer[:1] == "L" and layer[1:].isdecimal()
    place = (name, int(layer[1:])) if numbered else (hook_point, None)
    return Component(feature_label(feature), effect, name=place[0], layer=place[1], ci=ci)


@dataclass(frozen=True, eq=False, kw_only=True)
class ActiveFeaturesResult(AnalysisResult):
    """The features that fire most on one text or several, at the positions that count.

    Attributes:
        features: the strongest ones, by `sizes`.
        maxima, means: each feature's largest activation, and its mean over the counted positions where it
            fires or not.
        sizes: largest activation times the norm of the feature's decoder row: what it writes, in units of
            the residual stream. Unlike activations, not changed by rescaling the SAE.
        fired: at how many counted positions each feature fires.
        at_token, at_text, at_position: where each feature's maximum is.
        activations: [n_features, n_tokens] on the first text, all of its positions; `tokens` are its tokens.
        n_active: how many features fire at a counted position at all, of `d_sae`.
        n_counted: counted positions; l0: mean number of features that fire at one.
        fvu: share of the variance at the counted positions that the SAE's reconstruction leaves out; None
            where there is no variance, as at a single position.
    """

    kind: ClassVar[str] = "active_features"
    features: tuple[int, ...]
    maxima: Floats
    means: Floats
    sizes: Floats
    fired: tuple[int, ...]
    at_token: tuple[str, ...]
    at_text: tuple[int, ...]
    at_position: tuple[int, ...]
    activations: Floats
    tokens: tuple[str, ...]
    n_active: int
    d_sae: int
    n_counted: int
    l0: float
    fvu: float | None = None
    hook_point: str

    def _check(self) -> None:
        n = len(self.features)
        self._require_shape(("maxima", "means", "sizes"), (n,), f"{n} features")
        if len(self.fired) != n:
            raise ResultError(f"{n} features with {len(self.fired)} counts of where they fire.")
        if self.activations.size and self.activations.shape != (n, len(self.tokens)):
            raise ResultError(
                f"activations of shape {self.activations.shape} for {n} features, {len(self.tokens)} tokens."
            )

    @property
    def title(self) -> str:
        return f"Active features at {self.hook_point}"

    def components(self) -> tuple[Component, ...]:
        """The features, each with its largest activation."""
        return _with_maxima(self.features, self.maxima, self.hook_point)

    def top_components(self, k: int = 10) -> list[Component]:
        """The k first features: those that write most. NaN effects are left out."""
        return [c for c in self.components() if math.isfinite(c.effect)][:k]

    def summary(self) -> str:
        counting = self.measured_on.get("positions", "all")
        left_out = "n/a" if self.fvu is None else percent(self.fvu)
        lines = [
            f"{self._headline()}: {self.n_active:,} of {self.d_sae:,} fire at the "
            f"{self.n_counted} positions that count ({counting}), {number(self.l0)} at a position.",
            f"Variance that the reconstruction leaves out here: {left_out}.",
        ]
        if self.features:
            top = zip(self.features[:6], self.maxima, self.at_token, strict=False)
            lines.append("Strongest: " + ", ".join(f"f{f} {number(a)} at {t!r}" for f, a, t in top) + ".")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        if not self.features:
            return cautions(["No feature fires at a counted position."])
        labels = [feature_label(feature) for feature in self.features[:_MOST_ROWS]]
        columns = zip(
            labels,
            self.maxima.tolist(),
            map(repr, self.at_token),
            self.means.tolist(),
            self.fired,
            self.sizes.tolist(),
            strict=False,
        )
        table = Table(
            title="Strongest features",
            columns=("feature", "largest", "at", "mean", "positions", "writes"),
            rows=tuple(columns),
            caption="`writes` is the largest activation times the norm of the decoder row.",
        )
        drawn: list[Show] = [table]
        if self.activations.size:
            tokens = self.tokens[:_MOST_POSITIONS]
            by_token = heatmap(
                self.activations[: len(labels), : len(tokens)],
                title="Activations by token",
                rows=("feature", labels),
                columns=("token", tokens),
                unit="activation",
                diverging=False,
                reading="The first text, every position; the first one does not count unless asked for.",
            )
            drawn = [by_token, table]
        return (*drawn, *cautions(poor_fit(self)))


def poor_fit(result: ActiveFeaturesResult) -> tuple[str, ...]:
    """A sentence where the SAE leaves out more than half of the variance; else nothing."""
    if result.fvu is None or not result.fvu > 0.5:
        return ()
    return (
        f"The reconstruction leaves out {percent(result.fvu)} of the variance on this text, so the features "
        "say little of what the model does here.",
    )


def _with_maxima(features: Sequence[int], maxima: Floats, hook_point: str) -> tuple[Component, ...]:
    return tuple(
        feature_component(feature, largest, hook_point)
        for feature, largest in zip(features, maxima.tolist(), strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class FeatureExample:
    """One place in a corpus where a feature fires.

    Attributes:
        feature: its index. activation: at the token `tokens[peak]`.
        tokens: the token with some before and after it.
        document: which document of the corpus; position: of the token in it.
    """

    feature: int
    activation: float
    tokens: tuple[str, ...]
    peak: int
    document: int
    position: int


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureExamplesResult(AnalysisResult):
    """Where in a corpus some features fire most.

    Attributes:
        features: those looked at.
        examples: for each, its strongest places, strongest first.
        densities: the share of the corpus's counted tokens at which each fires.
        maxima: each feature's largest activation.
        n_tokens, n_documents: the size of the corpus. forwards: model calls that reading it took, for all
            features together.
    """

    kind: ClassVar[str] = "feature_examples"
    features: tuple[int, ...]
    examples: tuple[FeatureExample, ...]
    densities: Floats
    maxima: Floats
    n_tokens: int
    n_documents: int
    forwards: int
    hook_point: str

    def of(self, feature: int) -> tuple[FeatureExample, ...]:
        """A feature's examples, strongest first; empty if it does not fire in the corpus."""
        if feature not in self.features:
            there = ", ".join(map(feature_label, self.features))
            raise ResultError(f"no examples of feature {feature} were looked for. There are: {there}.")
        return tuple(each for each in self.examples if each.feature == feature)

    @property
    def title(self) -> str:
        return f"Where {len(self.features)} features at {self.hook_point} fire most"

    def components(self) -> tuple[Component, ...]:
        """The features, each with its largest activation in the corpus."""
        return _with_maxima(self.features, self.maxima, self.hook_point)

    def summary(self) -> str:
        lines = [
            f"{self._headline()}: {self.n_tokens:,} tokens of {self.n_documents:,} documents, "
            f"{self.forwards:,} model calls for all features."
        ]
        for f, density in zip(self.features, self.densities, strict=True):
            peaks = list(dict.fromkeys(each.tokens[each.peak] for each in self.of(f)))[:5]
            at = ", ".join(map(repr, peaks))
            fires = f"fires at {number(100 * density)} % of tokens, strongest at {at}"
            lines.append(f"f{f} {fires if peaks else 'does not fire in this corpus'}.")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        drawn = bars(self.components(), title="Largest activation in the corpus", unit="activation")
        table = Table(
            title="Strongest examples",
            columns=("feature", "activation", "token", "text", "document", "position"),
            rows=tuple(
                (f"f{e.feature}", e.activation, repr(e.tokens[e.peak]), _marked(e), e.document, e.position)
                for e in self.examples
            ),
        )
        return drawn, table


def _marked(example: FeatureExample) -> str:
    """The text of an example, the token where it fires between marks."""
    before, after = example.tokens[: example.peak], example.tokens[example.peak + 1 :]
    return "".join([*before, "«", example.tokens[example.peak], "»", *after])


_MOST_LABELS = 200
_WITHOUT = {
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
    labels: tuple[Mapping[str, Any], ...] = field(metadata={"convert": _plain_labels})

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
        sure = sum(label["confidence"] >= 0.9 for label in self.named)
        lines = [
            f"{self._headline()}: {len(self.named)} have one, {sure} of them with a "
            "confidence of 90 % or more that its balanced accuracy on held-out text is 0.75 or better."
        ]
        if self.measured_on.get("seen_in_training"):
            lines.append(seen_sentence(self.measured_on["seen_in_training"]))
        tested = [label for label in self.named if label.get("sensitivity_details")]
        if tested:
            passed, decided = (
                sum(label["sensitivity_passed"] in outcomes for label in tested)
                for outcomes in ([True], [True, False])
            )
            lines.append(
                f"Sensitivity: {passed} of {decided} tested labels pass; {len(tested) - decided} of "
                f"{len(tested)} could not be tested."
            )
        without = self._without()
        if without:
            lines.append(f"{without}.")
        best = ", ".join(f"f{label['feature_id']} {label['label']}" for label in self.named[:5])
        return "\n".join([*lines, *([f"Surest: {best}."] if best else [])])

    def _without(self) -> str:
        """How many features have no label, by the reason."""
        counts = Counter(label["status"] for label in self.labels if label["label"] is None)
        return "; ".join(f"{n} {_WITHOUT.get(why, why)}" for why, n in counts.most_common())

    def shows(self) -> tuple[Show, ...]:
        named = self.named
        rows = tuple(
            (
                f"f{label['feature_id']}",
                label["label"],
                percent(label["confidence"]),
                None if label.get("confidence_elsewhere") is None else percent(label["confidence_elsewhere"]),
                _accuracy(label),
                f"{100 * label.get('density', 0.0):.2g} %",
                {True: "passed", False: "failed", None: ""}[label.get("sensitivity_passed")],
            )
            for label in named[:_MOST_LABELS]
        )
        columns = (
            "feature",
            "label",
            "confidence",
            "elsewhere",
            "balanced accuracy",
            "density",
            "sensitivity",
        )
        caption = (
            "Confidence: the probability that the label tells where the feature fires with a balanced "
            "accuracy of 0.75 or more on text of this kind, given the counts on documents kept from the "
            "labeler. "
            "Elsewhere: the same on another kind of text."
        )
        if len(named) > _MOST_LABELS:
            caption += f" The {_MOST_LABELS} surest of {len(named)}."
        # A column that is empty for every label says nothing.
        filled = [i for i in range(len(columns)) if any(row[i] not in (None, "") for row in rows)]
        shown = tuple(tuple(row[i] for i in filled) for row in rows)
        names = tuple(columns[i] for i in filled)
        table = (Table(title="Labels", columns=names, rows=shown, caption=caption),) if rows else ()
        without = self._without()
        return (*table, *((Note(f"Without a label: {without}."),) if without else ()))


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
