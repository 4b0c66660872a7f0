"""The sites of a sweep, and which run is patched with which: shared by patching and its estimates.

A sweep has axes and a grid of sites; two runs with aligned positions; and a `PatchingResult`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from mlxterp.causal.batching import sweep
from mlxterp.causal.prompts.cautions import of_component
from mlxterp.causal.prompts.encoding import Ids, require_model, str_tokens
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.component_names import component_name
from mlxterp.core.hook_points import HookPoint, axes
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError, TokenError
from mlxterp.metrics import Floats
from mlxterp.results import MeasuredAgain, PatchingResult
from mlxterp.statistics.effects import Effects, Search

By: TypeAlias = Literal["layer", "layer_pos", "layer_head", "layer_pos_head"]
Direction: TypeAlias = Literal["denoising", "noising"]


@dataclass(frozen=True)
class Site:
    """One cell of a sweep: base positions with the source position of each, and a head or all of them."""

    layer: int
    positions: tuple[tuple[int, int], ...]
    head: int | None


@dataclass(frozen=True)
class Grid:
    """The sites of a sweep: all combinations along its axes; any other axis is patched all at once."""

    axes: tuple[str, ...]
    layers: tuple[int, ...]
    positions: tuple[tuple[int, int], ...]  # (base, source)
    heads: tuple[int | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(entries) for entries in self.indices().values())

    def indices(self) -> dict[str, tuple[int, ...]]:
        """The numbers along each axis, in the axes' order."""
        every = {
            "layer": self.layers,
            "pos": tuple(base for base, _ in self.positions),
            "head": tuple(head for head in self.heads if head is not None),
        }
        return {axis: every[axis] for axis in self.axes}

    def name_of(self, flat: int) -> str:
        """`L3.H2 pos 4`: a site by the numbers along the axes, from its place in the flattened effects."""
        cell = np.unravel_index(flat, self.shape)
        along = {axis: numbers[i] for (axis, numbers), i in zip(self.indices().items(), cell, strict=True)}
        head = f".H{along['head']}" if "head" in along else ""
        pos = f" pos {along['pos']}" if "pos" in along else ""
        return f"L{along['layer']}{head}{pos}"

    def sites(self) -> list[Site]:
        cells = [(entry,) for entry in self.positions] if "pos" in self.axes else [self.positions]
        return [Site(*site) for site in itertools.product(self.layers, cells, self.heads)]


@dataclass(frozen=True)
class Runs:
    """Which run is patched (base) and which one the activations come from (source).

    An effect is 0 where the metric is the base run's, 1 where it is the source run's. Positions are (base,
    source); below `same_until` both prompts hold the same tokens.
    """

    direction: Direction
    base: Ids
    source: Ids
    base_run: sweep.BaseRun | None
    source_run: sweep.BaseRun | None
    base_metric: Floats
    source_metric: Floats
    positions: tuple[tuple[int, int], ...]
    same_until: int
    mapped: bool  # whether positions correspond by a stated map

    def changes(self, position: tuple[int, int]) -> bool:
        """Whether the activations can differ: below the first difference both runs hold the same ones."""
        base, source = position
        return base != source or base >= self.same_until


@dataclass(frozen=True)
class Sweep:
    """A component and the grid of its sites."""

    component: str
    grid: Grid


Sweeps: TypeAlias = Sequence[tuple[str, By | None]]
"""(component, by) of each sweep of a call; by None is the component's default."""


def check_sweeps(
    model: InterpretableModel, sweeps: Sweeps, direction: str
) -> list[tuple[str, tuple[str, ...]]]:
    """The component and axes of each sweep.

    Raises:
        SweepError: an unknown direction, no sweep, or axes that a component does not have.
        CapabilityUnavailable: this model has no such component, in any layer.
    """
    require_model(model)
    if direction not in get_args(Direction):
        raise SweepError(
            f"direction {direction!r} is not known. Choose one of: {', '.join(get_args(Direction))}."
        )
    if not sweeps:
        raise SweepError("sweeps is empty. Name at least one, as in sweeps=[('z', 'layer_head')].")
    names = [component_name(component) for component, _ in sweeps]
    found = [(name, axes_of(name, by)) for name, (_, by) in zip(names, sweeps, strict=True)]
    model.architecture.require_in_some_layer(*names)
    return found


