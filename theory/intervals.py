"""Estimates over seeds with their 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
_RESAMPLES = 10_000
# Nested sequences of numbers, as JSON has them, or arrays.
Numbers = float | Sequence[Any] | np.ndarray


class Estimate(NamedTuple):
    """A fitted number and the ends of its 95 % confidence interval.

    Attributes:
        value: the number.
        low: lower end.
        high: upper end.

    Example:
        >>> from theory.intervals import mean
        >>> estimate = mean([1.0, 2.0, 3.0])
        >>> estimate.value, round(estimate.low, 2), round(estimate.high, 2)
        (2.0, -0.48, 4.48)
    """

    value: float
    low: float
    high: float


def mean(values: Numbers) -> Estimate:
    """Mean over seeds with Student's t interval; all NaN when a value is not finite, or too large to be squared.

    Example:
        >>> from theory.intervals import mean
        >>> mean([1.0, 2.0, 3.0]).value
        2.0
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    if not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, math.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        centre, spread = float(values.mean()), float(values.std(ddof=1))
    if not math.isfinite(spread):
        return Estimate(math.nan, math.nan, math.nan)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Estimate(centre, centre - half, centre + half)


def slope(sizes: Numbers, values: Numbers) -> Estimate:
    """Exponent p of value ~ size^p: one log-log fit per seed, then the mean over seeds.

    Args:
        sizes: [sizes].
        values: [sizes, seeds], positive. NaN or an infinity, from a run that diverged, makes the estimate NaN.

    Returns:
        The exponent with its interval over seeds.

    Example:
        >>> from theory.intervals import slope
        >>> round(slope([1, 2, 4], [[8, 16], [4, 8], [2, 4]]).value, 6)
        -1.0
    """
    with np.errstate(divide="ignore"):
        logs = np.log2(np.asarray(values, float))
    return slope_of_logs(np.log2(np.asarray(sizes, float)), logs)


def slope_of_logs(positions: Numbers, logs: Numbers) -> Estimate:
    """Mean over seeds of the least-squares slopes of `logs`, [positions, seeds], against `positions`."""
    # The log of 0 is infinite, and has no slope.
    with np.errstate(invalid="ignore"):
        return mean(_weights(positions) @ np.asarray(logs, float))


def slope_of_medians(positions: Numbers, low: Numbers, high: Numbers) -> Estimate:
    """Least-squares slope of the medians over seeds of numbers of which only brackets are known.

    A median stands where a few seeds are far out, or known only to lie above all others. The interval is the percentile
    interval of resampled seeds, widened by the largest error that any place within the brackets can make.

    Args:
        positions: [positions].
        low: lower ends, [positions, seeds].
        high: upper ends, [positions, seeds]; infinite where there is none. NaN makes the estimate NaN.

    Returns:
        The slope of the brackets' middles with its interval; NaN where a median is infinite.

    Example:
        >>> from theory.intervals import slope_of_medians
        >>> slope_of_medians([0, 1], [[0, 0, 0], [2, 2, 2]], [[1, 1, 1], [3, 3, 3]])
        Estimate(value=2.0, low=1.0, high=3.0)
    """
    weights, low, high = _weights(positions), np.asarray(low, float), np.asarray(high, float)
    # One resampling of seeds for all positions: a seed's draws are alike at all of them.
    chosen = _resampled(low.shape[1])
    below, above = np.median(low, axis=1), np.median(high, axis=1)
    with np.errstate(invalid="ignore"):
        value = weights @ (below + above) / 2
        slopes = weights @ (np.median(low[:, chosen], axis=2) + np.median(high[:, chosen], axis=2)) / 2
        error = np.abs(weights) @ (above - below) / 2
    if not np.isfinite(value):
        return Estimate(math.nan, math.nan, math.nan)
    # Where several medians of a resampling are infinite, its slope may be anything.
    low, high = (
        np.quantile(np.where(np.isnan(slopes), anything, slopes), level, method="closest_observation")
        for level, anything in (((1 - LEVEL) / 2, -math.inf), ((1 + LEVEL) / 2, math.inf))
    )
    return Estimate(float(value), float(low - error), float(high + error))


def _weights(positions: Numbers) -> np.ndarray:
    """What a least-squares slope multiplies values with."""
    positions = np.asarray(positions, float)
    centred = positions - positions.mean()
    return centred / (centred @ centred)


def _resampled(seeds: int) -> np.ndarray:
    """Seeds drawn with replacement, [resamples, seeds]; the same every time, so that numbers give one interval."""
    return np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))


def share(holds: Numbers) -> Estimate:
    """Share of seeds with Wilson's interval, which is honest at 0 and 1: five of five give [0.57, 1].

    Example:
        >>> from theory.intervals import share
        >>> share([True, True, False, True]).value
        0.75
    """
    from scipy.stats import norm

    holds = np.asarray(holds, bool)
    count, rate, z2 = holds.size, float(holds.mean()), float(norm.ppf((1 + LEVEL) / 2)) ** 2
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * rate * (1 - rate) / count + z2**2 / (4 * count**2)) / (1 + z2 / count)
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half))


def largest_fall(holds: Numbers) -> Estimate:
    """Largest fall of a share of seeds from one size to any larger one; 0 when it never falls.

    Args:
        holds: [sizes, seeds].

    Returns:
        The fall, with the percentile interval of resampled seeds.

    Example:
        >>> from theory.intervals import largest_fall
        >>> largest_fall([[True, False], [True, True], [True, False]]).value
        0.5
    """
    holds = np.asarray(holds, bool)
    falls = _fall(holds[:, _resampled(holds.shape[1])].mean(axis=2))
    low, high = np.quantile(falls, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(_fall(holds.mean(axis=1))), float(low), float(high))


def _fall(shares: np.ndarray) -> Any:
    return np.max(np.maximum.accumulate(shares, axis=0) - shares, axis=0)
