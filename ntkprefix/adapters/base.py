"""The interface of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics


@runtime_checkable
class Adapter(Protocol):
    """A way to change a frozen model by a few parameters."""

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:
        """Starting parameters.

        Args:
            key: random key.
            model: a `ViT` or `TextModel`, whose `config` gives the number of layers and the sizes of a block.
            statistics: the model's own attention on a calibration batch, stacked over layers.

        Returns:
            A pytree of float32 arrays.
        """
        ...

    def adapt(self, params: PyTree) -> Adaptation:
        """What a model takes as `adapter=`."""
        ...

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that are allowed, which a training step ends with; most adapters allow all."""
        ...


class Stack:
    """Several adapters on one model at once: LoRA and features, for example.

    Example:
        >>> from ntkprefix.adapters import FeatureAdapter, LoraAdapter, Stack
        >>> both = Stack([LoraAdapter(rank=4), FeatureAdapter()])

    Raises:
        ValueError: from `adapt`, two of them change the same thing.
    """

    def __init__(self, adapters: Sequence[Adapter]):
        self.adapters = tuple(adapters)

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:
        """One entry for each adapter, by its place."""
        keys = jax.random.split(key, len(self.adapters))
        return {
            str(index): adapter.init(key, model, statistics)
            for index, (key, adapter) in enumerate(zip(keys, self.adapters, strict=True))
        }

    def adapt(self, params: PyTree) -> Adaptation:
        """All that they change.

        Raises:
            ValueError: two of them change the same.
        """
        changes: dict[str, Any] = {}
        for index, adapter in enumerate(self.adapters):
            for name, value in vars(adapter.adapt(params[str(index)])).items():
                if value is None:
                    continue
                if name in changes:
                    raise ValueError(f"Stack: expected one adapter that gives {name}, got two.")
                changes[name] = value
        return Adaptation(**changes)

    def project(self, params: PyTree) -> PyTree:
        """Each adapter's nearest allowed parameters."""
        return {str(index): adapter.project(params[str(index)]) for index, adapter in enumerate(self.adapters)}


def step_factors(adapter: Adapter, params: PyTree) -> PyTree:
    """What the step size is multiplied by for each of an adapter's parameters: `factors` of `ntkprefix.train.train`.

    Args:
        adapter: one that has a `step_factors(params)` of its own, or a stack with such; 1 for all others.
        params: its parameters.

    Returns:
        A number, or numbers by the parameters' names.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import FeatureAdapter, step_factors
        >>> step_factors(FeatureAdapter(share=0.1), {"Z": jnp.zeros((4, 2)), "log_scale": jnp.zeros(1)})
        {'Z': 0.05, 'log_scale': 1.0}
    """
    if isinstance(adapter, Stack):
        return {str(index): step_factors(part, params[str(index)]) for index, part in enumerate(adapter.adapters)}
    own = getattr(adapter, "step_factors", None)
    return 1.0 if own is None else own(params)


def count(params: PyTree) -> int:
    """How many numbers a pytree of parameters holds.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import count
        >>> count({"Z": jnp.zeros((12, 6, 64, 64)), "k": jnp.zeros((12, 6, 64))})
        299520
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
