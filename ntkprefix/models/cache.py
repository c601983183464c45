"""Keys and values of the tokens so far, for decoding."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkprefix._pytree import Leaf, pytree


@pytree
class Cache:
    """A cache of fixed capacity. A prefix is not in it: whatever its length, it adds nothing.

    Attributes:
        keys: turned to their positions, [L, B, C, K, H].
        values: [L, B, C, K, Hv].
        lengths: tokens in every row, [B]; rows fill from the left.
        start: position of every row's first token, [B]: not 0 behind a prompt that a prefix stands for.
    """

    keys: Leaf
    values: Leaf
    lengths: Leaf
    start: Leaf

    @classmethod
    def empty(cls, config: Any, batch: int, capacity: int, start: int | Int[Array, " B"] = 0) -> Cache:
        """Room for `capacity` tokens in each of `batch` rows, the first of which have the position `start`.

        Example:
            >>> from ntkprefix.models import BlockConfig, Cache, TextConfig
            >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
            >>> Cache.empty(TextConfig(vocabulary=50, layers=2, block=block), batch=4, capacity=16).keys.shape
            (2, 4, 16, 3, 4)
        """
        block = config.block
        shape = (config.layers, batch, capacity, block.kv_heads, block.head_width)
        starts = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))
        return cls(jnp.zeros(shape, block.dtype), jnp.zeros(shape, block.dtype), jnp.zeros(batch, jnp.int32), starts)

    @property
    def capacity(self) -> int:
        """C, the tokens that a row has room for."""
        return self.keys.shape[2]

    def write(self, layer: Int[Array, ""], key: Float[Array, "B T K H"], value: Float[Array, "B T K Hv"]) -> Cache:
        """One layer's new tokens behind those of every row. What has no room is clipped to the end: check before."""

        def put(cache: Array, new: Array) -> Array:
            rows = jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False)
            rows = jax.vmap(lambda row, part, start: jax.lax.dynamic_update_slice_in_dim(row, part, start, 0))(
                rows, new.astype(cache.dtype), self.lengths
            )
            return jax.lax.dynamic_update_index_in_dim(cache, rows, layer, 0)

        return dataclasses.replace(self, keys=put(self.keys, key), values=put(self.values, value))

    def read(self, layer: Int[Array, ""]) -> tuple[Float[Array, "B C K H"], Float[Array, "B C K Hv"]]:
        """One layer's keys and values, room included: causality hides it from every token there is."""
        keys, values = (
            jax.lax.dynamic_index_in_dim(cache, layer, keepdims=False) for cache in (self.keys, self.values)
        )
        return keys, values
