r"""Partial attention by blocks of queries and keys, in plain XLA: memory O(T H), never O(T S), on every device.

Softmax over one block of keys after another, with the largest logit met so far as scale (arXiv 2112.05682). Only the
output and its log-sum-exp are kept for the gradient, which computes every block of weights again (arXiv 2205.14135):

$$ P = e^{\beta q k^T + bias - lse}, \quad
   dS = P \circ (do\, v^T - (do \cdot o) + dlse), \quad
   dv = P^T do, \quad dq = \beta\, dS\, k, \quad dk = \beta\, dS^T q . $$

Blocks in which causality, window or lengths leave no key visible are not computed, and blocks in which they hide none
are not masked.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.kernels.dense import group_heads, to_partial
from ntkprefix.kernels.masks import band, over_batch
from ntkprefix.partial import Partial


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the work is cut.

    Attributes:
        queries: in a block, of each query head.
        keys: in a block.
        apart: kv heads and rows of the batch are computed one after another, so that a block stays in a core's cache,
            instead of all at once.
    """

    queries: int
    keys: int
    apart: bool


# By platform. Chosen by what fits a cache, not yet by measurement.
BLOCKS = {
    "cpu": Blocks(256, 512, apart=True),
    "gpu": Blocks(512, 512, apart=False),
    "tpu": Blocks(512, 512, apart=False),
}


class _Hidden(NamedTuple):
    """What hides keys; each is None or broadcastable to [B, K, G, T, S]."""

    mask: Bool[Array, "#B #K #G #T #S"] | None
    low: Int[Array, "#B 1 1 1 1"] | None
    high: Int[Array, "#B 1 1 1 1"] | None
    rows: Int[Array, "#B 1 1 1 1"] | None
    columns: Int[Array, "#B 1 1 1 1"] | None


def partial_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    scale: float | Float[Array, ""],
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: tuple[int, int] | None = None,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    blocks: Blocks | None = None,
) -> Partial:
    """The input's share of attention; arguments as in `ntkprefix.attention`, checked there.

    It has gradients of first order in reverse mode; `kernels.dense` has the others.
    """
    batch, length, heads, width = query.shape
    keys, kv_heads = key.shape[1:3]
    dtype = accumulator(query.dtype)
    if keys == 0 or length == 0:
        shape = (batch, length, heads)
        return Partial(
            jnp.zeros((*shape, value.shape[-1]), dtype), jnp.zeros(shape, dtype), jnp.full(shape, -jnp.inf, dtype)
        )
    low, high = band(is_causal, local_window_size, query_offset)
    hidden = _Hidden(
        None if mask is None else group_heads(mask, kv_heads),
        *(None if each is None else over_batch(each) for each in (low, high, query_seq_lengths, key_value_seq_lengths)),
    )
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width)
    out, log_mass = _attend(
        blocks or BLOCKS.get(jax.default_backend(), BLOCKS["gpu"]),
        jnp.moveaxis(grouped, 1, 3),
        jnp.moveaxis(key, 1, 2),
        jnp.moveaxis(value, 1, 2),
        None if bias is None else group_heads(bias, kv_heads),
        jnp.asarray(scale, dtype),
        hidden,
    )
    return to_partial(out, jnp.where(log_mass == -jnp.inf, 0.0, 1.0).astype(dtype), log_mass)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks, query, key, value, bias, scale, hidden):
    """Output [B, K, G, T, Hv] and log-sum-exp [B, K, G, T] of [B, K, G, T, H] queries; -inf where nothing is seen."""
    return _forward(blocks, query, key, value, bias, scale, hidden)


def _attend_forward(blocks, query, key, value, bias, scale, hidden):
    out, log_mass = _forward(blocks, query, key, value, bias, scale, hidden)
    return (out, log_mass), (query, key, value, bias, scale, hidden, out, log_mass)