def axes_of(name: str, by: str | None) -> tuple[str, ...]:
    """The axes of a sweep of this component, from `by` or the component's default."""
    has_heads = axes(HookPoint(name, 0)).head is not None
    if by is None:
        by = "layer_head" if has_heads else "layer"
    if by not in get_args(By):
        raise SweepError(f"by={by!r} is not known. Choose one of: {', '.join(get_args(By))}.")
    if by.endswith("head") and not has_heads:
        raise SweepError(
            f"by={by!r} asks for heads, and {name} has none: it is a vector of the residual stream. Per "
            "head there are z (what each head passes to W_O), q, k, v and pattern."
        )
    return tuple(by.split("_"))


def plan_sweeps(
    model: InterpretableModel,
    runs: Runs,
    named: Sequence[tuple[str, tuple[str, ...]]],
    layers: Sequence[int] | None,
    positions: Sequence[int] | None,
) -> list[Sweep]:
    """The sites of each sweep: of these layers and positions only, if they are given; of all layers that have
    the component, if not.

    Raises:
        CapabilityUnavailable: a layer that was asked for has no such component.
    """
    if any(name == "pattern" for name, _ in named) and runs.mapped:
        raise SweepError(
            "patterns have a source axis as long as the prompt, so they cannot be patched or compared "
            "between prompts of different lengths. Use prompts of the same length, or component='z'."
        )
    chosen_layers = within(layers, model.n_layers, "layers")
    chosen_positions = swept_positions(positions, runs)
    swept = {name: _swept_layers(model, name, layers, chosen_layers) for name, _ in named}
    return [
        Sweep(name, Grid(along, swept[name], chosen_positions, _swept_heads(model, name, along)))
        for name, along in named
    ]


def _swept_layers(
    model: InterpretableModel, name: str, asked: Sequence[int] | None, chosen: tuple[int, ...]
) -> tuple[int, ...]:
    if asked is None:
        return model.architecture.layers_with(name)
    for layer in chosen:
        model.architecture.require_in_layer(name, layer)
    return chosen


def _swept_heads(model: InterpretableModel, name: str, along: Sequence[str]) -> tuple[int | None, ...]:
    return tuple(range(sweep.n_heads_of(model, name))) if "head" in along else (None,)


def runs_of(prepared: Prepared, direction: Direction) -> Runs:
    """Denoising patches the corrupted run, noising the clean one."""
    p = prepared
    clean = p.clean, p.clean_run, p.clean_metric
    corrupted = p.corrupted, p.corrupted_run, p.corrupted_metric
    base, source = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
    pairs = [(x, c) if direction == "denoising" else (c, x) for c, x in p.alignment.positions]
    return Runs(
        direction,
        base=base[0],
        source=source[0],
        base_run=base[1],
        source_run=source[1],
        base_metric=base[2],
        source_metric=source[2],
        positions=tuple(sorted(pairs)),
        same_until=p.alignment.same_until,
        mapped=p.alignment.stated is not None,
    )


