"""What the machine can do at most, and how much of it attention reaches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import finished, in_rounds

# Matrices of 4 MB and an array of 1 MB: large enough for full speed, small enough to stay in a cache.
_SIDE, _NUMBERS = 1024, 2**18


def limits(rounds: int) -> dict[str, float]:
    """Float32 operations of matrix products, and exponentials, per second."""
    matrix, numbers = jnp.ones((_SIDE, _SIDE)), jnp.linspace(-1.0, 0.0, _NUMBERS)
    cases: list[tuple[Callable, jax.Array, float]] = [
        (jnp.matmul, matrix, 2.0 * _SIDE**3),
        (lambda x, _: jnp.exp(x), numbers, float(_NUMBERS)),
    ]
    runs = []
    for function, array, _ in cases:
        runs.append(finished(jax.jit(function), array, array))
    seconds = np.median(in_rounds(runs, rounds), axis=1)
    names = ("operations", "exponentials")
    return {name: float(f"{case[2] / time:.3g}") for name, case, time in zip(names, cases, seconds, strict=True)}


def seconds_at_least(rates: dict[str, float], *, queries: int, heads: int, width: int, gradient: bool) -> float:
    """What causal attention of T = S queries without a prefix takes at the machine's limits, one after the other.

    Matrix products of T^2 / 2 logits with H columns, two forward and five backward, and as many exponentials as
    logits, once forward and once backward.
    """
    logits = heads * queries**2 / 2
    products, exponentials = (7, 2) if gradient else (2, 1)
    return logits * (2 * width * products / rates["operations"] + exponentials / rates["exponentials"])
