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

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models import LowRank
        >>> update = LowRank(down=jnp.ones((3, 1)), up=jnp.array([[1.0, -1.0]]), scale=jnp.array(0.5))
        >>> x, kernel = jnp.array([[1.0, 2.0, 3.0]]), jnp.zeros((3, 2))
        >>> update(x).tolist()  # beside the matrix
        [[3.0, -3.0]]
        >>> (x @ update.merged(kernel)).tolist()  # within it
        [[3.0, -3.0]]

    Source: LoRA (arXiv 2106.09685).
    """

    down: Leaf
    up: Leaf
    scale: Leaf

    def __call__(self, x: Float[Array, "*B in"]) -> Float[Array, "*B out"]:
        """The update's part of the output, scale (x down) up.

        Args:
            x: the layer's input, [.., in].

        Returns:
            What is added to the layer's output, [.., out], computed in the type of x.
        """
        return jnp.matmul(jnp.matmul(x, self.down.astype(x.dtype)), self.up.astype(x.dtype)) * self.scale.astype(
            x.dtype
        )

    def merged(self, kernel: Float[Array, "*L in out"]) -> Float[Array, "*L in out"]:
        """The matrix with its update added, W + scale down up.

        Args:
            kernel: W, [in, out]; with a leading axis of layers if the update has one.

        Returns:
            The sum, made in float32, of the matrix's shape and type.
        """
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

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import Adaptation, BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> prefix = TokenPrefix(jnp.ones((2, 7, 3, 4)), jnp.ones((2, 7, 3, 4)))  # 7 tokens for each of 2 layers
        >>> model(tokens, adapter=Adaptation(prefixes=prefix, prompt=jnp.ones((3, 12)))).shape
        (1, 5, 12)
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
