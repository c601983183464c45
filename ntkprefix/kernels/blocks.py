"""How attention's logits are cut into blocks, and which of them a block of queries sees."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the work is cut.

    Attributes:
        queries: in a block, of each query head.
        keys: in a block.
        apart: kv heads and rows of the batch are computed one after another, so that a block stays in a core's cache,
            instead of all at once.

    Example:
        >>> from ntkprefix.kernels.blocks import Blocks, blocks_for
        >>> blocks_for("cpu", batch=1, length=4096, size=4096, heads=8, kv_heads=2)  # 4 query heads to a kv head
        Blocks(queries=256, keys=512, apart=True)
    """

    queries: int
    keys: int
    apart: bool


def blocks_for(platform: str, batch: int, length: int, size: int, heads: int, kv_heads: int) -> Blocks:
    """How a shape is cut on a platform: by a rule for the CPU that `benchmarks/results/block_sizes.json` bears out.

    Elsewhere large blocks: the largest of a few that were tried by hand on an H200 were the fastest.
    """
    group = heads // kv_heads
    if platform != "cpu":
        return Blocks(2048, 2048, apart=False)
    if max(length, size) <= 512:
        return Blocks(512, 512, apart=batch * heads * length * size > 2**22)
    if group == 1 and min(length, size) >= 2048:
        return Blocks(1024, 1024, apart=True)
    # The group's rows make one matrix: a block of 1,536 of them by 512 keys is the largest that did well.
    rows = 512
    while rows > 64 and rows * group > 1536:
        rows //= 2
    return Blocks(rows, 512, apart=True)


class Hidden(NamedTuple):
    """What hides keys; each is None or broadcastable to [B, K, G, T, S]."""

    mask: Bool[Array, "#B #K #G #T #S"] | None
    low: Int[Array, "#B 1 1 1 1"] | None
    high: Int[Array, "#B 1 1 1 1"] | None
    rows: Int[Array, "#B 1 1 1 1"] | None
    columns: Int[Array, "#B 1 1 1 1"] | None


def dot(spelt, one, other, dtype):
    """The sum of products that is spelt, accumulated in a type."""
    return jnp.einsum(spelt, one, other, preferred_element_type=dtype)


def over_lanes(apart, function, carry, *arrays):
    """`function(carry, *arrays)` -> carry for all of [B, K] at once, or for one place of it after another.

    Arrays and carry have B or 1 on axis 0 and K or 1 on axis 2; each place gets and gives its part of them. Of a carry
    without a part for every place, it gets what those before it gave.
    """
    batch, kv_heads = arrays[0].shape[0], arrays[0].shape[2]
    if not apart or batch * kv_heads == 1:
        return function(carry, *arrays)

    def start(array, index):
        row, head = index // kv_heads, index % kv_heads
        return row if array.shape[0] > 1 else 0, 0, head if array.shape[2] > 1 else 0, *(0,) * (array.ndim - 3)

    def step(index, carry):
        def part(array):
            sizes = (1, array.shape[1], 1, *array.shape[3:])
            return jax.lax.dynamic_slice(array, start(array, index), sizes)

        own = function(*jax.tree.map(part, (carry, *arrays)))
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice(whole, part, start(whole, index)), carry, own
        )

    return jax.lax.fori_loop(0, batch * kv_heads, step, carry)


