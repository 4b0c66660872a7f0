"""Numbers on their way into a statistic: as float64, and refused where they are not finite."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlxterp.errors import StatisticsError

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

_NAMED = 5


def finite(values: ArrayLike, name: str) -> Floats:
    """`values` as a float64 array.

    Raises:
        StatisticsError: some are NaN or infinite; the message names the first positions.
    """
    array = np.asarray(values, dtype=np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        places = ", ".join(str(tuple(int(i) for i in at)) for at in bad[:_NAMED])
        raise StatisticsError(
            f"{name}: {len(bad)} of {array.size} numbers are not finite, at {places}"
            f"{' …' if len(bad) > _NAMED else ''}. Leave these out, and say so, or find out why."
        )
    return array


def finite_row(values: ArrayLike, name: str, *, at_least: int = 1) -> Floats:
    """`finite` for one axis with at least so many entries."""
    array = finite(values, name)
    if array.ndim != 1 or len(array) < at_least:
        raise StatisticsError(
            f"{name} has shape {array.shape}. Give one axis of at least {at_least} numbers."
        )
    return array
