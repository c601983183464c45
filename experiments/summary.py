"""From runs to the rows of tables: accuracies with intervals, pairs, and sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkprefix.report import Table
from theory import intervals


def by_method(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per run of a comparison: accuracy, its 95 % interval (Wilson's, over the held-out images), and sizes."""
    rows = []
    for run in results["runs"]:
        estimate = intervals.share(_bits(run["right"]))
        sizes = ("adapter_parameters", "head_parameters", "step_size", "seconds", "seconds_per_step", "steps")
        rows.append(
            {
                "method": run["method"],
                "accuracy": estimate.value,
                "interval": [estimate.low, estimate.high],
                **{name: run[name] for name in sizes},
            }
        )
    return rows


def difference(results: dict[str, Any], method: str, other: str) -> intervals.Estimate:
    """How much more accurate one method is than another, with a 95 % interval of pairs: the images that both saw.

    Example:
        >>> from experiments.summary import difference
        >>> runs = [{"method": "a", "right": "1110"}, {"method": "b", "right": "0110"}]
        >>> difference({"runs": runs}, "a", "b").value
        0.25
    """
    right = {run["method"]: _bits(run["right"]).astype(float) for run in results["runs"]}
    return intervals.mean(right[method] - right[other])


def of_seeds(table: dict[str, Any], method: str) -> intervals.Estimate:
    """What the seeds of one method in a task's table found that did not diverge, as a share of the test rows."""
    return intervals.mean([bits.mean() for bits in _right(table, method).values()])


def of_field(tables: Sequence[dict[str, Any]], method: str) -> intervals.Estimate:
    """Likewise of the mean over a field's tasks."""
    return _over_seeds([_means(table, method) for table in tables])


def ahead(tables: Sequence[dict[str, Any]], method: str, other: str) -> intervals.Estimate:
    """How much larger a share of the test rows one method gets right than another, in the mean over tasks, in pairs.

    The pairs are runs with one seed, which take the same rows in the same order.
    """
    gains = []
    for table in tables:
        first, second = _means(table, method), _means(table, other)
        gains.append({seed: first[seed] - second[seed] for seed in first if seed in second})
    return _over_seeds(gains)


def diverged(tables: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for every method of which seeds diverged: they are in no mean."""
    return [
        f"{row['method']} on {table['task']}: {row['tests'].count(None)} of {len(table['seeds'])} seeds diverged; they "
        "are in no mean."
        for table in tables
        for row in table["rows"]
        if None in row["tests"]
    ]


def _over_seeds(values: Sequence[dict[int, float]]) -> intervals.Estimate:
    seeds = set.intersection(*(set(each) for each in values))
    return intervals.mean([float(np.mean([each[seed] for each in values])) for seed in sorted(seeds)])


def _means(table: dict[str, Any], method: str) -> dict[int, float]:
    return {seed: float(bits.mean()) for seed, bits in _right(table, method).items()}


def _right(table: dict[str, Any], method: str) -> dict[int, np.ndarray]:
    """Of every seed that finished, which test rows are right."""
    tests = next(row["tests"] for row in table["rows"] if row["method"] == method)
    return {seed: _bits(test["right"]) for seed, test in zip(table["seeds"], tests, strict=True) if test is not None}


def guesses(results: dict[str, Any]) -> list[str]:
    """Of every run that learnt nothing, a sentence: it ends with the training loss of a guess, or a larger one."""
    guess = math.log(len(results["data"]["classes"]))
    found = []
    for run in results["runs"]:
        last = float(np.mean(run["losses"][-20:]))
        if last > 0.99 * guess:
            found.append(
                f"{run['method']} learnt nothing at its step size {run['step_size']:g}: its "
                f"training loss ends at {last:.2f}, that of a guess is {guess:.2f}."
            )
    return found


def number(value: float | None) -> str:
    """A number for a table; what is smaller than the rounding of what is stored is zero."""
    return "none" if value is None else f"{0.0 if abs(value) < 1e-12 else value:.3g}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as text, for a page."""
    return Table(
        ["method", "held-out accuracy", "95 % interval", "trained", "in the head", "step size", "steps", "s/step", "s"],
        [
            [
                row["method"],
                f"{row['accuracy']:.3f}",
                f"{row['interval'][0]:.3f} to {row['interval'][1]:.3f}",
                f"{row['adapter_parameters']:,}",
                f"{row['head_parameters']:,}",
                f"{row['step_size']:g}",
                f"{row['steps']:,}",
                f"{row['seconds_per_step']:.2g}",
                f"{row['seconds']:.0f}",
            ]
            for row in rows
        ],
    )


def brief(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as text that fits a terminal of 80 columns."""
    return Table(
        ["method", "accuracy [95 % interval]", "trained", "in the head", "s"],
        [
            [
                row["method"],
                f"{row['accuracy']:.3f} [{row['interval'][0]:.3f}, {row['interval'][1]:.3f}]",
                f"{row['adapter_parameters']:,}",
                f"{row['head_parameters']:,}",
                f"{row['seconds']:.0f}",
            ]
            for row in rows
        ],
    )


def break_even(width: int, value_width: int, features: int) -> float:
    """Length M beyond which a feature state of R(Hv + 1) + H + 1 numbers is smaller than M tokens of H + Hv.

    Example:
        >>> from experiments.summary import break_even
        >>> round(break_even(64, 64, 64), 1)
        33.0
    """
    return (features * (value_width + 1) + width + 1) / (width + value_width)


def _bits(right: str) -> np.ndarray:
    return np.array([digit == "1" for digit in right])
