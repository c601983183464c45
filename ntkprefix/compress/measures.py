"""Gaussian clouds of tokens with covariances of low rank."""

from __future__ import annotations

import dataclasses

from jaxtyping import PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Problem
from ntkprefix.prefixes import MeasurePrefix
from ntkprefix.prefixes.measure import fit_clouds


@dataclasses.dataclass(frozen=True)
class Clouds:
    """Clusters of keys, each with its size, means and the leading directions of its covariance.

    Attributes:
        rank: directions of each cluster, at least 0.

    Raises:
        TypeError: no integer.
        ValueError: below 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.compress import Clouds, compress
        >>> tokens = jnp.array([[1.0, 0.0], [3.0, 0.0]])[:, None]  # one head of width 2
        >>> cloud, _ = compress(tokens, tokens, method=Clouds(rank=1), budget="9 numbers")
        >>> cloud.mean[0, 0].tolist(), jnp.abs(cloud.factor[0, 0, :, 0]).round(3).tolist()
        ([2.0, 0.0], [1.0, 0.0])

    Source: `MeasurePrefix`.
    """

    rank: int = 1
    needs_queries = False

    def __post_init__(self):
        checks.at_least(0, "Clouds", rank=self.rank)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> MeasurePrefix:
        """The clouds.

        Raises:
            ValueError: the budget holds none.
        """
        each = (problem.keys.shape[-1] + problem.values.shape[-1]) * (1 + self.rank) + 1
        if numbers < each:
            raise ValueError(
                f"compress: a cloud of rank {self.rank} has {each:,} numbers for each head, more than the budget's "
                f"{numbers:,}. Give a larger budget, or choose a method that keeps tokens."
            )
        count = min(numbers // each, problem.length)
        return fit_clouds(key, problem.keys, problem.values, components=count, rank=self.rank)