class Cut(NamedTuple):
    """Rows and columns of the logits in blocks; the last ones are filled up.

    Attributes:
        rows_of: queries in a block.
        columns_of: keys in a block.
        length: T.
        size: S.
    """

    rows_of: int
    columns_of: int
    length: int
    size: int

    @classmethod
    def of(cls, blocks, query, key):
        """For queries [B, T, K, G, H] and keys [B, S, K, H]; no block is larger than what there is."""
        length, size = query.shape[1], key.shape[1]
        return cls(min(blocks.queries, length), min(blocks.keys, size), length, size)

    @property
    def row_blocks(self):
        """How many blocks of queries there are."""
        return -(-self.length // self.rows_of)

    @property
    def fills_columns(self):
        """Whether the last block of keys has any that are not there."""
        return self.size % self.columns_of != 0

    def pad(self, array, axis, value=0.0):
        """With the axis of T (3) or S (2 of keys, 4 of logits) filled up to whole blocks."""
        of = self.rows_of if axis == 3 else self.columns_of
        missing = -array.shape[axis] % of if array.shape[axis] > 1 else 0
        if not missing:
            return array
        widths = [(0, missing if each == axis else 0) for each in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=value)

    def whole(self, query, key, value, bias, hidden):
        """All filled up to whole blocks, and the keys that fill hidden."""
        mask = None if hidden.mask is None else self.pad(self.pad(hidden.mask, 3, False), 4, False)
        columns = hidden.columns
        if self.fills_columns:
            here = jnp.full((1,) * 5, self.size, jnp.int32)
            columns = here if columns is None else jnp.minimum(columns, self.size)
        hidden = hidden._replace(mask=mask, columns=columns)
        return self.pad(query, 3), self.pad(key, 2), self.pad(value, 2), self.whole_bias(bias), hidden

    def whole_bias(self, bias):
        """A bias filled up to whole blocks."""
        return None if bias is None else self.pad(self.pad(bias, 3), 4)

    def without_padding(self, bias):
        """A bias, or its gradient, without what fills it up."""
        return None if bias is None else bias[..., : self.length, : self.size]

    def rows(self, array, index):
        """Of [B, K, G, T, ..] or what broadcasts to it."""
        if array.shape[3] == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, index * self.rows_of, self.rows_of, axis=3)

    def columns(self, array, at, axis=2):
        """Of keys or values [B, K, S, ..], or of logits with axis 4."""
        if array.shape[axis] == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, at * self.columns_of, self.columns_of, axis=axis)

    def block(self, array, index, at):
        """Of [B, K, G, T, S] or what broadcasts to it."""
        return self.columns(self.rows(array, index), at, axis=4)

    def joined(self, blocks):
        """[blocks, B, K, G, rows, ..] as [B, K, G, T, ..]."""
        moved = jnp.moveaxis(blocks, 0, 3)
        return moved.reshape(*moved.shape[:3], -1, *moved.shape[5:])[:, :, :, : self.length]

    def add_columns(self, total, more, at):
        """`total` [B, K, H, S] with more in one block of keys."""
        start = at * self.columns_of
        there = jax.lax.dynamic_slice_in_dim(total, start, self.columns_of, axis=3)
        return jax.lax.dynamic_update_slice_in_dim(total, there + more, start, axis=3)

    def add_to_bias(self, total, d_logits, index, at):
        """`total`, of the bias's shape, with one block's gradient, summed where the bias broadcasts."""
        summed = tuple(axis for axis, size in enumerate(total.shape) if size == 1)
        more = self.block(total, index, at) + jnp.sum(d_logits, axis=summed, keepdims=True)
        row, column = index * self.rows_of, at * self.columns_of
        start = (0, 0, 0, row if total.shape[3] > 1 else 0, column if total.shape[4] > 1 else 0)
        # Counters may be of 64 bits where 64-bit types are switched on, or not.
        return jax.lax.dynamic_update_slice(total, more, [jnp.asarray(each, jnp.int32) for each in start])

    def logits(self, q, key, bias, scale, hidden, index, at):
        """Of one block; -inf where a key is hidden, if anything hides keys in it."""
        logits = dot("bkgth,bksh->bkgts", q, self.columns(key, at), scale.dtype) * scale
        if bias is not None:
            logits = logits + self.block(bias, index, at).astype(logits.dtype)
        if hidden is None:
            return logits
        # With 64-bit types switched on, counters may be of 64 bits; lengths and offsets are of 32.
        index, at = (jnp.asarray(each, jnp.int32) for each in (index, at))
        rows = index * self.rows_of + jnp.arange(self.rows_of, dtype=jnp.int32)[:, None]
        columns = at * self.columns_of + jnp.arange(self.columns_of, dtype=jnp.int32)[None]
        ahead, rows, columns = (array[None, None, None] for array in (columns - rows, rows, columns))
        seen = [] if hidden.mask is None else [self.block(hidden.mask, index, at)]
        seen += [] if hidden.low is None else [ahead >= hidden.low]
        seen += [] if hidden.high is None else [ahead <= hidden.high]
        seen += [] if hidden.rows is None else [rows < hidden.rows]
        seen += [] if hidden.columns is None else [columns < hidden.columns]
        for each in seen:
            logits = jnp.where(each, logits, -jnp.inf)
        return logits


class Ranges(NamedTuple):
    """Which blocks of keys a block of queries sees: something of those from first to last, all of some among them."""

    cut: Cut
    hidden: Hidden

    @classmethod
    def of(cls, cut, hidden):
        """For what hides keys, filled up as `Cut.whole` does."""
        # Less or more than this far ahead there is no key, and sums of such numbers do not overflow.
        near = {
            name: None if array is None else jnp.clip(array, -cut.length, cut.size)
            for name, array in {"low": hidden.low, "high": hidden.high}.items()
        }
        return cls(cut, hidden._replace(**near))

    def fold(self, index, add, carry):
        """`add(masked, at, carry)` over the blocks of keys that the rows of block `index` see."""
        cut, hidden = self.cut, self.hidden
        columns_of, blocks = cut.columns_of, -(-cut.size // cut.columns_of)
        top = index * cut.rows_of
        bottom = jnp.minimum(top + cut.rows_of, cut.length) - 1
        first, last, all_from, all_to = 0, blocks, 0, cut.size // columns_of
        if hidden.low is not None:
            first = jnp.maximum(top + jnp.min(hidden.low), 0) // columns_of
            all_from = -(-jnp.maximum(bottom + jnp.max(hidden.low), 0) // columns_of)
        if hidden.high is not None:
            last = jnp.minimum(last, _blocks_before(bottom + jnp.max(hidden.high) + 1, columns_of))
            all_to = jnp.minimum(all_to, jnp.maximum(top + jnp.min(hidden.high) + 1, 0) // columns_of)
        if hidden.columns is not None:
            last = jnp.minimum(last, _blocks_before(jnp.max(hidden.columns), columns_of))
            all_to = jnp.minimum(all_to, jnp.maximum(jnp.min(hidden.columns), 0) // columns_of)
        if hidden.rows is not None:
            last = jnp.where(top < jnp.max(hidden.rows), last, 0)
            all_to = jnp.where(bottom < jnp.min(hidden.rows), all_to, 0)
        if hidden.mask is not None:
            all_to = 0
        if isinstance(first, int) and isinstance(last, int) and all_to == last:
            return jax.lax.fori_loop(first, last, partial(add, False), carry)
        last = jnp.maximum(last, first)
        all_from = jnp.clip(all_from, first, last)
        all_to = jnp.clip(all_to, all_from, last)
        carry = jax.lax.fori_loop(first, all_from, partial(add, True), carry) if hidden.low is not None else carry
        if hidden.mask is None:
            carry = jax.lax.fori_loop(all_from, all_to, partial(add, False), carry)
        return jax.lax.fori_loop(all_to, last, partial(add, True), carry)


def _blocks_before(column, columns_of):
    """How many blocks have a column before this one."""
    return -(-jnp.maximum(column, 0) // columns_of)
