"""The normal, Student's t, beta and binomial distributions, to 1e-10 of scipy's.

Why not scipy: judging must give the same answer wherever it runs, and start in a moment. Tails are computed
as such, never as 1 minus the rest, so that a level of 1e-9 is as exact as one of 0.05.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from mlxterp.errors import StatisticsError
from mlxterp.statistics.arrays import Floats

_STEPS = 100_000
_TINY = 1e-300


def normal_sf(z: ArrayLike) -> Floats:
    """P(Z > z) of the standard normal distribution."""
    return np.asarray([0.5 * math.erfc(x / math.sqrt(2.0)) for x in _flat(z)]).reshape(np.shape(z))


def normal_quantile(p: float) -> float:
    """The z with P(Z ≤ z) = p.

    Bisection on the smaller tail until the interval has no number inside.

    Raises:
        StatisticsError: p outside (0, 1).
    """
    _check_probability(p)
    if p > 0.5:
        return -normal_quantile(1.0 - p)
    low, high = -40.0, 0.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if 0.5 * math.erfc(-middle / math.sqrt(2.0)) > p else (middle, high)
    return high


def incomplete_beta(a: ArrayLike, b: ArrayLike, x: ArrayLike) -> Floats:
    """The regularised incomplete beta function I_x(a, b): P(B ≤ x) for B ~ Beta(a, b).

    The continued fraction of DLMF 8.17.22 by Lentz's method, on the side where it converges in about
    √max(a, b) steps; the factor in front in Loader's form, which loses no digits for large a and b.

    Args:
        a, b: positive; broadcast with x.
        x: in [0, 1].

    Raises:
        StatisticsError: a or b not positive, or x outside [0, 1].

    Source: Loader 2000, "Fast and accurate computation of binomial probabilities"; Lentz 1976.
    """
    a, b, x = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (a, b, x)))
    if not (np.all(a > 0) and np.all(b > 0) and np.all((x >= 0) & (x <= 1))):
        raise StatisticsError("incomplete beta: a and b must be positive, and x between 0 and 1.")
    points = zip(*(v.ravel().tolist() for v in (a, b, x)), strict=True)
    return np.asarray([_beta(p, q, at, 1.0 - at) for p, q, at in points]).reshape(x.shape)


@lru_cache(maxsize=65536)
def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with I_x(a, b) = p, by bisection until the interval has no number inside.

    Raises:
        StatisticsError: p outside (0, 1), or a or b not positive.
    """
    _check_probability(p)
    if not (a > 0 and b > 0):
        raise StatisticsError(f"a beta distribution with a = {a:g} and b = {b:g}. Both must be positive.")
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _beta(a, b, middle, 1.0 - middle) < p else (low, middle)
    return high


def t_sf(t: ArrayLike, df: float) -> Floats:
    """P(T > t) of Student's t distribution with `df` degrees of freedom."""
    return np.asarray([_t_tail(x, df) for x in _flat(t)]).reshape(np.shape(t))


def t_cdf(t: ArrayLike, df: float) -> Floats:
    """P(T ≤ t) of Student's t distribution with `df` degrees of freedom."""
    return t_sf(-np.asarray(t, dtype=np.float64), df)


def t_quantile(p: float, df: float) -> float:
    """The t with P(T ≤ t) = p, for `df` degrees of freedom.

    Raises:
        StatisticsError: p outside (0, 1), or df not positive.
    """
    return -upper_t_quantile(p, df)


@lru_cache(maxsize=65536)
def upper_t_quantile(alpha: float, df: float) -> float:
    """The t with P(T > t) = alpha; for a small alpha more exact than `t_quantile(1 - alpha, df)`.

    Raises:
        StatisticsError: alpha outside (0, 1), or df not positive.
    """
    _check_probability(alpha)
    if alpha > 0.5:
        return -upper_t_quantile(1.0 - alpha, df)
    low, high = 0.0, 1.0
    while _t_tail(high, df) > alpha:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _t_tail(middle, df) > alpha else (low, middle)
    return high


def binomial_sf(k: int, n: int, p: float) -> float:
    """P(X ≥ k) for X ~ Binomial(n, p)."""
    if not 0 <= k <= n or not 0.0 <= p <= 1.0:
        raise StatisticsError(f"{k} of {n} with probability {p:g}: give 0 ≤ k ≤ n and a probability.")
    return 1.0 if k == 0 else _beta(k, n - k + 1, p, 1.0 - p)


def _t_tail(t: float, df: float) -> float:
    whole = df + t * t
    half = 0.5 * _beta(df / 2, 0.5, df / whole, t * t / whole)
    return half if t >= 0 else 1.0 - half


def _beta(a: float, b: float, x: float, y: float) -> float:
    """I_x(a, b), with y = 1 − x given as exactly as x."""
    if x * (a + b + 2.0) > a + 1.0:
        return 1.0 - _beta_tail(b, a, y, x)
    return _beta_tail(a, b, x, y)


def _beta_tail(a: float, b: float, x: float, y: float) -> float:
    if x == 0.0:
        return 0.0
    whole = a + b
    log_front = (
        a * math.log(x * whole / a)
        + b * math.log(y * whole / b)
        - _stirling_error(a)
        - _stirling_error(b)
        + _stirling_error(whole)
        + 0.5 * math.log(b / (2.0 * math.pi * a * whole))
    )
    return math.exp(log_front) * _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) < 1e-14:
            return value
    raise AssertionError("the continued fraction of the incomplete beta function did not converge")


def _not_zero(value: float) -> float:
    return value if abs(value) >= _TINY else _TINY


def _stirling_error(x: float) -> float:
    """ln Γ(x) − Stirling's formula for it."""
    if x < 10.0:
        return math.lgamma(x) - ((x - 0.5) * math.log(x) - x + 0.5 * math.log(2 * math.pi))
    square = 1.0 / (x * x)
    series = 1 / 1680
    for coefficient in (1 / 1260, 1 / 360, 1 / 12):
        series = coefficient - square * series
    return series / x


def _check_probability(p: float) -> None:
    if not 0.0 < p < 1.0:
        raise StatisticsError(f"a quantile at probability {p!r}. Give one between 0 and 1, both excluded.")


def _flat(values: ArrayLike) -> list[float]:
    return [float(v) for v in np.asarray(values, dtype=np.float64).ravel()]
