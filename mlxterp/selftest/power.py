"""Power at the significance levels of an investigation's first claims, before any discovery raises them.

The first claim of a night is judged at level .0013, the hundredth fruitless one at 1e-5; the cap of .005 is
reached only after findings. Residuals are those of SmolLM2's heads, widened to each spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mlxterp.selftest.claims import Night, Population, draw_night, population
from mlxterp.selftest.measured import Progress, smollm2_table, smollm2_world
from mlxterp.statistics.decisions import SESOI, Claim, judge
from mlxterp.statistics.sequential import LEVEL_CAP, level

EFFECTS = (1.5, 2.0, 3.0)
SPREADS = (0.3, 0.5, 0.75, 1.0)
CLAIMS = (1, 5, 20, 100, 1000)
"""Which claim of a night without a finding."""
DRAWS = 200


def power_table(seed: int, progress: Progress) -> list[dict[str, Any]]:
    """The share of effects that are supported, by claim, effect in S and spread in units of the effect."""
    world = smollm2_world(seed)
    of = population(smollm2_table(world, seed, progress), f"{seed}")
    levels = [(f"{number}", level(number)) for number in CLAIMS] + [("cap", LEVEL_CAP)]
    found = []
    for name, alpha in levels:
        for effect in EFFECTS:
            for spread in SPREADS:
                share = power(of, effect, spread, alpha, np.random.default_rng([seed, 7]))
                found.append(
                    {"claim": name, "level": alpha, "effect": effect, "spread": spread, "power": share}
                )
        progress("power", len(found), len(levels) * len(EFFECTS) * len(SPREADS))
    return found


def power(
    of: Population, effect: float, spread: float, alpha: float, rng: np.random.Generator, draws: int = DRAWS
) -> float:
    """The share of `draws` planted effects, in S, that are supported at this level.

    Args:
        spread: standard deviation over clusters, in units of the effect.
    """
    own, supported = of.spread(), 0
    usable = np.flatnonzero(own > 0)
    for _ in range(draws):
        night: Night = draw_night(of, rng)
        head, sesoi = int(rng.choice(usable)), float(rng.choice(SESOI))
        cells = night.cells(head, effect * sesoi, spread * effect * sesoi / float(own[head]))
        supported += judge(cells, Claim(sesoi, bar=night.bar(head)), alpha).outcome == "supported"
    return supported / draws
