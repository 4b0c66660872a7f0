"""The strongest estimates verified by patching, and some of the others at random.

What lives here: which sites are patched, their measured metrics in place of the estimated ones, how far both
lie apart. What doesn't: the estimates (`estimates.py`), patching (`activation_patching.py`), what a reader is
told of it (`attribution_patching.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.patching.activation_patching import patched_metrics
from mlxterp.causal.patching.sites import Grid, Runs
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.metrics import Floats
from mlxterp.results.shows import Flags

Places: TypeAlias = NDArray[np.intp]
"""Flat indices into a grid."""

CONFIDENCE = 0.95
"""Of the bound on how many of the sites that were not patched have a larger effect than the random ones."""


@dataclass(frozen=True, eq=False)
class Verified:
    """One sweep with some of its sites patched.

    Attributes:
        values: the metric `[n, *grid]` with each site patched: measured where `measured`, else estimated.
        measured: `[*grid]`; also true where both runs are the same, so that patching changes nothing.
        strongest, sampled: the sites that were patched, as flat indices into the grid; by descending
            estimate, and drawn at random from the rest.
        estimates, effects: shares of the gap `[*grid]`, before and after.
        n_left: sites that could have been patched and were not.
    """

    grid: Grid
    values: Floats
    measured: Flags
    strongest: Places
    sampled: Places
    estimates: Floats
    effects: Floats
    n_left: int

    @property
    def differences(self) -> Floats:
        """How far patching lies from the estimate at each site, in size; 0 where nothing was patched."""
        return np.abs(self.effects - self.estimates)

    @property
    def at_most_above(self) -> int:
        """Most sites left whose effect is larger than those of the random ones, with 95 % confidence."""
        return at_most_above(self.n_left + len(self.sampled), len(self.sampled))

    def facts(self) -> dict[str, Any]:
        """What a result records."""
        facts: dict[str, Any] = {
            "strongest_patched": len(self.strongest),
            "random_patched": len(self.sampled),
            "left": self.n_left,
        }
        if len(self.strongest):
            among = self.differences.ravel()[self.strongest]
            facts |= {
                "largest_difference": float(among.max()),
                "median_difference": float(np.median(among)),
            }
        if len(self.sampled):
            facts |= {
                "random_largest_difference": float(self.differences.ravel()[self.sampled].max()),
                "random_largest_effect": float(np.abs(self.effects.ravel()[self.sampled]).max()),
                "left_with_a_larger_effect_at_most": self.at_most_above,
            }
        return facts


class _Chosen(NamedTuple):
    """Flat indices: the strongest, those drawn at random, and how many that could be patched are left."""

    strongest: Places
    sampled: Places
    n_left: int


def refuse_count(verify: object) -> None:
    """Raises SweepError for what is no number of sites."""
    if isinstance(verify, bool) or not isinstance(verify, int | np.integer) or verify < 0:
        raise SweepError(
            f"verify={verify!r}: it is how many of the strongest sites are patched. Give a whole number, 0 "
            "for none."
        )


def verified(
    model: InterpretableModel,
    prepared: Prepared,
    runs: Runs,
    sweeps: Sequence[tuple[str, Grid]],
    estimated: Sequence[Floats],
    *,
    one: Floats,
    verify: int,
    seed: int,
) -> list[Verified]:
    """Per sweep of a component over a grid, the `verify` strongest sites patched, and half as many others.

    Args:
        estimated: per sweep, the metric `[n, *grid]` that was estimated with each site patched.
        one: the metric `[n]` that counts as an effect of 1: the source run's.
        seed: of the draw.
    """
    base = float(runs.base_metric.mean())
    gap = float(one.mean()) - base
    estimates = [(values.mean(axis=0) - base) / gap for values in estimated]
    changing = [_changing(grid, runs) for _, grid in sweeps]
    chosen = [_choose(shares, where, verify, seed) for shares, where in zip(estimates, changing, strict=True)]
    named = []
    for (name, grid), sites in zip(sweeps, chosen, strict=True):
        every = grid.sites()
        named.append((name, [every[i] for i in (*sites.strongest, *sites.sampled)]))
    found = []
    patched = patched_metrics(model, prepared, runs, named, None)
    for (_, grid), guessed, shares, where, sites, metrics in zip(
        sweeps, estimated, estimates, changing, chosen, patched, strict=True
    ):
        values, places = guessed.reshape(len(guessed), -1).copy(), np.concatenate(sites[:2])
        values[:, places] = metrics
        measured = ~where
        measured[places] = True
        effects = shares.ravel().copy()
        effects[places] = (metrics.mean(axis=0) - base) / gap
        found.append(
            Verified(
                grid=grid,
                values=values.reshape(guessed.shape),
                measured=measured.reshape(grid.shape),
                strongest=sites.strongest,
                sampled=sites.sampled,
                estimates=shares,
                effects=effects.reshape(grid.shape),
                n_left=sites.n_left,
            )
        )
    return found


def at_most_above(population: int, sample: int) -> int:
    """Most members of a population above the largest of a random sample of it, with 95 % confidence.

    The chance that none of the k largest is drawn is C(population − k, sample) / C(population, sample): more
    than the answer are above only after a draw of 5 % chance or less, however the numbers are distributed.
    """
    chance = 1.0
    for k in range(population - sample):
        chance *= (population - sample - k) / (population - k)
        if chance <= 1 - CONFIDENCE:
            return k
    return population - sample


def _changing(grid: Grid, runs: Runs) -> Flags:
    """Of each site, whether patching it can change anything."""
    return np.array([any(map(runs.changes, site.positions)) for site in grid.sites()], dtype=np.bool_)


def _choose(estimates: Floats, changing: Flags, verify: int, seed: int) -> _Chosen:
    """Of equally strong sites the first; one without a finite estimate is as strong as can be."""
    size = np.abs(estimates).ravel()
    size = np.where(np.isfinite(size), size, np.inf)
    order = np.argsort(-size, kind="stable")
    order = order[changing[order]]
    strongest, rest = order[:verify], np.sort(order[verify:])
    n = min(len(rest), math.ceil(verify / 2))
    sampled = np.sort(np.random.default_rng(seed).choice(rest, size=n, replace=False))
    return _Chosen(strongest, sampled, len(rest) - n)
