"""Estimates verified by patching: of the strongest sites, and of some others drawn at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlxterp.causal.patching.activation_patching import patched_metrics
from mlxterp.causal.patching.sites import Grid, Runs, Sweep
from mlxterp.causal.prompts.pair import Prepared
from mlxterp.core.model import InterpretableModel
from mlxterp.errors import SweepError
from mlxterp.metrics import Floats
from mlxterp.results.views import Flags

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


def verify_strongest(
    model: InterpretableModel,
    prepared: Prepared,
    runs: Runs,
    estimated: Sequence[tuple[Sweep, Floats]],
    *,
    verify: int,
    seed: int,
) -> list[Verified]:
    """Per sweep, the `verify` strongest sites patched, and half as many others.

    Args:
        estimated: each sweep with the metric `[n, *grid]` that was estimated with each site patched.
        seed: of the draw.
    """
    base = float(runs.base_metric.mean())
    gap = float(runs.source_metric.mean()) - base
    shares = [(values.mean(axis=0) - base) / gap for _, values in estimated]
    changing = [_changing(each.grid, runs) for each, _ in estimated]
    chosen = [_choose(*each, verify, seed) for each in zip(shares, changing, strict=True)]
    places = [np.concatenate([sites.strongest, sites.sampled]) for sites in chosen]
    every = [each.grid.sites() for each, _ in estimated]
    named = [
        (each.component, [sites[i] for i in at])
        for (each, _), sites, at in zip(estimated, every, places, strict=True)
    ]
    found = []
    for s, patched in enumerate(patched_metrics(model, prepared, runs, named, None)):
        (swept, guessed), measured, effects = estimated[s], ~changing[s], shares[s].copy()
        values = guessed.copy()
        values.reshape(len(values), -1)[:, places[s]] = patched
        measured[places[s]] = True
        effects.reshape(-1)[places[s]] = (patched.mean(axis=0) - base) / gap
        found.append(
            Verified(
                grid=swept.grid,
                values=values,
                measured=measured.reshape(swept.grid.shape),
                strongest=chosen[s].strongest,
                sampled=chosen[s].sampled,
                estimates=shares[s],
                effects=effects,
                n_left=chosen[s].n_left,
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
