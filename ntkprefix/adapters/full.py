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
