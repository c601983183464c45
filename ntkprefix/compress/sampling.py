"""Tokens drawn at random, each weighted by how many it stands for."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ntkprefix.compress.problem import Problem, attention_masses, gather, tokens_within
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class UniformSample:
    """Tokens drawn without replacement, all with the weight M / C: sums over them are unbiased.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.compress import UniformSample, compress
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 64, 2, 4))
        >>> small, _ = compress(keys, values, method=UniformSample(), budget="144 numbers")
        >>> small.keys.shape, jnp.exp(small.log_weights).round(3)[0].tolist()
        ((8, 2, 4), [8.0, 8.0])
    """

    needs_queries = False

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        count = tokens_within(numbers, problem, weighted=True)
        chosen = jax.lax.top_k(jax.random.uniform(key, (problem.heads, problem.length)), count)[1]
        return gather(problem, chosen, jnp.full(chosen.shape, math.log(problem.length / count), problem.keys.dtype))


@dataclasses.dataclass(frozen=True)
class ImportanceSample:
    r"""Tokens drawn by the attention that the queries pay them, each weighted so that sums stay unbiased.

    Priority sampling: token r of importance w_r has priority w_r / u_r with u_r uniform; the C largest are kept, and
    with tau the largest of the others, each stands for max(1, tau / w_r) tokens like it.

    Example:
        >>> import jax, numpy as np
        >>> from ntkprefix.compress import ImportanceSample, compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 1, 4))
        >>> options = {"method": ImportanceSample(), "budget": "8x", "queries": queries}
        >>> drawn = [compress(keys, values, seed=seed, **options).prefix.log_weights for seed in range(50)]
        >>> weights = np.exp(drawn)  # of 7 tokens in each of 50 draws
        >>> bool((weights >= 1).all()), bool(abs(weights.sum(axis=1).mean() - 64) < 8)
        (True, True)

    Source: priority sampling (Duffield, Lund and Thorup, J. ACM 54, 2007).
    """

    needs_queries = True

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        importance = attention_masses(problem)
        count = tokens_within(numbers, problem, weighted=True)
        # An importance of 0 would never be drawn, and its share be lost: a millionth of the mean is drawn when it must.
        mean = jnp.mean(importance, axis=1, keepdims=True)
        log_importance = jnp.log(jnp.maximum(importance, 1e-6 * mean) + jnp.finfo(importance.dtype).tiny)
        priority = log_importance - jnp.log(jax.random.uniform(key, importance.shape, importance.dtype, minval=1e-7))
        if count == problem.length:
            chosen = jnp.broadcast_to(jnp.arange(count)[None], (problem.heads, count))
            return gather(problem, chosen, jnp.zeros((problem.heads, count), importance.dtype))
        largest, chosen = jax.lax.top_k(priority, count + 1)
        threshold, chosen = largest[:, -1:], chosen[:, :-1]
        return gather(
            problem, chosen, jnp.maximum(threshold - jnp.take_along_axis(log_importance, chosen, axis=1), 0.0)
        )
