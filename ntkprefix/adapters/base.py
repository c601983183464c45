"""The interface of adapters."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix.models.statistics import AttentionStatistics


@runtime_checkable
class Adapter(Protocol):
    """A way to change a frozen model by a few parameters."""

    def init(self, key: PRNGKeyArray, statistics: AttentionStatistics) -> PyTree:
        """Starting parameters.

        Args:
            key: random key.
            statistics: the model's own attention on a calibration batch, stacked over layers; it also gives the number
                of layers, heads and widths, so that shapes come from the model.

        Returns:
            A pytree of float32 arrays.
        """
        ...

    def prefixes(self, params: PyTree) -> Any:
        """What a model takes as `prefixes=`: a prefix stacked over layers, or None."""
        ...

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that are allowed, which a training step ends with; most adapters allow all."""
        ...


def count(params: PyTree) -> int:
    """How many numbers a pytree of parameters holds.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import count
        >>> count({"Z": jnp.zeros((12, 6, 64, 64)), "k": jnp.zeros((12, 6, 64))})
        299520
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
