"""`ActiveFeaturesResult`: which features of an SAE fire on a text. `FeatureExamplesResult`: where in a corpus
features fire most. `mlxterp.sae` and `mlxterp.workflows` measure them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import (
    Component,
    Floats,
    Note,
    Show,
    Table,
    component_bars,
    heatmap,
    number,
    percent,
)
from mlxterp.results.values import ARRAY, NUMBER, TEXTS, converted, to_number, to_texts

_MOST_ROWS, _MOST_POSITIONS = 20, 48


def to_ints(value: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(item) for item in value)


INTS = converted(to_ints)


def feature_label(feature: int) -> str:
    """`f42`: how a feature is written everywhere."""
    return f"f{feature}"


def feature_component(
    feature: int, effect: float, hook_point: str, ci: tuple[float, float] | None = None
) -> Component:
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
    features: tuple[int, ...] = field(metadata=INTS)
    maxima: Floats = field(metadata=ARRAY)
    means: Floats = field(metadata=ARRAY)
    sizes: Floats = field(metadata=ARRAY)
    fired: tuple[int, ...] = field(metadata=INTS)
    at_token: tuple[str, ...] = field(metadata=TEXTS)
    at_text: tuple[int, ...] = field(metadata=INTS)
    at_position: tuple[int, ...] = field(metadata=INTS)
    activations: Floats = field(metadata=ARRAY)
    tokens: tuple[str, ...] = field(metadata=TEXTS)
    n_active: int
    d_sae: int
    n_counted: int
    l0: float = field(metadata=NUMBER)
    fvu: float | None = field(metadata=NUMBER, default=None)
    hook_point: str

    def _check(self) -> None:
        n = len(self.features)
        if any(len(values) != n for values in (self.maxima, self.means, self.sizes, self.fired)):
            raise ResultError(f"{n} features whose maxima, means, sizes and counts are not {n} each.")
        if self.activations.size and self.activations.shape != (n, len(self.tokens)):
            raise ResultError(
                f"activations of shape {self.activations.shape} for {n} features, {len(self.tokens)} tokens."
            )

    @property
    def title(self) -> str:
        return f"Active features at {self.hook_point}"

    def components(self) -> tuple[Component, ...]:
        """The features, each with its largest activation."""
        return tuple(
            feature_component(f, float(a), self.hook_point)
            for f, a in zip(self.features, self.maxima, strict=True)
        )

    def top_components(self, k: int = 10) -> list[Component]:
        """The k first features: those that write most. NaN effects are left out."""
        return [c for c in self.components() if math.isfinite(c.effect)][:k]

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        counting = self.measured_on.get("positions", "all")
        left_out = "n/a" if self.fvu is None else percent(self.fvu)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}: {self.n_active:,} of {self.d_sae:,} fire at the "
            f"{self.n_counted} positions that count ({counting}), {number(self.l0)} at a position.",
            f"Variance that the reconstruction leaves out here: {left_out}.",
        ]
        if self.features:
            top = zip(self.features[:6], self.maxima, self.at_token, strict=False)
            lines.append("Strongest: " + ", ".join(f"f{f} {number(a)} at {t!r}" for f, a, t in top) + ".")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        if not self.features:
            return (Note("No feature fires at a counted position.", "caution"),)
        shown = range(min(_MOST_ROWS, len(self.features)))
        table = Table(
            title="Strongest features",
            columns=("feature", "largest", "at", "mean", "positions", "writes"),
            rows=tuple(
                (
                    feature_label(self.features[i]),
                    float(self.maxima[i]),
                    repr(self.at_token[i]),
                    float(self.means[i]),
                    self.fired[i],
                    float(self.sizes[i]),
                )
                for i in shown
            ),
            caption="`writes` is the largest activation times the norm of the decoder row.",
        )
        drawn: list[Show] = [table]
        if self.activations.size:
            width = min(len(self.tokens), _MOST_POSITIONS)
            drawn.insert(0, self._map(len(shown), width))
        if self.fvu is not None and self.fvu > 0.5:
            drawn.append(
                Note(
                    f"The reconstruction leaves out {percent(self.fvu)} of the variance on this text, so the "
                    "features say little of what the model does here.",
                    "caution",
                )
            )
        return tuple(drawn)

    def _map(self, height: int, width: int) -> Show:
        return heatmap(
            np.array(self.activations[:height, :width]),
            title="Activations by token",
            rows=("feature", [feature_label(f) for f in self.features[:height]]),
            columns=("token", self.tokens[:width]),
            unit="activation",
            diverging=False,
            reading="The first text, every position; the first one does not count unless asked for.",
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


def _to_examples(values: Iterable[FeatureExample | Mapping[str, Any]]) -> tuple[FeatureExample, ...]:
    found = []
    for value in values:
        data = dict(vars(value) if isinstance(value, FeatureExample) else value)
        data |= {"tokens": to_texts(data["tokens"]), "activation": to_number(data["activation"])}
        found.append(FeatureExample(**data))
    return tuple(found)


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
    features: tuple[int, ...] = field(metadata=INTS)
    examples: tuple[FeatureExample, ...] = field(metadata=converted(_to_examples))
    densities: Floats = field(metadata=ARRAY)
    maxima: Floats = field(metadata=ARRAY)
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
        return tuple(
            feature_component(f, float(a), self.hook_point)
            for f, a in zip(self.features, self.maxima, strict=True)
        )

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}{f' ({on})' if on else ''}: {self.n_tokens:,} tokens of {self.n_documents:,} "
            f"documents, {self.forwards:,} model calls for all features."
        ]
        for f, density in zip(self.features, self.densities, strict=True):
            own = self.of(f)
            if not own:
                lines.append(f"f{f} does not fire in this corpus.")
                continue
            peaks = list(dict.fromkeys(each.tokens[each.peak] for each in own))[:5]
            shown = ", ".join(repr(token) for token in peaks)
            lines.append(f"f{f} fires at {number(100 * density)} % of tokens, strongest at {shown}.")
        return "\n".join(lines)

    def shows(self) -> tuple[Show, ...]:
        bars = component_bars(self.components(), title="Largest activation in the corpus", unit="activation")
        rows = tuple(
            (
                feature_label(e.feature),
                e.activation,
                repr(e.tokens[e.peak]),
                _marked(e),
                e.document,
                e.position,
            )
            for e in self.examples
        )
        columns = ("feature", "activation", "token", "text", "document", "position")
        return bars, Table(title="Strongest examples", columns=columns, rows=rows)


def _marked(example: FeatureExample) -> str:
    """The text of an example, the token where it fires between marks."""
    before, after = example.tokens[: example.peak], example.tokens[example.peak + 1 :]
    return "".join([*before, "«", example.tokens[example.peak], "»", *after])
