"""From runs to the rows of a table: means over seeds with intervals, and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkprefix.report import Table
from theory import intervals


def by_method(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method that finished a run: mean accuracy and its 95 % interval.

    With one seed the interval is Wilson's, over the held-out images. With more it is Student's over seeds, which says
    how much the result depends on the order of the data and the random start, on this one test set.
    """
    rows = []
    for method in dict.fromkeys(run["method"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["method"] == method]
        values = [run["accuracy"] for run in runs]
        estimate = _of_images(values[0], results["data"]["test"]) if len(values) == 1 else intervals.mean(values)
        rows.append(
            {
                "method": method,
                "accuracy": estimate.value,
                "interval": [estimate.low, estimate.high],
                "adapter_parameters": runs[0]["adapter_parameters"],
                "head_parameters": runs[0]["head_parameters"],
                "start": runs[0]["start"],
                "step_size": runs[0]["step_size"],
                "seconds": float(np.mean([run["seconds"] for run in runs])),
                "seconds_per_step": float(np.mean([run["seconds_per_step"] for run in runs])),
                "steps": runs[0]["steps"],
                "seeds": len(runs),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as text, for a page."""
    return Table(
        ["method", "held-out accuracy", "95 % interval", "trained", "in the head", "step size", "steps", "s/step"],
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


def _of_images(accuracy: float, images: int) -> intervals.Estimate:
    return intervals.share(np.arange(images) < round(accuracy * images))
