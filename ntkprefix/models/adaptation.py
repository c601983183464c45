"""What an adapter changes in one call of a frozen model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix._pytree import Leaf, pytree


@pytree
class LowRank:
    """A low-rank update of a matrix, x W + scale (x down) up; with a leading `layers` axis for all layers at once.

    Attributes:
        down: [in, r].
        up: [r, out].
        scale: alpha / r, a scalar.

    Source: LoRA (arXiv 2106.09685).
    """

    down: Leaf
    up: Leaf
    scale: Leaf

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        """The update's part of the output, computed in the type of x."""
        return jnp.matmul(jnp.matmul(x, self.down.astype(x.dtype)), self.up.astype(x.dtype)) * self.scale.astype(
            x.dtype
        )

    def merged(self, kernel: Float[Array, "*L in out"]) -> Float[Array, "*L in out"]:
        """The matrix with its update added, in the matrix's type."""
        scale = self.scale[..., None, None]
        update = jnp.matmul(self.down, self.up, precision="highest") * scale
        return (kernel.astype(jnp.float32) + update).astype(kernel.dtype)


@pytree
class Adaptation:
    """What a model takes as `adapter=`.

    Attributes:
        prefixes: what it takes as `prefixes=`.
        low_rank: low-rank updates stacked over layers, by the matrix's name: query, key, value, out, gate, up, down.
        prompt: tokens put before the input's, [P, width]; the output leaves them out.
        weights: what is added to the model's parameters, nested as the model is; `merge` does it.
    """

    prefixes: Leaf = None
    low_rank: Leaf = None
    prompt: Leaf = None
    weights: Leaf = None


def merge(graph: Any, frozen: Any, adaptation: Adaptation) -> nnx.Module:
    """The model of frozen weights, with the adaptation's change of them added.

    Args:
        graph: from `nnx.split` of the model.
        frozen: its weights, which are not changed.
        adaptation: to be given to the model's call too.

    Returns:
        The model.
    """
    if adaptation.weights is not None:
        changed = jax.tree.map(
            lambda weight, change: (weight.astype(jnp.float32) + change).astype(weight.dtype),
            nnx.to_pure_dict(frozen),
            adaptation.weights,
        )
        frozen = jax.tree.map(lambda leaf: leaf, frozen)
        nnx.replace_by_pure_dict(frozen, changed)
    return nnx.merge(graph, frozen)
