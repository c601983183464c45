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
    """A way to change a frozen model by a few parameters.

    What is to be saved needs `axes()` and `sizes()` too, which the file's arrays are checked by, and a line in
    `ADAPTERS`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.adapters import Adapter, count
        >>> from ntkprefix.models import Adaptation, BlockConfig, TextConfig, TextModel
        >>> class Rest:  # one trained key per head, whose value is zero: where attention may come to rest
        ...     def init(self, key, model, statistics):
        ...         return {"keys": statistics.key_mean}
        ...
        ...     def adapt(self, params):
        ...         keys = params["keys"][:, None]
        ...         return Adaptation(prefixes=TokenPrefix(keys, jnp.zeros_like(keys)))
        ...
        ...     def project(self, params):
        ...         return params
        >>> isinstance(Rest(), Adapter)
        True
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> params = Rest().init(jax.random.key(0), model, model.attention_statistics(tokens))
        >>> count(params)  # 2 layers of 3 heads, H = 4
        24
        >>> model(tokens, adapter=Rest().adapt(params)).shape
        (1, 5, 12)
    """

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
        """What a model takes as `adapter=`: a pure function, which training differentiates.

        Args:
            params: as from `init`.

        Returns:
            The change of the model, for all layers.
        """
        ...

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that are allowed, which a training step ends with; most adapters allow all.

        Args:
            params: after a step of the optimiser.

        Returns:
            Parameters of the same shapes.
        """
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
