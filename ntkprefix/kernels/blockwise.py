r"""Partial attention by blocks of queries and keys, in plain XLA: memory O(T H), never O(T S), on every device.

Softmax over one block of keys after another, with the largest logit met so far as scale (arXiv 2112.05682). Of the
results, only the output and its log-sum-exp l, in two parts, are kept for the gradient, which computes every block of
weights again (arXiv 2205.14135):

$$ P = e^{\beta q k^T + bias - l}, \quad
   dS = P \circ (do\, v^T - do \cdot o + dl), \quad
   dv = P^T do, \quad dq = \beta\, dS\, k, \quad dk = \beta\, dS^T q . $$

Other keys' sums may join, a prefix's: with shares num and den of scale e^s their gradients are e^{s-l} do and
e^{s-l} (dl - do.o).

Blocks in which causality, window or lengths leave no key visible are not computed, and blocks in which they hide none
are not masked.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.kernels.blocks import Blocks, Cut, Hidden, Ranges, blocks_for, dot, over_lanes
from ntkprefix.kernels.dense import group_heads, group_partial, to_partial
from ntkprefix.kernels.masks import band, over_batch
from ntkprefix.partial import Partial, add, bounded_exp, merge


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
    also: Partial | None = None,
    blocks: Blocks | None = None,
) -> Partial:
    """The input's share of attention, and what `also` holds with it; arguments as in `ntkprefix.attention`.

    What else there is joins each block of queries while its sums are at hand, and costs no pass of its own. Gradients
    are those of first order in reverse mode; `kernels.dense` has the others.
    """
    batch, length, heads, width = query.shape
    keys, kv_heads = key.shape[1:3]
    dtype = accumulator(query.dtype)
    if keys == 0 or length == 0:
        shape = (batch, length, heads)
        nothing = Partial(
            jnp.zeros((*shape, value.shape[-1]), dtype), jnp.zeros(shape, dtype), jnp.full(shape, -jnp.inf, dtype)
        )
        return nothing if also is None else merge(nothing, also)
    low, high = band(is_causal, local_window_size, query_offset)
    hidden = Hidden(
        None if mask is None else group_heads(mask, kv_heads),
        *(None if each is None else over_batch(each) for each in (low, high, query_seq_lengths, key_value_seq_lengths)),
    )
    queries = jnp.moveaxis(query, 2, 1).reshape(batch, kv_heads, heads // kv_heads, length, width)
    out, sign, log_mass = _attend(
        blocks or blocks_for(jax.default_backend(), batch, length, keys, heads, kv_heads),
        queries,
        jnp.moveaxis(key, 1, 2),
        jnp.moveaxis(value, 1, 2),
        None if bias is None else group_heads(bias, kv_heads),
        jnp.asarray(scale, dtype),
        hidden,
        None if also is None else group_partial(jax.tree.map(lambda leaf: leaf.astype(dtype), also), kv_heads),
    )
    return to_partial(out if also is None else out * sign[..., None], sign, log_mass)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks, query, key, value, bias, scale, hidden, also):
    """Output [B, K, G, T, Hv] of [B, K, G, T, H] queries; sign and logarithm of its denominator, [B, K, G, T].

    Where nothing is seen they are 0, 0 and -inf. A state's denominator may be negative.
    """
    return _attend_forward(blocks, query, key, value, bias, scale, hidden, also)[0]


def _attend_forward(blocks, query, key, value, bias, scale, hidden, also):
    out, den, log_scale = _forward(blocks, query, key, value, bias, scale, hidden, also)
    log_mass = jnp.where(den == 0, -jnp.inf, jnp.log(jnp.where(den == 0, 1.0, jnp.abs(den))) + log_scale)
    saved = query, key, value, bias, scale, hidden, also, out, den, log_scale
    return (out, jnp.sign(den), log_mass), saved


def _attend_backward(blocks, saved, gradients):
    query, key, value, bias, scale, hidden, also, out, den, log_scale = saved
    d_out, _, d_log_mass = gradients
    # Denominator and scale stay apart, as in the output: a sum of both rounds a logit of 1e4 to a thousandth.
    empty = den == 0
    per_den = jnp.where(empty, 0.0, 1 / jnp.where(empty, 1.0, den))
    # A row that sees nothing, and rows that only fill a block, have weights e^{-inf} = 0.
    log_scale = jnp.where(empty, jnp.inf, log_scale)
    delta = (jnp.sum(d_out * out, axis=-1) - jnp.where(empty, 0.0, d_log_mass)) * per_den
    d_out = d_out * per_den[..., None]
    d_also = None
    if also is not None:
        share = bounded_exp(also.log_scale - log_scale)
        along = jnp.sum(d_out * also.num, axis=-1)
        d_also = Partial(d_out * share[..., None], -delta * share, (along - delta * also.den) * share)
    d_query, d_key, d_value, d_bias, d_scale = _backward(
        blocks, query, key, value, bias, scale, hidden, d_out.astype(_work(value.dtype)), log_scale, delta
    )
    return (
        d_query.astype(query.dtype),
        d_key.astype(key.dtype),
        d_value.astype(value.dtype),
        None if bias is None else d_bias.astype(bias.dtype),
        d_scale,
        None,
        d_also,
    )


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(blocks, query, key, value, bias, scale, hidden, also):
    cut = Cut.of(blocks, query, key)

    def lane(_, query, key, value, bias, hidden, also):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        also = jax.tree.map(lambda array: cut.pad(array, 3), also)
        ranges = Ranges.of(cut, hidden)

        def block(index):
            q = cut.rows(query, index)

            def add_block(masked, at, carry):
                num, den, largest = carry
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                larger = jnp.maximum(largest, jnp.max(logits, axis=-1))
                finite = jnp.where(jnp.isfinite(larger), larger, 0.0)
                kept, weights = jnp.exp(largest - finite), jnp.exp(logits - finite[..., None])
                work = _work(value.dtype)
                more = dot("bkgts,bksh->bkgth", weights.astype(work), cut.columns(value, at).astype(work), scale.dtype)
                return num * kept[..., None] + more, den * kept + jnp.sum(weights, axis=-1), larger

            shape, dtype = q.shape[:-1], scale.dtype
            zeros = jnp.zeros((*shape, value.shape[-1]), dtype)
            start = zeros, jnp.zeros(shape, dtype), jnp.full(shape, -jnp.inf, dtype)
            share = Partial(*ranges.fold(index, add_block, start))
            if also is not None:
                share = add(share, jax.tree.map(lambda array: cut.rows(array, index), also))
            return share.normalise(), share.den, share.log_scale

        return jax.tree.map(cut.joined, jax.lax.map(block, jnp.arange(cut.row_blocks))), None

    results, _ = over_lanes(blocks.apart, lane, None, query, key, value, bias, hidden, also)
    return results


def _backward(blocks, query, key, value, bias, scale, hidden, d_out, log_scale, delta):
    cut, dtype, work = Cut.of(blocks, query, key), scale.dtype, d_out.dtype

    def lane(d_bias, query, key, value, bias, hidden, d_out, log_scale, delta):
        query, key, value, bias, hidden = cut.whole(query, key, value, bias, hidden)
        d_out, delta = cut.pad(d_out, 3), cut.pad(delta, 3)
        log_scale = cut.pad(log_scale, 3, jnp.inf)
        ranges = Ranges.of(cut, hidden)

        def block(carry, index):
            q, do, largest, shift = (cut.rows(array, index) for array in (query, d_out, log_scale, delta))

            def add(masked, at, carry):
                d_q, d_key, d_value, d_bias = carry
                k, v = (cut.columns(array, at).astype(work) for array in (key, value))
                logits = cut.logits(q, key, bias, scale, hidden if masked else None, index, at)
                weights = jnp.exp(logits - largest[..., None])
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
    arrays = (query, key, value, bias, hidden, d_out, log_scale, delta)
    (d_query, d_key, d_value, d_scale), d_bias = over_lanes(blocks.apart, lane, d_bias, *arrays)
    return d_query, d_key, d_value, d_bias, jnp.sum(d_scale)


def _work(dtype):
    """Of the matrix products with weights: those below e^-17 are zero in float16, and many of them add up."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
