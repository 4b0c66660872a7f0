"""What patching does to a metric: of every site of a sweep, of the turns of a conversation, of paths between
components. `mlxterp.causal` and `mlxterp.conversation` measure it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from mlxterp.errors import ResultError
from mlxterp.results.base import AnalysisResult, measured_on_text
from mlxterp.results.circuit import node_order
from mlxterp.results.search import (
    MeasuredAgain,
    established,
    established_text,
    measured_again_table,
    measured_again_text,
    pairs_text,
)
from mlxterp.results.views import (
    Component,
    Flags,
    Floats,
    Heatmap,
    Note,
    Show,
    Table,
    bars,
    cautions,
    effects_table,
    heatmap,
    intervals,
    listed,
    strongest,
)
from mlxterp.statistics.multiple import NEGLIGIBLE
from mlxterp.text import number

_AXES = {"layer": "layer", "pos": "position", "head": "head"}


class _Reading(NamedTuple):
    """What a direction does and how its effects read."""

    done: str
    scale: str
    verb: str
    unit: str


_SEVERAL = " A token with … is the first pair's: others have other tokens there."
_DIRECTIONS = {
    "denoising": _Reading(
        "clean activations put into the corrupted run",
        "Recovery of the clean behaviour: 0 is as corrupted, 1 as clean.",
        "recovers",
        "recovery",
    ),
    "noising": _Reading(
        "corrupted activations put into the clean run",
        "Loss of the clean behaviour: 0 is as clean, 1 as corrupted.",
        "removes",
        "loss",
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
        ci_low, ci_high: an interval around each effect by itself, same shape as `effects`.
        simultaneous_low, simultaneous_high: intervals that hold for all sites at once: those of `components`.
        measured_again: the strongest sites of half of the pairs, measured on the other half.
        chosen_on: which pairs, from 0, chose them; the others measured them.
        method: how the effects were found: by patching, or estimated by attribution patching.
        cautions: what limits what may be concluded from them.
        measured: of estimates, True where the site was patched all the same (or nothing differs there, so
            that the effect is 0) and the effect is the measured one; None where all were found in one way.
    """

    kind: ClassVar[str] = "patching"
    effects: Floats
    axes: tuple[str, ...]
    component: str
    by: str
    direction: str
    metric: str
    clean_metric: float
    corrupted_metric: float
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    indices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    per_example: Floats | None = None
    ci_low: Floats | None = None
    ci_high: Floats | None = None
    simultaneous_low: Floats | None = None
    simultaneous_high: Floats | None = None
    measured_again: tuple[MeasuredAgain, ...] = ()
    chosen_on: tuple[int, ...] = ()
    method: str = "patching"
    cautions: tuple[str, ...] = ()
    measured: Flags | None = None

    def _check(self) -> None:
        self._require_one_of("direction", _DIRECTIONS)
        unknown = [axis for axis in self.axes if axis not in _AXES]
        if unknown or len(set(self.axes)) != len(self.axes) or "layer" not in self.axes:
            raise ResultError(f"axes {self.axes}. Axes are 'layer' and any of {tuple(_AXES)[1:]}, each once.")
        if len(self.axes) != self.effects.ndim:
            raise ResultError(f"effects of shape {self.effects.shape} cannot have the axes {self.axes}.")
        for axis, size in zip(self.axes, self.effects.shape, strict=True):
            counts = {"labels": len(self.labels.get(axis, ())), "indices": len(self.indices.get(axis, ()))}
            for name, count in counts.items():
                if count not in (0, size):
                    raise ResultError(f"{count} {name} for the axis {axis!r}, which has {size} entries.")
        shape = self.effects.shape
        ends = ("ci_low", "ci_high", "simultaneous_low", "simultaneous_high")
        self._require_shape((*ends, "measured"), shape, f"effects of shape {shape}")
        if self.per_example is not None and self.per_example.shape[1:] != shape:
            raise ResultError(
                f"per_example of shape {self.per_example.shape} for effects of shape {shape}; it is "
                "[n_examples, *effects.shape]."
            )

    @property
    def effect_matrix(self) -> Floats:
        """The same array as `effects`."""
        return self.effects

    @property
    def title(self) -> str:
        by = " and ".join(_AXES[axis] for axis in self.axes)
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

    @property
    def n_pairs(self) -> int:
        """The number of prompt pairs that the effects average over."""
        return 1 if self.per_example is None else len(self.per_example)

    def components(self) -> tuple[Component, ...]:
        """Every site with its effect, and with an interval that holds for all sites at once where there is
        one."""
        low, high = self.simultaneous_low, self.simultaneous_high
        if low is None:
            low, high = self.ci_low, self.ci_high
        ends = intervals(low, high, self.effects.size)
        sites = itertools.product(*map(range, self.effects.shape))
        return tuple(
            self._component(where, effect, ci)
            for where, effect, ci in zip(sites, self.effects.ravel().tolist(), ends, strict=True)
        )

    def _component(self, where: tuple[int, ...], effect: float, ci: tuple[float, float] | None) -> Component:
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
        return Component(label, effect, name=self.component, layer=layer, head=head, pos=pos, ci=ci)

    def established(self, size: float = NEGLIGIBLE) -> list[Component]:
        """The sites whose effect exceeds `size` in magnitude with intervals that hold for all sites at once,
        strongest first; none below four independent clusters of pairs."""
        return [] if self.simultaneous_low is None else established(self.components(), size)

    def search_text(self) -> str:
        """Which sites are established, and what the strongest are on pairs that did not choose them; empty
        without intervals."""
        if self.simultaneous_low is None or self.effects.size == 1:
            return ""
        others = self.n_pairs - len(self.chosen_on)
        again = measured_again_text(self.measured_again, len(self.chosen_on), others)
        return " ".join(filter(None, (established_text(self.established(), self.effects.size), again)))

    def summary(self) -> str:
        reading = _DIRECTIONS[self.direction]
        done = reading.done
        if self.estimated:
            done = f"an estimate of {done}"
            if self.measured is not None:
                done += f", measured at {int(self.measured.sum()):,} of {self.measured.size:,} sites"
        on = measured_on_text(self.measured_on)
        lines = [
            f"{self.title}, {self.direction}: {done}{f' ({on})' if on else ''}.",
            f"{self.metric}: clean {number(self.clean_metric)}, corrupted {number(self.corrupted_metric)}. "
            + reading.scale,
        ]
        top = self.top_components(5)
        if not top:
            return "\n".join([*lines, "No effect is a finite number."])
        first, estimates = top[0], self._labels_of_estimates()
        at_once = ", with all sites at once" if self.simultaneous_low is not None else ""
        interval = f" (interval {number(first.ci[0])} to {number(first.ci[1])}{at_once})" if first.ci else ""
        lines.append(
            f"{first.label} {reading.verb} {number(first.effect)} of the gap{interval}"
            f"{' by estimate' if first.label in estimates else ''}, the most of {self.effects.size} sites."
        )
        others = [
            f"{listed([c])}{' (estimated)' if c.label in estimates else ''}" for c in top[1:] if c.effect
        ]
        if others:
            lines.append(f"Then {', '.join(others)}.")
        lines += filter(None, [self.search_text()])
        return "\n".join([*lines, *self.cautions])

    def shows(self) -> tuple[Show, ...]:
        reading = _DIRECTIONS[self.direction]
        drawn: list[Show]
        if self.axes == ("layer",):
            best = [where[0] for where in strongest(self.effects, 3)]
            shown = bars(
                self.components(), title=self.title, unit=reading.unit, reading=reading.scale, accented=best
            )
            drawn = [replace(shown, labels=self.labels_of("layer"), ordered=True, axis="layer")]
        else:
            drawn = [self._map(axis) for axis in self.axes if axis != "layer"]
        top, estimates = self.top_components(5), self._labels_of_estimates()
        found_by = ["estimate" if c.label in estimates else "patching" for c in top]
        table = effects_table(
            top,
            title="Strongest sites",
            columns=("component", reading.unit),
            caption=self._caption(len(top)),
            more=None if self.measured is None else {"found by": found_by},
        )
        tables = [table]
        if self.measured_again:
            others = self.n_pairs - len(self.chosen_on)
            tables.append(measured_again_table(self.measured_again, len(self.chosen_on), others))
        missing = int(self.effects.size - np.isfinite(self.effects).sum())
        limits = [f"{missing} of {self.effects.size} effects are not finite numbers."] if missing else []
        return (*drawn, *tables, *cautions([*limits, *self.cautions]))

    def _caption(self, shown: int) -> str:
        """How many sites a table shows, and over how many pairs."""
        over = f", over {pairs_text(self.n_pairs)}" if self.per_example is not None else ""
        at_once = "; intervals hold for all sites at once" if self.simultaneous_low is not None else ""
        return f"The strongest {shown} of {self.effects.size} sites{over}{at_once}."

    def panels(self) -> tuple[Heatmap, ...]:
        """What `shows` draws; of a sweep over layers, positions and heads, a map for each head instead."""
        if len(self.axes) < 3:
            return super().panels()
        axis = self.axes.index("head")
        kept = tuple(name for name in self.axes if name != "head")

        def of_head(values: Floats | None, i: int) -> Floats | None:
            return None if values is None else np.asarray(np.take(values, i, axis=axis))

        found: list[Heatmap] = []
        for i, (head, label) in enumerate(zip(self.indices_of("head"), self.labels_of("head"), strict=True)):
            one = replace(
                self,
                effects=np.take(self.effects, i, axis=axis),
                axes=kept,
                per_example=None,
                ci_low=of_head(self.ci_low, i),
                ci_high=of_head(self.ci_high, i),
                simultaneous_low=None,
                simultaneous_high=None,
                measured_again=(),
                measured=None,
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

    def _map(self, axis: str) -> Heatmap:
        """Layers from left to right, `axis` downwards; a third axis is reduced to its strongest entry."""
        values = self.effects
        bounds = None if self.ci_low is None or self.ci_high is None else (self.ci_low, self.ci_high)
        title = self.title
        for other in self.axes:
            if other not in ("layer", axis):
                values = _strongest_along(values, self.axes.index(other))
                title += f": at each {_AXES[axis]}, the strongest {_AXES[other]}"
                bounds = None
        kept = [a for a in self.axes if a in ("layer", axis)]
        if kept[0] == "layer":
            values = values.T
            bounds = None if bounds is None else (bounds[0].T, bounds[1].T)
        rows = self.labels_of(axis)
        if axis == "pos" and axis in self.labels:
            rows = tuple(f"{i} {label!r}" for i, label in zip(self.indices_of(axis), rows, strict=True))
        reading = _DIRECTIONS[self.direction]
        several = axis == "pos" and any(
            label.endswith("…") or "…/" in label for label in self.labels_of(axis)
        )
        return heatmap(
            values,
            title=title,
            rows=(_AXES[axis], rows),
            columns=("layer", self.labels_of("layer")),
            unit=reading.unit,
            reading=f"{reading.scale}{_SEVERAL if several else ''}",
            intervals=bounds,
        )


def _strongest_along(values: Floats, axis: int) -> Floats:
    """Along one axis, the value of largest magnitude, with its sign; NaN only where all are NaN."""
    size = np.where(np.isfinite(values), np.abs(values), -1.0)
    picked = np.take_along_axis(values, np.expand_dims(size.argmax(axis=axis), axis), axis=axis)
    return np.asarray(np.squeeze(picked, axis=axis), dtype=np.float64)


_LONGEST_TEXT = 24


@dataclass(frozen=True, eq=False, kw_only=True)
class TurnPatchingResult(AnalysisResult):
    """Effects of patching all tokens of one turn at once, layer by layer.

    Attributes:
        effects: [n_layers, n_turns].
        roles, texts: of each turn of the conversation that was patched.
        spans: (first token, one past the last) of each turn's content.
        layers: the number of each row's layer.
        component, direction, metric, clean_metric, corrupted_metric: as of a PatchingResult.
    """

    kind: ClassVar[str] = "turn_patching"
    effects: Floats
    roles: tuple[str, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    layers: tuple[int, ...]
    component: str
    direction: str
    metric: str
    clean_metric: float
    corrupted_metric: float

    def _check(self) -> None:
        shape = (len(self.layers), len(self.roles))
        if self.effects.shape != shape or len(self.texts) != shape[1] or len(self.spans) != shape[1]:
            raise ResultError(
                f"effects of shape {self.effects.shape} for {shape[0]} layers, {shape[1]} roles, "
                f"{len(self.texts)} texts and {len(self.spans)} spans. Give one of each per turn."
            )
        self._require_one_of("direction", _DIRECTIONS)

    @property
    def title(self) -> str:
        return f"Patching {self.component} by layer and turn"

    @property
    def turn_labels(self) -> tuple[str, ...]:
        """`0 user 'Where is …'`."""
        return tuple(
            f"{i} {role} {text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + '…'!r}"
            for i, (role, text) in enumerate(zip(self.roles, self.texts, strict=True))
        )

    def components(self) -> tuple[Component, ...]:
        turns = self.turn_labels
        return tuple(
            Component(f"L{layer}.{self.component} turn {turn}", effect, name=self.component, layer=layer)
            for layer, effects in zip(self.layers, self.effects.tolist(), strict=True)
            for turn, effect in zip(turns, effects, strict=True)
        )

    def summary(self) -> str:
        return self._with_limits(
            f"{self._headline(f', {self.direction}')}; all tokens of a turn together.\n"
            f"{self.metric}: clean {number(self.clean_metric)}, corrupted "
            f"{number(self.corrupted_metric)}. {_DIRECTIONS[self.direction].scale}\n"
            f"Strongest of {self.effects.size}: "
            f"{listed(self.top_components(3)) or 'no effect is a finite number'}."
        )

    def shows(self) -> tuple[Show, ...]:
        reading = _DIRECTIONS[self.direction]
        drawn = heatmap(
            self.effects.T,
            title=self.title,
            rows=("turn", self.turn_labels),
            columns=("layer", tuple(f"L{i}" for i in self.layers)),
            unit=reading.unit,
            reading=reading.scale,
        )
        turns = zip(self.roles, self.texts, self.spans, strict=True)
        table = Table(
            title="Turns",
            columns=("turn", "role", "text", "first token", "last token"),
            rows=tuple((i, role, text, a, b - 1) for i, (role, text, (a, b)) in enumerate(turns)),
        )
        return drawn, table


_MOST_BARS = 20


@dataclass(frozen=True, eq=False, kw_only=True)
class PathPatchingResult(AnalysisResult):
    """Effects of path patching: senders take their corrupted value, and only the receivers read it.

    Attributes:
        senders: one label per effect: `L5.H5`, or of a set `L5.H5 + L6.H9`.
        effects: 0 = as clean: these paths do not matter; 1 = as corrupted: they carry everything.
        receivers: the inputs that read the change: `L9.H6.q`, `L3.mlp`, `logits`.
        through: what lies on the paths: "mlps" (all other heads frozen), or "nothing" (direct edges only).
        metric, clean_metric, corrupted_metric: what was measured, and both baselines.
        per_example: [n_examples, n_senders] when several pairs were measured.
        ci_low, ci_high: an interval around each effect by itself.
        simultaneous_low, simultaneous_high: intervals that hold for all senders at once: those of
            `components`.
    """

    kind: ClassVar[str] = "path_patching"
    senders: tuple[str, ...]
    effects: Floats
    receivers: tuple[str, ...]
    through: str
    metric: str
    clean_metric: float
    corrupted_metric: float
    per_example: Floats | None = None
    ci_low: Floats | None = None
    ci_high: Floats | None = None
    simultaneous_low: Floats | None = None
    simultaneous_high: Floats | None = None

    def _check(self) -> None:
        ends = ("ci_low", "ci_high", "simultaneous_low", "simultaneous_high")
        self._require_shape(("effects", *ends), (len(self.senders),), f"{len(self.senders)} senders")
        if self.through not in ("mlps", "nothing"):
            raise ResultError(f"paths through {self.through!r}. They lead through 'mlps' or 'nothing'.")

    @property
    def title(self) -> str:
        return f"Path patching into {', '.join(self.receivers)}"

    def components(self) -> tuple[Component, ...]:
        """Every sender, or set of senders, with its effect."""
        low, high = self.simultaneous_low, self.simultaneous_high
        if low is None:
            low, high = self.ci_low, self.ci_high
        ends = intervals(low, high, len(self.senders))
        found = []
        for label, effect, ci in zip(self.senders, self.effects.tolist(), ends, strict=True):
            layer = head = None
            name = ""
            if label.startswith("L") and " + " not in label:
                layer, kind, index = node_order(label)
                head, name = (index, "z") if kind == 1 else (None, "mlp_out")
            found.append(Component(label, effect, name=name, layer=layer, head=head, ci=ci))
        return tuple(found)

    def summary(self) -> str:
        on = measured_on_text(self.measured_on)
        paths = "through MLPs, other heads frozen" if self.through == "mlps" else "direct edges only"
        return self._with_limits(
            f"{self.title} ({paths}{f'; {on}' if on else ''}). {self.metric} is {number(self.clean_metric)} "
            f"on clean and {number(self.corrupted_metric)} on corrupted.\n"
            f"Largest share of that gap: {listed(self.top_components(5))}, of {len(self.senders)} senders."
            f"{self._established_text()}"
        )

    def _established_text(self) -> str:
        if self.simultaneous_low is None or len(self.senders) == 1:
            return ""
        return f"\n{established_text(established(self.components()), len(self.senders))}"

    def shows(self) -> tuple[Show, ...]:
        top = self.top_components(_MOST_BARS)
        drawn = bars(
            top,
            title=f"{self.title}: the largest effects" if len(top) < len(self.senders) else self.title,
            unit=f"share of the {self.metric} gap",
            reading="0 is as clean, 1 as corrupted: the sender's change reaches the receivers only.",
            zeros=False,
        )
        over = "" if self.per_example is None else f", over {pairs_text(len(self.per_example))}"
        table = effects_table(
            top,
            title="Effects of the senders",
            columns=("sender", "share of the gap"),
            caption=f"The strongest {len(top)} of {len(self.senders)} senders{over}.",
        )
        alone = "An effect is what the sender does through these paths alone; "
        return drawn, table, Note(f"{alone}paths through other heads are not in it.")
