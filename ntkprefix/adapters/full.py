"""Full fine-tuning: every weight of the model is trained."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics


@dataclasses.dataclass(frozen=True)
class FullAdapter:
    """A change of every weight, which starts at zero: as many parameters as the model has.

    The frozen weights stay as they are beside it, so that one copy of them serves every method; weight decay then pulls
    towards the pretrained model and not towards zero.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import FullAdapter, count
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> from ntkprefix.models.adaptation import merge
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> graph, frozen = nnx.split(model)
        >>> adapter = FullAdapter()
        >>> params = adapter.init(jax.random.key(0), model, model.attention_statistics(tokens))
        >>> count(params) == count(frozen)
        True
        >>> same = merge(graph, frozen, adapter.adapt(params))  # a change of zero, added to the weights
        >>> bool((same(tokens) == model(tokens)).all())
        True
    """

    def axes(self) -> None:
        """Unknown without the model: as many arrays as it has, of their shapes."""

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """Zeros of every parameter's shape, float32, nested as the model is."""
        weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), weights)

    def adapt(self, params: PyTree) -> Adaptation:
        """The change of the weights."""
        return Adaptation(weights=params)

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params