def patching_result(
    model: InterpretableModel,
    prepared: Prepared,
    runs: Runs,
    swept: Sweep,
    found: Effects,
    cautions: Sequence[str] = (),
    **further: Any,
) -> PatchingResult:
    """A result of these effects, with what limits them; `further` are fields that only some methods have."""
    grid = swept.grid
    limits = (*of_component(model, swept.component, grid.layers), *prepared.cautions(model), *cautions)
    labelled = "pos" in grid.axes
    result = PatchingResult(
        effects=found.effects,
        axes=grid.axes,
        component=swept.component,
        by="_".join(grid.axes),
        direction=runs.direction,
        metric=prepared.metric.name,
        clean_metric=float(prepared.clean_metric.mean()),
        corrupted_metric=float(prepared.corrupted_metric.mean()),
        labels={"pos": _token_labels(model, prepared, runs.direction, grid.positions)} if labelled else {},
        indices=grid.indices(),
        per_example=found.per_example if len(prepared.pairs) > 1 else None,
        ci_low=found.low,
        ci_high=found.high,
        cautions=limits,
        **further,
    )
    return result if found.search is None else _with_search(result, found.search)


def _with_search(result: PatchingResult, search: Search) -> PatchingResult:
    """The result with intervals for all sites at once, and its winners measured again."""
    labels = [component.label for component in result.components()]
    return replace(
        result,
        simultaneous_low=search.low,
        simultaneous_high=search.high,
        measured_again=tuple(
            MeasuredAgain(
                label=labels[each.site],
                searched=each.searched,
                effect=each.effect,
                ci=(each.low, each.high),
            )
            for each in search.winners
        ),
        chosen_on=search.chosen_on,
        cautions=(*result.cautions, *(text for text in search.cautions if text not in result.cautions)),
    )


def swept_positions(positions: Sequence[int] | None, runs: Runs) -> tuple[tuple[int, int], ...]:
    """(base, source) of the chosen base positions, or of all that are aligned."""
    if positions is None:
        return runs.positions
    wanted = within(positions, runs.base.shape[1], "positions")
    known = dict(runs.positions)
    missing = [p for p in wanted if p not in known]
    if missing:
        raise TokenError(
            f"positions {missing} have no counterpart in the other prompt under this alignment. Aligned "
            f"are: {sorted(known)}."
        )
    return tuple((p, known[p]) for p in wanted)


def within(chosen: Sequence[int] | None, size: int, what: str) -> tuple[int, ...]:
    """The chosen numbers below `size`, ascending and counted from the start; all of them for None."""
    if chosen is None:
        return tuple(range(size))
    if isinstance(chosen, int):
        raise SweepError(f"{what}={chosen} is one number. Pass a list, as in {what}=[{chosen}].")
    if isinstance(chosen, str) or not all(isinstance(i, (int, np.integer)) for i in chosen):
        raise SweepError(
            f"{what}={chosen!r} is no list of whole numbers. Pass one, as in {what}=[0, -1], or leave it out "
            "for all of them."
        )
    outside = [i for i in chosen if not -size <= i < size]
    if outside or not len(chosen):
        raise SweepError(
            f"{what}={list(chosen)}: {f'{outside} do not exist' if outside else 'there is none to sweep'}. "
            f"There are {what} 0 to {size - 1}; negative ones count from the end."
        )
    unique = tuple(sorted({i % size for i in chosen}))
    if len(unique) != len(chosen):
        raise SweepError(f"{what}={list(chosen)} names one twice. List each once.")
    return unique


def _token_labels(
    model: InterpretableModel, prepared: Prepared, direction: Direction, swept: Sequence[tuple[int, int]]
) -> tuple[str, ...]:
    """The clean token at each position, with the corrupted one beside it where they differ."""
    labels = []
    for base, source in swept:
        c, x = (source, base) if direction == "denoising" else (base, source)
        clean, corrupted = prepared.clean[:, c], prepared.corrupted[:, x]
        names = [_one_label(model, clean)]
        if not np.array_equal(clean, corrupted):
            names.append(_one_label(model, corrupted))
        labels.append("/".join(names))
    return tuple(labels)


def _one_label(model: InterpretableModel, token_ids: Ids) -> str:
    first = str_tokens(model, token_ids[:1])[0]
    return first if len(set(token_ids.tolist())) == 1 else f"{first}…"
