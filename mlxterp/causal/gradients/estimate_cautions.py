"""What a reader is told of estimates of patching: how far to trust them, and where not.

What lives here: the sentences, from numbers that others found. What doesn't: the estimates (`estimates.py`),
which sites are patched to verify them (`verification.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlxterp.causal.gradients.estimates import Wanted
from mlxterp.causal.gradients.verification import Places, Verified
from mlxterp.causal.patching.sites import Grid
from mlxterp.metrics import Floats
from mlxterp.results.shows import number

UNSTEADY, NAMED = 0.1, 6
"""From which range of single steps' effects on a site is named, if it is also above their mean; and how many
are named."""

MISSED = 0.1
"""From which effect of a site drawn at random the estimates are said to miss sites, if it is also above the
median of the strongest."""

STREAM = ("resid_pre", "resid_mid", "resid_post")
"""Components that are the residual stream itself."""


def cautions(
    wanted: Wanted, facts: Mapping[str, Any], *, grad_drop: bool, checked: Verified | None
) -> Iterator[str]:
    """What limits these estimates; where all were verified, only how far off they had been."""
    share = facts.get("estimate_of_patching_the_whole_input")
    check = ""
    if share is not None:
        check = f" By the same gradient, patching the whole input has an effect of {share:.2f}; in truth, 1."
    if checked is None:
        yield f"Estimated to first order, nothing was patched: confirm what matters by patching.{check}"
    else:
        yield from _of_verifying(checked, check)
        if not checked.n_left:
            return
    if grad_drop:
        yield (
            "GradDrop gives magnitudes; the sign is that of the plain estimate, which is least certain where "
            "effects cancel."
        )
    if wanted.name in STREAM:
        yield (
            "On the residual stream a patch is a large change, so the estimate is poor by nature: on SmolLM2 "
            "and an IOI pair it shares at most 3 of its 10 strongest sites with patching. Patch it instead."
        )
    if wanted.name in ("q", "k") and not wanted.exact_softmax:
        yield (
            "Where attention is saturated (one key has nearly all of it), the gradient at queries and keys "
            "is near 0 whatever a patch would do. Use qk_fix=True."
        )


def unsteady(wanted: Wanted, by_step: Floats, *, checked: Verified | None) -> Iterator[str]:
    """Where single steps [steps, *grid] say so different things that their mean is no more than a hint.

    Sites that were patched are not named: there the mean is not what counts.
    """
    low, high, mean = by_step.min(axis=0), by_step.max(axis=0), by_step.mean(axis=0)
    spread = high - low
    found = (spread > UNSTEADY) & (spread > np.abs(mean))
    if checked is not None:
        found &= ~checked.measured
    order = np.argsort(-np.where(found, spread, 0.0), axis=None, kind="stable")[
        : min(NAMED, int(found.sum()))
    ]
    named = [f"{_site(wanted.grid, int(i))} ({low.ravel()[i]:.2f} to {high.ravel()[i]:.2f})" for i in order]
    if named:
        more = int(found.sum()) - len(named)
        where = ", ".join(named) + (f" and {more} more" if more else "")
        yield f"Single steps disagree at {where}, so no gradient says what patching does there. Patch these."


def _of_verifying(checked: Verified, check: str) -> Iterator[str]:
    n, k, left = len(checked.strongest), len(checked.sampled), checked.n_left
    if left:
        yield (
            f"The {n:,} sites with the strongest estimates were patched, and {k:,} drawn at random from the "
            f"other {k + left:,}. The {left:,} left are estimated to first order.{check}"
        )
    else:
        yield "Every site that a patch can change was patched: effects are measured, not estimated."
    if n:
        where = checked.strongest if left else np.concatenate([checked.strongest, checked.sampled])
        median = float(np.median(checked.differences.ravel()[where]))
        yield (
            f"{'Of the strongest, the' if left else 'The'} estimates were off by {_short(median)} in the "
            f"median and by {_worst(checked, where)}."
        )
    if k and left:
        largest = float(np.abs(checked.effects.ravel()[checked.sampled]).max())
        usual = float(np.median(np.abs(checked.effects.ravel()[checked.strongest])))
        text = (
            f"Of the random ones, the estimates were off by {_worst(checked, checked.sampled)}, and the "
            f"largest effect is {_short(largest)}: with 95 % confidence at most {checked.at_most_above:,} "
            f"of the {left:,} left have a larger one."
        )
        if largest > max(MISSED, usual):
            text += " Drawn at random, one this large says that the estimates miss sites: raise verify."
        yield text


def _worst(checked: Verified, where: Places) -> str:
    """`0.41 at most (L9.H6: estimated 0.55, patched 0.14)`."""
    worst = int(where[np.argmax(checked.differences.ravel()[where])])
    estimate, effect = checked.estimates.ravel()[worst], checked.effects.ravel()[worst]
    site = _site(checked.grid, worst)
    found = f"estimated {_short(estimate)}, patched {_short(effect)}"
    return f"{_short(abs(effect - estimate))} at most ({site}: {found})"


def _short(value: float) -> str:
    """An effect to three decimals: less is rounding."""
    return number(round(value, 3) + 0.0)


def _site(grid: Grid, flat: int) -> str:
    """`L3.H2 pos 4`: a site by the numbers along its grid's axes."""
    cell = np.unravel_index(flat, grid.shape)
    along = {axis: numbers[i] for (axis, numbers), i in zip(grid.indices().items(), cell, strict=True)}
    head = f".H{along['head']}" if "head" in along else ""
    pos = f" pos {along['pos']}" if "pos" in along else ""
    return f"L{along['layer']}{head}{pos}"
