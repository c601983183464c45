"""What is drawn of numbers over seeds: middles with ranges, and the powers that fit them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from theory.intervals import Numbers
from theory.verdicts import asymptotic


def centre(values: Numbers, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Geometric mean and range over seeds; NaN where a seed diverged.

    Example:
        >>> from theory.curves import centre
        >>> [ends.round(6).tolist() for ends in centre([[1.0, 4.0]], axis=1)]
        [[2.0], [1.0], [4.0]]
    """
    floor = np.maximum(np.asarray(values, float), np.finfo(np.float32).tiny)
    return np.exp(np.log(floor).mean(axis=axis)), floor.min(axis=axis), floor.max(axis=axis)


def fitted_power(lengths: Sequence[int], values: Numbers, exponent: float) -> tuple[np.ndarray, np.ndarray]:
    """The power of M with this exponent through the rungs that it was fitted to: those rungs, and its heights there.

    Args:
        lengths: M, [lengths].
        values: [lengths, seeds].
        exponent: fitted to them.

    Example:
        >>> from theory.curves import fitted_power
        >>> rungs, heights = fitted_power([1024, 2048, 4096], [[4.0], [2.0], [1.0]], -1.0)
        >>> rungs.tolist(), heights.round(6).tolist()
        ([1024.0, 2048.0, 4096.0], [4.0, 2.0, 1.0])
    """
    chosen = asymptotic(lengths)
    rungs = np.array(lengths[chosen], float)
    middle = centre(np.asarray(values, float)[chosen], axis=1)[0]
    return rungs, np.exp(np.log(middle).mean() - exponent * np.log(rungs).mean()) * rungs**exponent


def spread_out(count: int, most: int = 7) -> list[int]:
    """Indices of at most so many rungs, spread over the ladder, with both ends.

    Example:
        >>> from theory.curves import spread_out
        >>> spread_out(4), spread_out(10, most=3)
        ([0, 1, 2, 3], [0, 4, 9])
    """
    return sorted({round(index) for index in np.linspace(0, count - 1, min(count, most))})
