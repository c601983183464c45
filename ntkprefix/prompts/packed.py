"""A compressed prompt whose heads have several lengths, for use: in memory as in its file, filled up nowhere."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.partial import Partial, add
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.base import Prefix, PrefixShape
from ntkprefix.prompts.ragged import flat

# Tokens of every head that are read at a time: a layer reads at most so many beyond its longest head.
_BLOCK = 128


@pytree
class PackedTokens:
    r"""Weighted tokens of all layers, head by head behind one another: for a model's or `generate`'s `prefixes=`.

    A layer reads its own, a block of every head at a time, up to the longest of its heads. So memory is that of the
    tokens there are, $\sum_{l,k} C_{lk} (H + Hv + 1)$ numbers, and time that of each layer's longest head, where a
    `TokenPrefix` takes both of the longest of all.

    Attributes:
        keys: [S, H], layer by layer and head by head.
        values: [S, Hv].
        log_weights: [S], natural logarithms.
        starts: of each head's tokens, [L, K].
        counts: of them, [L, K].
        longest: the largest count.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import PackedTokens
        >>> keys, values = jnp.ones((2, 3, 100, 1, 4))  # 3 layers
        >>> weights = jnp.zeros((3, 100, 1)).at[1:, 10:].set(-jnp.inf)  # 10 tokens in all but the first
        >>> packed = PackedTokens.of(TokenPrefix(keys, values, weights))
        >>> packed.keys.shape, packed.longest
        ((120, 4), 100)
    """

    keys: Leaf
    values: Leaf
    log_weights: Leaf
    starts: Leaf
    counts: Leaf
    longest: int = static_field()

    @classmethod
    def of(cls, prefixes: TokenPrefix) -> PackedTokens:
        """Pack the tokens that weigh something.

        Args:
            prefixes: of all layers, [L, C, K, ...].

        Returns:
            The same to every query. It cannot be merged, appended to or saved: that is for the tokens it was made of.

        Raises:
            TypeError: something else.
            ValueError: arrays that do not fit each other or lack the axis of layers, or have an axis of rows.
        """
        if not isinstance(prefixes, TokenPrefix):
            raise TypeError(f"PackedTokens.of: expected tokens of every layer, got {type(prefixes).__name__}.")
        if prefixes.shape().rows is None:
            raise ValueError("PackedTokens.of: expected arrays with a leading axis of layers, got those of one layer.")
        found = flat(prefixes)
        counts = found["counts"]
        weights = found.get("log_weights", np.zeros(len(found["keys"]), np.float32))
        starts = (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)
        return cls(
            jnp.asarray(found["keys"]),
            jnp.asarray(found["values"]),
            jnp.asarray(weights),
            jnp.asarray(starts),
            jnp.asarray(counts),
            int(counts.max()),
        )

    @property
    def layers(self) -> int:
        """L."""
        return self.counts.shape[0]

    def layer(self, index: int | Int[Array, ""]) -> Prefix:
        """One layer's prefix."""
        return _Layer(self, jnp.asarray(index))


@pytree
class _Layer:
    """The tokens of one layer."""

    packed: Leaf
    index: Leaf

    def shape(self) -> PrefixShape:
        return PrefixShape(None, self.packed.counts.shape[1], self.packed.keys.shape[-1], self.packed.values.shape[-1])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        packed: PackedTokens = self.packed
        starts, counts = (array[self.index][None] for array in (packed.starts, packed.counts))  # [1, K]
        block = min(_BLOCK, packed.longest)

        def read(first: Int[Array, ""]) -> Partial:
            places = first + jnp.arange(block)[:, None]  # [block, 1], of every head
            there = places < counts
            # Beyond a head's tokens, its first one, without weight.
            rows = jnp.where(there, starts + places, starts)
            weights = jnp.where(there, packed.log_weights[rows], -jnp.inf)
            return TokenPrefix(packed.keys[rows], packed.values[rows], weights).partial(query, scale)

        def further(share: Partial, first: Int[Array, ""]) -> tuple[Partial, None]:
            return jax.lax.cond(first < jnp.max(counts), lambda: add(share, read(first)), lambda: share), None

        later = jnp.arange(block, packed.longest, block)
        return jax.lax.scan(further, read(jnp.zeros((), later.dtype)), later)[0]


def packed(prefixes: Any) -> Any:
    """Prefixes as they take least memory: packed where heads are filled up, and as they are otherwise."""
    of_layers = isinstance(prefixes, TokenPrefix) and prefixes.keys.ndim == 4
    if not of_layers or prefixes.log_weights is None or not jnp.isneginf(prefixes.log_weights).any():
        return prefixes
    return PackedTokens.of(prefixes)
