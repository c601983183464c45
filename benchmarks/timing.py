"""Times of several things side by side, on machines that are never quite idle."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ntkprefix.runs import progress

_LEAST_SECONDS = 0.2


def finished(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """What calls a function and returns its result when it is there, not when it is under way."""
    return lambda: jax.block_until_ready(function(*arguments))


def many(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """What calls a function so often and returns the last result, without waiting for the others."""

    def run(*arguments: Any) -> Any:
        for _ in range(calls):
            result = function(*arguments)
        return result

    return run


def against(seconds: np.ndarray, first: np.ndarray) -> dict[str, Any]:
    """What one case took in every round, in a result file's words: median, and quartiles over what the first took."""
    quartiles = np.quantile(seconds / first, (0.25, 0.5, 0.75))
    return {
        "milliseconds": float(f"{1e3 * np.median(seconds):.3g}"),
        "relative_time": [float(f"{quartile:.4g}") for quartile in quartiles],
    }


def in_rounds(runs: Sequence[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Seconds that each run takes in each round; a first, untimed round warms up.

    In a round every run has its turn, so that a slow spell of the machine slows all of them, in an order drawn anew, so
    that none is always behind the same other: what follows another process was seen to take longer. It runs
    as often as fills a fifth of a second, so that one interrupt is no tenth of what it takes, and before that once
    untimed: what ran before it has left its own data in the caches, and has given memory back that must be had again.

    Args:
        runs: each returns when its work is done, not when it is under way.
        rounds: how often.

    Returns:
        Seconds, [runs, rounds].
    """
    seconds, random = np.empty((len(runs), rounds)), np.random.default_rng(0)
    with progress(transient=True) as bar:
        for number in bar.track(range(-1, rounds), description="timing"):
            for case in random.permutation(len(runs)):
                run = runs[case]
                run()
                began, times = time.perf_counter(), 0
                while not times or time.perf_counter() - began < _LEAST_SECONDS:
                    run()
                    times += 1
                if number >= 0:
                    seconds[case, number] = (time.perf_counter() - began) / times
    return seconds


def ratio(quartiles: list[float]) -> str:
    """A median with its quartiles, to three digits."""
    low, middle, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in quartiles)
    return f"{middle} ({low} to {high})"
