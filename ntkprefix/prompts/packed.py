"""A compressed prompt for use: in memory as in its file, in as many bits, and filled up nowhere."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkprefix import checks
from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.partial import Partial, add
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.base import Prefix, PrefixShape
from ntkprefix.prompts.precision import Dtype, integers, keeps_first
from ntkprefix.prompts.quantized import as_turned, is_turned, quantize, turned
from ntkprefix.prompts.ragged import flat, starts_of

# Tokens of every head that are read first; then as many as have been read. So a layer reads less than twice its longest
# head, in few steps.
_BLOCK = 128


@pytree
class PackedTokens:
    r"""Weighted tokens of all layers, head by head behind one another: for a model's or `generate`'s `prefixes=`.

    A layer reads its own, a block of every head at a time, up to the second longest of its heads, and then of the
    longest alone. So memory is that of the tokens there are, $\sum_{l,k} C_{lk} (H + Hv + 1)$ numbers, and time that of
    not many more, where a `TokenPrefix` takes both of the longest of all.

    Attributes:
        keys: [S, H], layer by layer and head by head: an array, or small integers and what they are multiples of.
        values: [S, Hv], likewise.
        log_weights: [S], natural logarithms.
        starts: of each head's tokens, [L, K], or [L, B, K] where each of B rows has a prompt of its own.
        counts: of them, likewise.
        firsts: key and value of each head's first token, [L, K, H] and [L, K, Hv], or of rows, where these are kept in
            more bits.
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
        >>> PackedTokens.of(TokenPrefix(keys, values, weights), "int4").keys.numbers.shape
        (120, 2)
    """

    keys: Leaf
    values: Leaf
    log_weights: Leaf
    starts: Leaf
    counts: Leaf
    firsts: Leaf
    longest: int = static_field()

    @classmethod
    def of(cls, prefixes: TokenPrefix, dtype: Dtype = "float32") -> PackedTokens:
        """Pack the tokens that weigh something.

        Args:
            prefixes: of all layers, [L, C, K, ...], or of rows, [L, B, C, K, ...].
            dtype: of keys and values, as for `save_prompt`, first ones in float16 included; they are float32 again a
                block at a time.

        Returns:
            The same to every query, but for the type's rounding. It cannot be merged, appended to or saved: that is for
            the tokens it was made of.

        Raises:
            TypeError: something else.
            ValueError: arrays that do not fit each other or lack the axis of layers, or have no tokens; another dtype,
                or an odd number of channels in int4.
        """
        checks.one_of("PackedTokens.of", "dtype", dtype, get_args(Dtype))
        if not isinstance(prefixes, TokenPrefix):
            raise TypeError(f"PackedTokens.of: expected tokens of every layer, got {type(prefixes).__name__}.")
        shape = prefixes.keys.shape
        if len(shape) == 5:  # rows are packed as layers are
            prefixes = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), prefixes)
        if prefixes.shape().rows is None:
            raise ValueError("PackedTokens.of: expected arrays with a leading axis of layers, got those of one layer.")
        if not prefixes.keys.shape[1]:
            raise ValueError("PackedTokens.of: expected at least one token, got none.")
        if prefixes.log_weights is None:
            weights = jnp.zeros(prefixes.keys.shape[:3], prefixes.keys.dtype)
            prefixes = TokenPrefix(prefixes.keys, prefixes.values, weights)
        found = flat(prefixes)
        counts = found["counts"].reshape(*shape[:-3], shape[-2])
        weights = found.get("log_weights", np.zeros(len(found["keys"]), np.float32))
        starts = starts_of(counts)
        bits = integers(dtype)
        keys, values = (
            quantize(jnp.asarray(array), bits) if bits else jnp.asarray(array, dtype)
            for array in (found["keys"], found["values"])
        )
        firsts = None
        if keeps_first(dtype):
            firsts = tuple(jnp.asarray(found[name][starts], jnp.float16) for name in ("keys", "values"))
        return cls(
            keys,
            values,
            jnp.asarray(weights),
            jnp.asarray(starts),
            jnp.asarray(counts),
            firsts,
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
        *rows, heads = self.packed.counts.shape[1:]
        return PrefixShape(rows[0] if rows else None, heads, self.packed.keys.shape[-1], self.packed.values.shape[-1])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        packed: PackedTokens = self.packed
        # [1, K], or of rows [B, 1, K].
        heads = _Heads(*(array[self.index][..., None, :] for array in (packed.starts, packed.counts)))
        # Turned queries see turned keys as they would see them otherwise.
        query = turned(query) if is_turned(packed.keys) else query
        longest = jnp.argmax(heads.counts, axis=-1, keepdims=True)  # which head is

        def all_of(share: Partial, first: int, block: int) -> Partial:
            return add(share, TokenPrefix(*self._read(heads, first, block)).partial(query, scale))

        def longest_of(share: Partial, first: int, block: int) -> Partial:
            """The share with the longest head's next tokens: of others there are none."""
            whose = longest.reshape(-1, 1, 1, 1)
            one = _Heads(*(jnp.take_along_axis(array, longest, axis=-1) for array in heads))
            asked = jnp.take_along_axis(self._by_head(query), whose[..., None], axis=2)[:, :, 0]
            part = TokenPrefix(*self._read(one, first, block)).partial(asked, scale)
            old, part = jax.tree.map(self._by_head, share), jax.tree.map(lambda leaf: leaf[:, :, None], part)
            mine = whose == jnp.arange(heads.counts.shape[-1]).reshape(1, 1, -1, 1)
            new = add(old, part)
            kept = Partial(
                jnp.where(mine[..., None], new.num, old.num),
                jnp.where(mine, new.den, old.den),
                jnp.where(mine, new.log_scale, old.log_scale),
            )
            return jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), kept, share)

        done = min(_BLOCK, packed.longest)
        share = TokenPrefix(*self._read(heads, 0, done)).partial(query, scale)
        while done < packed.longest:
            block = min(done, packed.longest - done)
            # Heads that keep all of their tokens are few, and mostly alone in their layer.
            further = jnp.max(jnp.sum(heads.counts > done, axis=-1))
            steps = [partial(way, first=done, block=block) for way in (longest_of, all_of)]
            share = jax.lax.switch(further, [lambda share: share, *steps], share)
            done += block
        return dataclasses.replace(share, num=turned(share.num)) if is_turned(packed.values) else share

    def _read(self, heads: _Heads, first: int, block: int) -> tuple[Array, Array, Array]:
        """Keys, values and log-weights of some heads' tokens from `first` on."""
        packed: PackedTokens = self.packed
        places = first + jnp.arange(block).reshape(*[1] * (heads.starts.ndim - 2), block, 1)  # the same of every head
        there = places < heads.counts
        # Beyond a head's tokens, its first one, without weight.
        rows = jnp.where(there, heads.starts + places, heads.starts)
        weights = jnp.where(there, packed.log_weights[rows], -jnp.inf)
        keys, values = (as_turned(jax.tree.map(lambda leaf: leaf[rows], of)) for of in (packed.keys, packed.values))
        if first == 0 and packed.firsts is not None:
            ones = (turned(of[self.index].astype(jnp.float32)) for of in packed.firsts)
            keys, values = (array.at[..., 0, :, :].set(one) for array, one in zip((keys, values), ones, strict=True))
        return keys, values, weights

    def _by_head(self, array: Float[Array, "B T N *rest"]) -> Float[Array, "B T K G *rest"]:
        return array.reshape(*array.shape[:2], self.packed.counts.shape[-1], -1, *array.shape[3:])


class _Heads(NamedTuple):
    """Where heads' tokens begin, and how many they have: [1, K], or of rows [B, 1, K]."""

    starts: Int[Array, "*rows 1 K"]
    counts: Int[Array, "*rows 1 K"]


def packed(prefixes: Any, dtype: Dtype = "float32") -> Any:
    """Prefixes as they take least memory: packed where heads are filled up or numbers have fewer bits, or as they are.

    Args:
        prefixes: whatever a model takes, None included.
        dtype: in which tokens of all layers are kept, as for `save_prompt`.

    Returns:
        `PackedTokens`, or the same.
    """
    if not isinstance(prefixes, TokenPrefix) or prefixes.keys.ndim not in (4, 5):
        return prefixes
    if dtype == "float32" and (prefixes.log_weights is None or not jnp.isneginf(prefixes.log_weights).any()):
        return prefixes
    return PackedTokens.of(prefixes, dtype)
