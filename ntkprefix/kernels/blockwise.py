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

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.kernels.blocks import BLOCKS, Blocks, Cut, Hidden, Ranges, dot, over_lanes
from ntkprefix.kernels.dense import group_heads, to_partial
from ntkprefix.kernels.masks import band, over_batch
from ntkprefix.partial import Partial


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
    hidden = Hidden(
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
    cut = Cut.of(blocks, query, key)

    def lane(_, query, key, value, bias, hidden):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        ranges = Ranges.of(cut, hidden)

        def block(index):
            q = cut.rows(query, index)

            def add(masked, at, carry):
                num, den, largest = carry
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                larger = jnp.maximum(largest, jnp.max(logits, axis=-1))
                finite = jnp.where(jnp.isfinite(larger), larger, 0.0)
                kept, weights = jnp.exp(largest - finite), jnp.exp(logits - finite[..., None])
                work = _work(value.dtype)
                more = dot("bkgts,bksh->bkgth", weights.astype(work), cut.columns(value, at).astype(work), scale.dtype)
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

    (out, log_mass), _ = over_lanes(blocks.apart, lane, None, query, key, value, bias, hidden)
    return out, log_mass


def _backward(blocks, query, key, value, bias, scale, hidden, d_out, log_mass, delta):
    cut, dtype, work = Cut.of(blocks, query, key), scale.dtype, d_out.dtype

    def lane(d_bias, query, key, value, bias, hidden, d_out, log_mass, delta):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        d_out, delta = cut.pad(d_out, 3), cut.pad(delta, 3)
        log_mass = cut.pad(log_mass, 3, jnp.inf)
        ranges = Ranges.of(cut, hidden)

        def block(carry, index):
            q, do, lse, shift = (cut.rows(array, index) for array in (query, d_out, log_mass, delta))

            def add(masked, at, carry):
                d_q, d_key, d_value, d_bias = carry
                k, v = (cut.columns(array, at).astype(work) for array in (key, value))
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                weights = jnp.exp(logits - lse[..., None])
                d_logits = weights * (dot("bkgth,bksh->bkgts", do, v, dtype) - shift[..., None])
                if bias is not None:
                    d_bias = cut.add_to_bias(d_bias, d_logits, index, at)
                small = d_logits.astype(work)
                d_q = d_q + dot("bkgts,bksh->bkgth", small, k, dtype)
                d_key = cut.add_columns(d_key, dot("bkgth,bkgts->bkhs", q.astype(work), small, dtype), at)
                d_value = cut.add_columns(d_value, dot("bkgth,bkgts->bkhs", do, weights.astype(work), dtype), at)
                return d_q, d_key, d_value, d_bias

            d_q, *carry = ranges.fold(index, add, (jnp.zeros(q.shape, dtype), *carry))
            return tuple(carry), d_q

        # Widths before lengths: the products that sum over rows then read a block of weights as it lies.
        start = *(jnp.zeros(jnp.swapaxes(a, 2, 3).shape, dtype) for a in (key, value)), cut.whole_bias(d_bias)
        (d_key, d_value, d_bias), d_query = jax.lax.scan(block, start, jnp.arange(cut.row_blocks))
        d_query = cut.joined(d_query)
        d_scale = jnp.sum(query[:, :, :, : cut.length].astype(dtype) * d_query)[None, None]
        d_key, d_value = (jnp.swapaxes(array, 2, 3)[:, :, : cut.size] for array in (d_key, d_value))
        return (scale * d_query, scale * d_key, d_value, d_scale), cut.without_padding(d_bias)

    d_bias = None if bias is None else jnp.zeros(bias.shape, dtype)
    arrays = (query, key, value, bias, hidden, d_out, log_mass, delta)
    (d_query, d_key, d_value, d_scale), d_bias = over_lanes(blocks.apart, lane, d_bias, *arrays)
    return d_query, d_key, d_value, d_bias, jnp.sum(d_scale)


def _work(dtype):
    """Of the matrix products with weights: those below e^-17 are zero in float16, and many of them add up."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
