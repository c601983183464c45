"""P-Tuning v2: M trained keys and values in every layer."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class TokenAdapter:
    """Prefix tokens, trained: L M K (H + Hv) parameters.

    Attributes:
        length: M, at least 1.
        deviation: standard deviation of the random start.

    Raises:
        TypeError: a length that is not an integer.
        ValueError: a length below 1.

    Source: P-Tuning v2 (arXiv 2110.07602), without reparametrisation.
    """

    length: int = 10
    deviation: float = 0.02

    def __post_init__(self):
        checks.at_least(1, "TokenAdapter", length=self.length)

    def init(self, key: PRNGKeyArray, statistics: AttentionStatistics) -> PyTree:
        """Small Gaussian keys and values, `keys` and `values`, [L, M, K, H]."""
        layers, heads, width = statistics.key_mean.shape
        shape = (2, layers, self.length, heads, width)
        keys, values = self.deviation * jax.random.normal(key, shape, jnp.float32)
        return {"keys": keys, "values": values}

    def prefixes(self, params: PyTree) -> TokenPrefix:
        """The tokens of every layer."""
        return TokenPrefix(params["keys"], params["values"])
