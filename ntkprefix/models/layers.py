"""The parts that transformers share: attention with a prefix, the MLP, norms and layer scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix.attention import attention

# Sees one layer's (query, key, value) and returns any pytree of arrays.
Observer = Callable[[Array, Array, Array], Any]


class SelfAttention(nnx.Module):
    """Multi-head self-attention over the input and a prefix.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models.layers import SelfAttention
        >>> layer = SelfAttention(width=12, heads=3, rngs=nnx.Rngs(0))
        >>> out, _ = layer(jnp.ones((2, 5, 12)), prefix=TokenPrefix(jnp.ones((7, 3, 4)), jnp.ones((7, 3, 4))))
        >>> out.shape
        (2, 5, 12)
    """

    def __init__(self, width: int, heads: int, *, dtype: Any = None, rngs: nnx.Rngs):
        self.heads = heads
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T width"], *, prefix: Any = None, observe: Observer | None = None
    ) -> tuple[Float[Array, "B T width"], Any]:
        """Attend.

        Args:
            x: tokens, [B, T, width].
            prefix: a prefix with this layer's heads and head width, or None.
            observe: called with query, key and value, each [B, T, N, H].

        Returns:
            The output, [B, T, width], and what `observe` returned (None without it).
        """
        query, key, value = (self._split(project(x)) for project in (self.query, self.key, self.value))
        attended = attention(query, key, value, prefix=prefix)
        return self.out(attended.reshape(x.shape)), observe(query, key, value) if observe else None

    def _split(self, x: Float[Array, "B T width"]) -> Float[Array, "B T N H"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class Mlp(nnx.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype: Any = None, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B width"]) -> Float[Array, "*B width"]:
        """Apply it to every token."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class LayerScale(nnx.Module):
    """A trained factor per channel on a residual branch (arXiv 2103.17239, eq. 4)."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "B T width"]) -> Float[Array, "B T width"]:
        """Scale the branch; the result is float32, as the residual stream is."""
        return x.astype(jnp.float32) * self.scale[None, None, :]


def layer_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm whose statistics and result are float32 whatever the dtype around it.

    The variance is the mean squared deviation: the faster E[x^2] - E[x]^2 cancels for tokens far from the origin, and
    pretrained transformers have some.
    """
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
