"""From runs to the rows of tables: accuracies with intervals and pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkprefix.records.seeds import bits, means, over_seeds
from ntkprefix.report import Table
from theory import intervals


def by_method(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per run of a comparison: accuracy, its 95 % interval (Wilson's, over the held-out images), and sizes."""
    rows = []
    for run in results["runs"]:
        estimate = intervals.share(bits(run["right"]))
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
    right = {run["method"]: bits(run["right"]).astype(float) for run in results["runs"]}
    return intervals.mean(right[method] - right[other])


def ahead(tables: Sequence[dict[str, Any]], method: str, other: str, what: str = "right") -> intervals.Estimate:
    """How much larger a share of the test rows one method gets right than another, or how much smaller its loss is, in
    the mean over tasks, in pairs.

    The pairs are runs with one seed, which take the same rows in the same order.
    """
    gains, sign = [], 1 if what == "right" else -1
    for table in tables:
        first, second = means(table, method, what), means(table, other, what)
        gains.append({seed: sign * (first[seed] - second[seed]) for seed in first if seed in second})
    return over_seeds(gains)


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
