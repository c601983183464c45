"""What runs that differ in their seed alone found together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from theory import intervals
from theory.intervals import Estimate

# How means over runs are told.
EXPLAINED = (
    "After ±, or in brackets: 95 % interval of the mean over seeds, by Student's t; of one run, of its share of test "
    "rows, by Wilson's formula."
)


def of_runs(values: Sequence[float], right: str = "") -> Estimate:
    """Mean over runs with its 95 % interval; of one run that of its test rows, if it is a share of them.

    Args:
        values: one of each run.
        right: which test rows the first has right, as digits 0 and 1; it counts where there is one run alone.

    Example:
        >>> from ntkprefix.records.seeds import of_runs
        >>> [round(end, 2) for end in of_runs([0.5, 0.7])]
        [0.6, -0.67, 1.87]
        >>> [round(end, 2) for end in of_runs([0.75], right="1110")]
        [0.75, 0.3, 0.95]
    """
    if len(values) > 1:
        return intervals.mean(values)
    if right:
        return Estimate(values[0], *intervals.share(bits(right))[1:])
    return Estimate(values[0] if values else math.nan, math.nan, math.nan)


def of_seeds(table: Mapping[str, Any], method: str, what: str = "right") -> Estimate:
    """What the seeds of one method in a task's table found that did not diverge, see `means`."""
    return of_runs(list(means(table, method, what).values()))


def of_field(tables: Sequence[Mapping[str, Any]], method: str, what: str = "right") -> Estimate:
    """Likewise of the mean over a field's tasks."""
    return over_seeds([means(table, method, what) for table in tables])


def over_seeds(values: Sequence[Mapping[int, float]]) -> Estimate:
    """Mean over tasks, seed by seed, and then over the seeds that all have."""
    seeds = set.intersection(*(set(each) for each in values))
    return of_runs([float(np.mean([each[seed] for each in values])) for seed in sorted(seeds)])


def means(table: Mapping[str, Any], method: str, what: str = "right") -> dict[int, float]:
    """Of every seed that finished, the share of test rows that is right, or with `what` "loss" its loss on them."""
    tests = next(row["tests"] for row in table["rows"] if row["method"] == method)
    return {
        seed: float(bits(test["right"]).mean()) if what == "right" else test[what]
        for seed, test in zip(table["seeds"], tests, strict=True)
        if test is not None
    }


def diverged(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for every method of which seeds diverged: they are in no mean."""
    return [
        f"{row['method']} on {table['task']}: {row['tests'].count(None)} of {len(table['seeds'])} seeds diverged; they "
        "are in no mean."
        for table in tables
        for row in table["rows"]
        if None in row["tests"]
    ]


def bits(right: str) -> np.ndarray:
    """Digits 0 and 1 as booleans."""
    return np.array([digit == "1" for digit in right])


def plus_minus(estimate: Estimate, written: Callable[[float], str] = "{:.3f}".format) -> str:
    """A number and half of its interval, or both ends where it is not symmetric.

    Args:
        estimate: the number and the ends of its interval, NaN where there is none.
        written: how numbers are; as shares if absent.

    Example:
        >>> from ntkprefix.records.seeds import plus_minus
        >>> from theory.intervals import Estimate
        >>> plus_minus(Estimate(0.5, 0.4, 0.6)), plus_minus(Estimate(0.9, 0.7, 0.96))
        ('0.500 ± 0.100', '0.900 [0.700, 0.960]')
    """
    value, low, high = estimate
    if math.isnan(low) or math.isnan(high):
        return written(value)
    if math.isclose(high - value, value - low, rel_tol=1e-6, abs_tol=1e-9):
        return f"{written(value)} ± {written((high - low) / 2)}"
    return f"{written(value)} [{written(low)}, {written(high)}]"
