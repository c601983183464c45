"""Weighted tokens: the means of clusters of keys, each as heavy as the tokens in it."""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from ntkprefix.compress.problem import Problem, tokens_within
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.measure import fit_clouds


@dataclasses.dataclass(frozen=True)
class Means:
    """Every cluster's mean key and mean value, with the logarithm of its size as log-weight.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.compress import Means, compress
        >>> tokens = jnp.array([0.0, 0.0, 0.0, 5.0])[:, None, None]  # one head of width 1
        >>> small, _ = compress(tokens, tokens, method=Means(), budget="6 numbers")
        >>> sorted(zip(small.keys.ravel().tolist(), jnp.exp(small.log_weights).ravel().round().tolist()))
        [(0.0, 3.0), (5.0, 1.0)]

    Source: Lloyd (1982) on the keys of each head.
    """

    needs_queries = False

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        count = tokens_within(numbers, problem, weighted=True)
        fitted = fit_clouds(key, problem.keys, problem.values, components=count, rank=0)
        return TokenPrefix(fitted.mean, fitted.value, fitted.log_weight)
