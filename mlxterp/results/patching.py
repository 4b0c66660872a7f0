"""`PatchingResult`: the effect of patching each site of a sweep. `mlxterp.causal` measures it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.shows import (
    Cell,
    Component,
    Flags,
    Floats,
    Heatmap,
    Note,
    Show,
    Table,
    component_bars,
    heatmap,
    number,
    strongest,
)
from mlxterp.results.values import ARRAY, FLAGS, INDEX_MAP, LABEL_MAP, NUMBER, TEXTS

_AXES = ("layer", "pos", "head")
_DIRECTIONS = {
    "denoising": (
        "clean activations put into the corrupted run",
        "Recovery of the clean behaviour: 0 is as corrupted, 1 as clean.",
        "recovers",
    ),
    "noising": (
        "corrupted activations put into the clean run",
        "Loss of the clean behaviour: 0 is as clean, 1 as corrupted.",
        "removes",
    ),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchingResult(AnalysisResult):
    """Effects of activation patching, one per site.

    Attributes:
        effects: shape as `axes` says. Denoising: 0 = corrupted, 1 = clean. Noising: 0 = clean, 1 = corrupted.
        axes: names of the dimensions of `effects`, among "layer", "pos", "head".
        component: the name of the hook point that was patched (`resid_pre`, `z`, `mlp_out` …).
        by: how sites were formed ("layer", "layer_pos", "layer_head", "layer_pos_head").
        direction: "denoising" or "noising".
        metric, clean_metric, corrupted_metric: what was measured, and both baselines.
        labels: per axis, what a reader sees (tokens for "pos"). An axis left out gets `L0 …`, `0 …`, `H0 …`.
        indices: per axis, the layer, position or head numbers where the sweep left some out; else 0, 1, 2 …
        per_example: [n_examples, *effects.shape] when several pairs were measured.
        ci_low, ci_high: an interval around each effect, same shape as `effects`.
        method: how the effects were found: by patching, or estimated by attribution patching.
        cautions: what limits what may be concluded from them.
        measured: of estimates, True where the site was patched all the same (or nothing differs there, so
            that the effect is 0) and the effect is the measured one; None where all were found in one way.
    """

    kind: ClassVar[str] = "patching"
    effects: Floats = field(metadata=ARRAY)
    axes: tuple[str, ...] = field(metadata=TEXTS)
    component: str
    by: str
    direction: str
    metric: str
    clean_metric: float = field(metadata=NUMBER)
    corrupted_metric: float = field(metadata=NUMBER)
    labels: Mapping[str, tuple[str, ...]] = field(metadata=LABEL_MAP, default_factory=dict)
    indices: Mapping[str, tuple[int, ...]] = field(metadata=INDEX_MAP, default_factory=dict)
    per_example: Floats | None = field(metadata=ARRAY, default=None)
    ci_low: Floats | None = field(metadata=ARRAY, default=None)
    ci_high: Floats | None = field(metadata=ARRAY, default=None)
    method: str = "patching"
    cautions: tuple[str, ...] = field(metadata=TEXTS, default=())
    measured: Flags | None = field(metadata=FLAGS, default=None)

    def _check(self) -> None:
        if self.direction not in _DIRECTIONS:
            raise ResultError(f"direction {self.direction!r}. Directions are: {', '.join(_DIRECTIONS)}.")
        unknown = [axis for axis in self.axes if axis not in _AXES]
        if unknown or len(set(self.axes)) != len(self.axes) or "layer" not in self.axes:
            raise ResultError(f"axes {self.axes}. Axes are 'layer' and any of {_AXES[1:]}, each once.")
        if len(self.axes) != self.effects.ndim:
            raise ResultError(f"effects of shape {self.effects.shape} cannot have the axes {self.axes}.")
        for axis, size in zip(self.axes, self.effects.shape, strict=True):
            for name, count in (
                ("labels", len(self.labels.get(axis, ()))),
                ("indices", len(self.indices.get(axis, ()))),
            ):
                if count not in (0, size):
                    raise ResultError(f"{count} {name} for the axis {axis!r}, which has {size} entries.")
        beside = {"ci_low": self.ci_low, "ci_high": self.ci_high, "measured": self.measured}
        for name, values in beside.items():
            if values is not None and values.shape != self.effects.shape:
                raise ResultError(
                    f"{name} of shape {values.shape} for effects of shape {self.effects.shape}."
                )
        if self.per_example is not None and self.per_example.shape[1:] != self.effects.shape:
            raise ResultError(
                f"per_example of shape {self.per_example.shape} for effects of shape {self.effects.shape}; "
                "it is [n_examples, *effects.shape]."
            )

    @property
    def effect_matrix(self) -> Floats:
        """The same array as `effects`."""
        return self.effects

    @property
    def title(self) -> str:
        by = " and ".join(_axis_word(a) for a in self.axes)
        what = self.component if self.method == "patching" else f"of {self.component}"
        return f"{self.method[:1].upper()}{self.method[1:]} {what} by {by}"

    @property
    def estimated(self) -> bool:
        """Whether effects are estimates; with `measured`, whether any still is."""
        return self.method != "patching" and (self.measured is None or not self.measured.all())

    def indices_of(self, axis: str) -> tuple[int, ...]:
        """The layer, position or head numbers along an axis."""
        if axis not in self.axes:
            raise ResultError(f"this result has no axis {axis!r}. Its axes are: {', '.join(self.axes)}.")
        return self.indices.get(axis) or tuple(range(self.effects.shape[self.axes.index(axis)]))

    def labels_of(self, axis: str) -> tuple[str, ...]:
        """What a reader sees along an axis: `L3`, `H6`, a token for a position."""
        indices = self.indices_of(axis)
        prefix = {"layer": "L", "head": "H", "pos": ""}[axis]
        return self.labels.get(axis) or tuple(f"{prefix}{i}" for i in indices)

    def components(self) -> tuple[Component, ...]:
        return tuple(self._component(where) for where in itertools.product(*map(range, self.effects.shape)))

    def _component(self, where: tuple[int, ...]) -> Component:
        at = {axis: self.indices_of(axis)[i] for axis, i in zip(self.axes, where, strict=True)}
        layer, pos, head = at["layer"], at.get("pos"), at.get("head")
        if head is not None:
            label = f"L{layer}.H{head}"
        elif self.component == "resid_pre" and pos is not None:
            label = f"L{layer}"
        else:
            label = f"L{layer}.{self.component}"
        if pos is not None:
            label += f" pos {pos}"
            if "pos" in self.labels:
                label += f" {self.labels['pos'][where[self.axes.index('pos')]]!r}"
        ci = None
        if self.ci_low is not None and self.ci_high is not None:
            ci = (float(self.ci_low[where]), float(self.ci_high[where]))
        return Component(
            label=label,
            effect=float(self.effects[where]),
            name=self.component,
            layer=layer,
            head=head,
            pos=pos,
            ci=ci,
        )

    def summary(self) -> str:
        what, reading, verb = _DIRECTIONS[self.direction]
        on = measured_on_text(self.measured_on)
        if self.estimated:
            what = f"an estimate of {what}"
            if self.measured is not None:
                what += f", measured at {int(self.measured.sum()):,} of {self.measured.size:,} sites"
        lines = [
            f"{self.title}, {self.direction}: {what}{f' ({on})' if on else ''}.",
            f"{self.metric}: clean {number(self.clean_metric)}, corrupted {number(self.corrupted_metric)}. "
            + reading,
        ]
        top = self.top_components(5)
        if not top:
            lines.append("No effect is a finite number.")
            return "\n".join(lines)
        first, estimates = top[0], self._labels_of_estimates()
        interval = f" (interval {number(first.ci[0])} to {number(first.ci[1])})" if first.ci else ""
        lines.append(
            f"{first.label} {verb} {number(first.effect)} of the gap{interval}"
            f"{' by estimate' if first.label in estimates else ''}, the most of {self.effects.size} sites."
        )
        others = [c for c in top[1:] if c.effect]
        if others:
            named = [
                f"{c.label} {number(c.effect)}{' (estimated)' if c.label in estimates else ''}"
                for c in others
            ]
            lines.append(f"Then {', '.join(named)}.")
        return "\n".join([*lines, *self.cautions])

    def shows(self) -> tuple[Show, ...]:
        _, reading, _ = _DIRECTIONS[self.direction]
        unit = "recovery" if self.direction == "denoising" else "loss"
        drawn: list[Show] = []
        if self.axes == ("layer",):
            bars = component_bars(self.components(), title=self.title, unit=unit, reading=reading, accented=0)
            best = tuple(where[0] for where in strongest(self.effects, 3))
            drawn.append(
                replace(bars, labels=self.labels_of("layer"), ordered=True, axis="layer", accented=best)
            )
        else:
            drawn += [self._map(axis, unit, reading) for axis in self.axes if axis != "layer"]
        drawn.append(self._table(unit))
        missing = int(self.effects.size - np.isfinite(self.effects).sum())
        if missing:
            drawn.append(Note(f"{missing} of {self.effects.size} effects are not finite numbers.", "caution"))
        drawn += [Note(text, "caution") for text in self.cautions]
        return tuple(drawn)

    def panels(self) -> tuple[Heatmap, ...]:
        """What `shows` draws; of a sweep over layers, positions and heads, a map for each head instead."""
        if len(self.axes) < 3:
            return super().panels()
        axis = self.axes.index("head")
        kept = tuple(name for name in self.axes if name != "head")
        found: list[Heatmap] = []
        for i, (head, label) in enumerate(zip(self.indices_of("head"), self.labels_of("head"), strict=True)):
            one = replace(
                self,
                effects=np.asarray(np.take(self.effects, i, axis=axis)),
                axes=kept,
                per_example=None,
                ci_low=None if self.ci_low is None else np.asarray(np.take(self.ci_low, i, axis=axis)),
                ci_high=None if self.ci_high is None else np.asarray(np.take(self.ci_high, i, axis=axis)),
                measured=None if self.measured is None else np.asarray(np.take(self.measured, i, axis=axis)),
            )
            found += [
                replace(each, title=f"{self.component} of head {head} by layer and position", within=label)
                for each in one.panels()
            ]
        return tuple(found)

    def _labels_of_estimates(self) -> set[str]:
        """Of the components that were not patched, where others were; empty where all were found alike."""
        if self.measured is None:
            return set()
        pairs = zip(self.components(), self.measured.ravel(), strict=True)
        return {component.label for component, measured in pairs if not measured}

    def _map(self, axis: str, unit: str, reading: str) -> Heatmap:
        """Layers from left to right, `axis` downwards; a third axis is reduced to its strongest entry."""
        values = self.effects
        bounds = None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)
        title = self.title
        for other in self.axes:
            if other not in ("layer", axis):
                values = _strongest_along(values, self.axes.index(other))
                title += f": at each {_axis_word(axis)}, the strongest {_axis_word(other)}"
                bounds = None
        kept = [a for a in self.axes if a in ("layer", axis)]
        if kept[0] == "layer":
            values = values.T
            bounds = None if bounds is None else (bounds[0].T, bounds[1].T)
        rows = self.labels_of(axis)
        if axis == "pos" and axis in self.labels:
            rows = tuple(f"{i} {label!r}" for i, label in zip(self.indices_of(axis), rows, strict=True))
        return heatmap(
            values,
            title=title,
            rows=(_axis_word(axis), rows),
            columns=("layer", self.labels_of("layer")),
            unit=unit,
            reading=reading,
            intervals=bounds,
        )

    def _table(self, unit: str) -> Table:
        top = self.top_components(5)
        columns: tuple[str, ...] = ("component", unit)
        rows: tuple[tuple[Cell, ...], ...] = tuple((c.label, c.effect) for c in top)
        if any(c.ci for c in top):
            columns += ("from", "to")
            rows = tuple((c.label, c.effect, *(c.ci or (None, None))) for c in top)
        if self.measured is not None:
            columns += ("found by",)
            estimates = self._labels_of_estimates()
            rows = tuple((*row, "estimate" if row[0] in estimates else "patching") for row in rows)
        return Table(
            title="Strongest sites",
            columns=columns,
            rows=rows,
            caption=f"The strongest {len(rows)} of {self.effects.size} sites.",
        )


def _axis_word(axis: str) -> str:
    return "position" if axis == "pos" else axis


def _strongest_along(values: Floats, axis: int) -> Floats:
    """Along one axis, the value of largest magnitude, with its sign; NaN only where all are NaN."""
    size = np.where(np.isfinite(values), np.abs(values), -1.0)
    picked = np.take_along_axis(values, np.expand_dims(size.argmax(axis=axis), axis), axis=axis)
    return np.asarray(np.squeeze(picked, axis=axis), dtype=np.float64)
