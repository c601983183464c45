"""What the machine can do at most, and how much of it attention reaches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import finished, in_rounds, many

# Matrices of 4 MB and an array of 1 MB: large enough for full speed, small enough to stay in a cache.
_SIDE, _NUMBERS = 1024, 2**18
# A GPU's matrices of 128 MB, and 4 GB, many times what its cache holds; and how often, since starting takes time.
_GPU_SIDE, _GPU_BYTES, _GPU_CALLS = 8192, 2**32, 10


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


def gpu_limits() -> dict[str, float]:
    """Bfloat16 operations of matrix products, and bytes read and written, per second."""
    matrix = jax.random.normal(jax.random.key(0), (_GPU_SIDE, _GPU_SIDE), jnp.bfloat16)
    numbers = jnp.ones(_GPU_BYTES // 2, jnp.bfloat16)
    products = finished(many(jax.jit(jnp.matmul), _GPU_CALLS), matrix, matrix)
    copies = finished(many(jax.jit(jnp.negative), _GPU_CALLS), numbers)
    seconds = in_rounds([products, copies], 5).min(axis=1) / _GPU_CALLS
    return {
        "operations": float(f"{2 * _GPU_SIDE**3 / seconds[0]:.3g}"),
        "bytes": float(f"{2 * _GPU_BYTES / seconds[1]:.3g}"),
    }


def seconds_at_least(rates: dict[str, float], *, queries: int, heads: int, width: int, gradient: bool) -> float:
    """What causal attention of T = S queries without a prefix takes at the machine's limits, one after the other.

    Matrix products of T^2 / 2 logits with H columns, two forward and five backward, and as many exponentials as
    logits, once forward and once backward.
    """
    logits = heads * queries**2 / 2
    products, exponentials = (7, 2) if gradient else (2, 1)
    return logits * (2 * width * products / rates["operations"] + exponentials / rates["exponentials"])