def _attend_backward(blocks, saved, gradients):
    query, key, value, bias, scale, hidden, out, log_mass = saved
    d_out, d_log_mass = gradients
    # A row that sees nothing, and rows that only fill a block, have weights e^{-inf} = 0.
    log_mass = jnp.where(log_mass == -jnp.inf, jnp.inf, log_mass)
    delta = jnp.sum(d_out * out, axis=-1) - jnp.where(jnp.isfinite(log_mass), d_log_mass, 0.0)
    d_query, d_key, d_value, d_bias, d_scale = _backward(
        blocks, query, key, value, bias, scale, hidden, d_out.astype(_work(value.dtype)), log_mass, delta
    )
    return (
        d_query.astype(query.dtype),
        d_key.astype(key.dtype),
        d_value.astype(value.dtype),
        None if bias is None else d_bias.astype(bias.dtype),
        d_scale,
        None,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(blocks, query, key, value, bias, scale, hidden):
    cut = _Cut.of(blocks, query, key)

    def lane(_, query, key, value, bias, hidden):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        ranges = _Ranges.of(cut, hidden)

        def block(index):
            q = cut.rows(query, index)

            def add(masked, at, carry):
                num, den, largest = carry
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                larger = jnp.maximum(largest, jnp.max(logits, axis=-1))
                finite = jnp.where(jnp.isfinite(larger), larger, 0.0)
                kept, weights = jnp.exp(largest - finite), jnp.exp(logits - finite[..., None])
                work = _work(value.dtype)
                more = _dot("bkgts,bksh->bkgth", weights.astype(work), cut.columns(value, at).astype(work), scale.dtype)
                return num * kept[..., None] + more, den * kept + jnp.sum(weights, axis=-1), larger

            shape, dtype = q.shape[:-1], scale.dtype
            num, den, largest = ranges.fold(
                index,
                add,
                (
                    jnp.zeros((*shape, value.shape[-1]), dtype),
                    jnp.zeros(shape, dtype),
                    jnp.full(shape, -jnp.inf, dtype),
                ),
            )
            return num / jnp.where(den > 0, den, 1.0)[..., None], jnp.where(den > 0, jnp.log(den) + largest, -jnp.inf)

        return jax.tree.map(cut.joined, jax.lax.map(block, jnp.arange(cut.row_blocks))), None

    (out, log_mass), _ = _over_lanes(blocks.apart, lane, None, query, key, value, bias, hidden)
    return out, log_mass


def _backward(blocks, query, key, value, bias, scale, hidden, d_out, log_mass, delta):
    cut, dtype, work = _Cut.of(blocks, query, key), scale.dtype, d_out.dtype

    def lane(d_bias, query, key, value, bias, hidden, d_out, log_mass, delta):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        d_out, delta = cut.pad(d_out, 3), cut.pad(delta, 3)
        log_mass = cut.pad(log_mass, 3, jnp.inf)
        ranges = _Ranges.of(cut, hidden)

        def block(carry, index):
            q, do, lse, shift = (cut.rows(array, index) for array in (query, d_out, log_mass, delta))

            def add(masked, at, carry):
                d_q, d_key, d_value, d_bias = carry
                k, v = (cut.columns(array, at).astype(work) for array in (key, value))
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                weights = jnp.exp(logits - lse[..., None])
                d_logits = weights * (_dot("bkgth,bksh->bkgts", do, v, dtype) - shift[..., None])
                if bias is not None:
                    d_bias = cut.add_to_bias(d_bias, d_logits, index, at)
                small = d_logits.astype(work)
                d_q = d_q + _dot("bkgts,bksh->bkgth", small, k, dtype)
                d_key = cut.add_columns(d_key, _dot("bkgts,bkgth->bksh", small, q.astype(work), dtype), at)
                d_value = cut.add_columns(d_value, _dot("bkgts,bkgth->bksh", weights.astype(work), do, dtype), at)
                return d_q, d_key, d_value, d_bias

            d_q, *carry = ranges.fold(index, add, (jnp.zeros(q.shape, dtype), *carry))
            return tuple(carry), d_q

        start = jnp.zeros(key.shape, dtype), jnp.zeros(value.shape, dtype), cut.whole_bias(d_bias)
        (d_key, d_value, d_bias), d_query = jax.lax.scan(block, start, jnp.arange(cut.row_blocks))
        d_query = cut.joined(d_query)
        d_scale = jnp.sum(query[:, :, :, : cut.length].astype(dtype) * d_query)[None, None]
        d_key, d_value = (array[:, :, : cut.size] for array in (d_key, d_value))
        return (scale * d_query, scale * d_key, d_value, d_scale), cut.without_padding(d_bias)

    d_bias = None if bias is None else jnp.zeros(bias.shape, dtype)
    arrays = (query, key, value, bias, hidden, d_out, log_mass, delta)
    (d_query, d_key, d_value, d_scale), d_bias = _over_lanes(blocks.apart, lane, d_bias, *arrays)
    return d_query, d_key, d_value, d_bias, jnp.sum(d_scale)


def _dot(spelt, one, other, dtype):
    return jnp.einsum(spelt, one, other, preferred_element_type=dtype)


def _work(dtype):
    """Of the matrix products with weights: those below e^-17 are zero in float16, and many of them add up."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def _over_lanes(apart, function, carry, *arrays):
    """`function(carry, *arrays)` -> (results, carry) for all of [B, K] at once, or for one place of it after another.

    Arrays and carry have B or 1 and K or 1 in front; each place gets and gives its part of them.
    """
    batch, kv_heads = arrays[0].shape[:2]
    if not apart or batch * kv_heads == 1:
        return function(carry, *arrays)

    def part(array, place):
        row, head = (at if size > 1 else 0 for at, size in zip(place, array.shape[:2], strict=True))
        return jax.lax.dynamic_slice(array, (row, head) + (0,) * (array.ndim - 2), (1, 1, *array.shape[2:]))

    def step(carry, index):
        place = index // kv_heads, index % kv_heads
        results, own = function(*jax.tree.map(lambda array: part(array, place), (carry, *arrays)))
        if carry is not None:
            row, head = (at if size > 1 else 0 for at, size in zip(place, carry.shape[:2], strict=True))
            carry = jax.lax.dynamic_update_slice(carry, own, (row, head) + (0,) * (carry.ndim - 2))
        return carry, jax.tree.map(lambda array: array[0, 0], results)

    carry, results = jax.lax.scan(step, carry, jnp.arange(batch * kv_heads))
    return jax.tree.map(lambda array: array.reshape(batch, kv_heads, *array.shape[1:]), results), carry


class _Cut(NamedTuple):
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
        length, size = query.shape[3], key.shape[2]
        return cls(min(blocks.queries, length), min(blocks.keys, size), length, size)

    @property
    def row_blocks(self):
        return -(-self.length // self.rows_of)

    @property
    def fills_columns(self):
        """Whether the last block of keys has any that are not there."""
        return self.size % self.columns_of != 0

    def pad(self, array, axis, value=0.0):
        """With the axis of T (3) or S (2 of keys, 4 of logits) filled up to whole blocks."""
        of = self.rows_of if axis == 3 else self.columns_of
        missing = -array.shape[axis] % of if array.shape[axis] > 1 or of == 1 else 0
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
        return None if bias is None else self.pad(self.pad(bias, 3), 4)

    def without_padding(self, bias):
        return None if bias is None else bias[..., : self.length, : self.size]

    def rows(self, array, index):
        """Of [B, K, G, T, ..] or what broadcasts to it."""
        if array.shape[3] == 1:
            return array
        return jax.lax.dynamic_slice_in_dim(array, index * self.rows_of, self.rows_of, axis=3)

    def columns(self, array, at, axis=2):
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
        start = at * self.columns_of
        there = jax.lax.dynamic_slice_in_dim(total, start, self.columns_of, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(total, there + more, start, axis=2)

    def add_to_bias(self, total, d_logits, index, at):
        summed = tuple(axis for axis, size in enumerate(total.shape) if size == 1)
        more = self.block(total, index, at) + jnp.sum(d_logits, axis=summed, keepdims=True)
        start = (
            0,
            0,
            0,
            index * self.rows_of if total.shape[3] > 1 else 0,
            at * self.columns_of if total.shape[4] > 1 else 0,
        )
        return jax.lax.dynamic_update_slice(total, more, start)

    def logits(self, q, key, bias, scale, hidden, index, at):
        """Of one block; -inf where a key is hidden, if anything hides keys in it."""
        logits = _dot("bkgth,bksh->bkgts", q, self.columns(key, at), scale.dtype) * scale
        if bias is not None:
            logits = logits + self.block(bias, index, at).astype(logits.dtype)
        if hidden is None:
            return logits
        rows = index * self.rows_of + jnp.arange(self.rows_of)[:, None]
        columns = at * self.columns_of + jnp.arange(self.columns_of)[None]
        ahead, rows, columns = (array[None, None, None] for array in (columns - rows, rows, columns))
        seen = [] if hidden.mask is None else [self.block(hidden.mask, index, at)]
        seen += [] if hidden.low is None else [ahead >= hidden.low]
        seen += [] if hidden.high is None else [ahead <= hidden.high]
        seen += [] if hidden.rows is None else [rows < hidden.rows]
        seen += [] if hidden.columns is None else [columns < hidden.columns]
        for each in seen:
            logits = jnp.where(each, logits, -jnp.inf)
        return logits


class _Ranges(NamedTuple):
    """Which blocks of keys a block of queries sees: some of, [first, last), and all of, [all_from, all_to) in it."""

    cut: _Cut
    hidden: _Hidden

    @classmethod
    def of(cls, cut, hidden):
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
