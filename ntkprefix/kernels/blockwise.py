r"""Partial attention by blocks of queries and keys, in plain XLA: memory O(T H), never O(T S), on every device.

Softmax over one block of keys after another, with the largest logit met so far as scale (arXiv 2112.05682). Of the
results, only the output and its log-sum-exp l, in two parts, are kept for the gradient, which computes every block of
weights again (arXiv 2205.14135):

$$ P = e^{\beta q k^T + bias - l}, \quad
   dS = P \circ (do\, v^T - do \cdot o + dl), \quad
   dv = P^T do, \quad dq = \beta\, dS\, k, \quad dk = \beta\, dS^T q . $$

Other keys' sums may join, a prefix's: with shares num and den of scale e^s their gradients are e^{s-l} do and
e^{s-l} (dl - do.o). What a prefix has for each kv head is read there, by the queries that are at hand, and computed
again for the gradient.

Blocks in which causality, window or lengths leave no key visible are not computed, and blocks in which they hide none
are not masked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.kernels.blocks import Blocks, Cut, Hidden, Ranges, blocks_for, dot, over_lanes
from ntkprefix.kernels.dense import group_heads
from ntkprefix.kernels.masks import band, over_batch
from ntkprefix.kernels.state_gradient import state_gradient
from ntkprefix.partial import Partial, add, bounded_exp, log_size


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    scale: float | Float[Array, ""],
    prefix: Any = None,
    blocks: Blocks | None = None,
    **options: Any,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"]]:
    """Output and log-sum-exp of a prefix and the input; arguments as in `ntkprefix.attention`, which checks them.

    Gradients are those of first order in reverse mode; `kernels.dense` has the others.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        scale: beta.
        prefix: joins the input's keys, or None.
        blocks: how the work is cut; None for the platform's own way, `blocks_for`.
        options: of `dense.partial_attention`.

    Returns:
        As from `dense.attend`.

    Raises:
        TypeError: as for the prefix's `partial`.
        ValueError: as for the prefix's `partial`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.kernels import blockwise, dense
        >>> from ntkprefix.kernels.blocks import Blocks
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 7, 2, 4))
        >>> blocks = Blocks(queries=2, keys=3, apart=False)  # the last of each are filled up
        >>> out, _ = blockwise.attend(query, key, value, scale=0.5, blocks=blocks, is_causal=True)
        >>> exact, _ = dense.attend(query, key, value, scale=0.5, is_causal=True)
        >>> bool(jnp.allclose(out, exact, atol=1e-5))
        True

    Source: arXiv 2112.05682 and arXiv 2205.14135.
    """
    blocks = blocks or _blocks_for(query, key)
    joins = prefix is not None and blocks.apart and hasattr(prefix, "by_kv_head")
    if joins:
        # What it has to complain of, it says to all heads together.
        jax.eval_shape(lambda query: prefix.partial(query, scale), query)
    out, sign, log_mass = _shares(
        query,
        key,
        value,
        scale=scale,
        blocks=blocks,
        also=None if prefix is None or joins else prefix.partial(query, scale),
        prefix=prefix.by_kv_head(key.shape[2]) if joins else None,
        **options,
    )
    return out, jnp.where(sign < 0, jnp.nan, log_mass)


def partial_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    scale: float | Float[Array, ""],
    also: Partial | None = None,
    blocks: Blocks | None = None,
    **options: Any,
) -> Partial:
    """The input's share of attention, and what `also` holds with it; the rest as for `attend`.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        scale: beta.
        also: another group's share, [B, T, N, Hv] and [B, T, N], which is merged with the input's.
        blocks: as for `attend`.
        options: of `dense.partial_attention`.

    Returns:
        The share of both, in float32 or wider; without `also` divided already: `den` is 1, or 0 where nothing is seen.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.kernels import blockwise
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
        >>> share = blockwise.partial_attention(query, key[:, :4], value[:, :4], scale=0.5)
        >>> share = blockwise.partial_attention(query, key[:, 4:], value[:, 4:], scale=0.5, also=share)
        >>> whole, log_mass = blockwise.attend(query, key, value, scale=0.5)
        >>> bool(jnp.allclose(share.normalise(), whole, atol=1e-5))
        True
        >>> bool(jnp.allclose(share.log_mass(), log_mass, atol=1e-5))
        True

    Source: arXiv 2112.05682 and arXiv 2205.14135.
    """
    blocks = blocks or _blocks_for(query, key)
    share = Partial(*_shares(query, key, value, scale=scale, blocks=blocks, **options))
    return share if also is None else add(share, also)


def gradients(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    out: Float[Array, "B T N Hv"],
    sign: Float[Array, "B T N"],
    log_mass: Float[Array, "B T N"],
    d_out: Float[Array, "B T N Hv"],
    d_log_mass: Float[Array, "B T N"],
    *,
    scale: float,
    **options: Any,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B S K H"], Float[Array, "B S K Hv"]]:
    """Gradients in query, key and value of what another kernel found: output, and sign and log of its denominator.

    They are those of all keys together if others have joined these. The options hide keys, and are not a bias.
    """
    kv_heads, dtype = key.shape[2], accumulator(query.dtype)

    def grouped(array):
        return array.reshape(*array.shape[:2], kv_heads, -1, *array.shape[3:])

    hidden = _hidden(kv_heads, **options)
    given = grouped(query), key, value, None, hidden, None, None
    found = grouped(out.astype(dtype)), grouped(sign), jnp.where(jnp.isfinite(log_mass), log_mass, 0.0)
    saved = given, jnp.asarray(scale, dtype), *found[:2], grouped(found[2])
    d_found = grouped(d_out.astype(dtype)), None, grouped(d_log_mass)
    d_query, d_key, d_value, *_ = _compiled_backward(_blocks_for(query, key), saved, d_found)
    return d_query.reshape(query.shape), d_key, d_value


def _blocks_for(query, key) -> Blocks:
    (batch, length, heads, _), (size, kv_heads) = query.shape, key.shape[1:3]
    return blocks_for(jax.default_backend(), batch, length, size, heads, kv_heads)


def _shares(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    scale: float | Float[Array, ""],
    blocks: Blocks,
    bias: Float[Array, "#B #N #T #S"] | None = None,
    mask: Bool[Array, "#B #N #T #S"] | None = None,
    is_causal: bool = False,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: tuple[int, int] | None = None,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    also: Partial | None = None,
    prefix: Any = None,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"], Float[Array, "B T N"]]:
    """Output, and sign and logarithm of its denominator: 0, 0 and -inf where nothing is seen.

    A state's denominator may be negative.
    """
    batch, length, heads, width = query.shape
    size, kv_heads = key.shape[1:3]
    dtype = accumulator(query.dtype)
    if size == 0:
        # One key that nothing sees.
        key, value = (jnp.zeros((batch, 1, *array.shape[2:]), array.dtype) for array in (key, value))
        bias, mask, key_value_seq_lengths = None, None, jnp.zeros(batch, jnp.int32)
    hidden = _hidden(
        kv_heads,
        mask=mask,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        query_offset=query_offset,
    )

    def grouped(array):
        return array.astype(dtype).reshape(batch, length, kv_heads, heads // kv_heads, *array.shape[3:])

    if length == 0:
        nothing = jnp.zeros((batch, length, heads), dtype)
        return jnp.zeros((*nothing.shape, value.shape[-1]), dtype), nothing, nothing - jnp.inf
    found = _compiled_attend(
        blocks,
        query.reshape(batch, length, kv_heads, heads // kv_heads, width),
        key,
        value,
        None if bias is None else group_heads(bias, kv_heads)[:, None],
        jnp.asarray(scale, dtype),
        hidden,
        jax.tree.map(grouped, also),
        prefix,
    )
    return jax.tree.map(lambda array: array.reshape(batch, length, heads, *array.shape[4:]), found)


def _hidden(
    kv_heads,
    *,
    mask=None,
    is_causal=False,
    query_seq_lengths=None,
    key_value_seq_lengths=None,
    local_window_size=None,
    query_offset=0,
) -> Hidden:
    low, high = band(is_causal, local_window_size, query_offset)
    return Hidden(
        None if mask is None else group_heads(mask, kv_heads)[:, None],
        *(None if each is None else over_batch(each) for each in (low, high, query_seq_lengths, key_value_seq_lengths)),
    )


# Below, arrays have rows of the batch and kv heads on axes 0 and 2, where `over_lanes` finds them, and an axis of one
# between where there is nothing else: queries [B, T, K, G, H], keys [B, S, K, H], a bias [#B, 1, #K, #G, #T, #S].


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(blocks, query, key, value, bias, scale, hidden, also, prefix):
    """Output [B, T, K, G, Hv]; sign and logarithm of its denominator, [B, T, K, G]."""
    return _attend_forward(blocks, query, key, value, bias, scale, hidden, also, prefix)[0]


def _attend_forward(blocks, query, key, value, bias, scale, hidden, also, prefix):
    given = query, key, value, bias, hidden, also, prefix
    cut = Cut.of(blocks, query, key)
    dtype = scale.dtype

    def lane(_, *given):
        query, key, value, bias, hidden, also, prefix = given
        if prefix is not None:
            also = _of_prefix(prefix, query, scale)
        query, key, value, bias, hidden = cut.whole(*_heads_first(query, key, value, bias, hidden))
        also = jax.tree.map(lambda array: cut.pad(jnp.moveaxis(array, 1, 3), 3), also)
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
                more = dot("bkgts,bksh->bkgth", weights.astype(work), cut.columns(value, at).astype(work), dtype)
                return num * kept[..., None] + more, den * kept + jnp.sum(weights, axis=-1), larger

            shape = q.shape[:-1]
            zeros = jnp.zeros((*shape, value.shape[-1]), dtype)
            start = zeros, jnp.zeros(shape, dtype), jnp.full(shape, -jnp.inf, dtype)
            share = Partial(*ranges.fold(index, add_block, start))
            if also is not None:
                share = add(share, jax.tree.map(lambda array: cut.rows(array, index), also))
            return share.normalise(), share.den, share.log_scale

        found = jax.tree.map(cut.joined, jax.lax.map(block, jnp.arange(cut.row_blocks, dtype=jnp.int32)))
        return jax.tree.map(lambda array: jnp.moveaxis(array, 3, 1), found)

    shape = query.shape[:-1]
    empty = jnp.zeros((*shape, value.shape[-1]), dtype), jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
    out, den, log_scale = over_lanes(blocks.apart, lane, empty, *given)
    return (out, jnp.sign(den), log_size(den, log_scale)), (given, scale, out, den, log_scale)


def _attend_backward(blocks, saved, gradients):
    given, scale, *found = saved
    d_out, _, d_log_mass = gradients
    query, key, value, bias, _, also, prefix = given
    cut, dtype, work = Cut.of(blocks, query, key), scale.dtype, _work(value.dtype)

    def lane(so_far, query, key, value, bias, hidden, also, prefix, out, den, log_scale, d_out, d_log_mass):
        *_, all_d_bias, all_d_scale, _, all_d_prefix = so_far
        # Denominator and scale stay apart, as in the output: a sum of both rounds a logit of 1e4 to a thousandth.
        unseen = den == 0
        per_den = jnp.where(unseen, 0.0, 1 / jnp.where(unseen, 1.0, den))
        delta = (jnp.sum(d_out * out, axis=-1) - jnp.where(unseen, 0.0, d_log_mass)) * per_den
        # A row that sees nothing, and rows that only fill a block, have weights e^{-inf} = 0.
        log_scale = jnp.where(unseen, jnp.inf, log_scale)
        d_out = d_out * per_den[..., None]
        d_also = None if also is None else of_others(also, d_out, delta, log_scale)
        if prefix is not None:
            q, do, of_row, largest = (array[:, :, 0] for array in (query, d_out, delta, log_scale))
            of_prefix = state_gradient(_at_one_place(prefix), q, do, of_row, largest, scale, dtype)
        query, key, value, bias, hidden = cut.whole(*_heads_first(query, key, value, bias, hidden))
        d_out, delta, log_scale = (jnp.moveaxis(array, 1, 3) for array in (d_out, delta, log_scale))
        d_out, delta, log_scale = cut.pad(d_out.astype(work), 3), cut.pad(delta, 3), cut.pad(log_scale, 3, jnp.inf)
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
        start = *(jnp.zeros(jnp.swapaxes(a, 2, 3).shape, dtype) for a in (key, value)), _whole_bias(cut, all_d_bias)
        (d_key, d_value, d_bias), d_query = jax.lax.scan(block, start, jnp.arange(cut.row_blocks, dtype=jnp.int32))
        d_query = cut.joined(d_query)
        d_scale = jnp.sum(query[:, :, :, : cut.length].astype(dtype) * d_query)
        d_query = jnp.moveaxis(scale * d_query, 3, 1)
        d_key, d_value = (jnp.moveaxis(array[..., : cut.size], 3, 1) for array in (scale * d_key, d_value))
        d_prefix = None
        if prefix is not None:
            d_state, more, more_scale = of_prefix
            d_query, d_scale = d_query + more[:, :, None].astype(dtype), d_scale + more_scale
            d_prefix = jax.tree.map(
                lambda total, more: total + more.astype(total.dtype).reshape(total.shape), all_d_prefix, d_state
            )
        d_bias = None if d_bias is None else cut.without_padding(d_bias)[:, None]
        return d_query, d_key, d_value, d_bias, all_d_scale + d_scale, d_also, d_prefix

    start = (
        *(jnp.zeros(array.shape, dtype) for array in (query, key, value)),
        None if bias is None else jnp.zeros(bias.shape, dtype),
        jnp.zeros((1, 1, 1), dtype),
        *jax.tree.map(lambda array: jnp.zeros(array.shape, dtype), (also, prefix)),
    )
    d_query, d_key, d_value, d_bias, d_scale, d_also, d_prefix = over_lanes(
        blocks.apart, lane, start, *given, *found, d_out, d_log_mass
    )
    *of_given, d_prefix = jax.tree.map(
        lambda gradient, array: gradient.astype(array.dtype),
        (d_query, d_key, d_value, d_bias, d_prefix),
        (query, key, value, bias, prefix),
    )
    return (*of_given, d_scale.reshape(()), None, d_also, d_prefix)


# JAX compiles a loop that it meets outside of `jit` at every call; so, once for all calls of a shape.
_compiled = partial(jax.jit, static_argnums=0, inline=True)
_compiled_attend, _compiled_backward = _compiled(_attend), _compiled(_attend_backward)
_attend.defvjp(_attend_forward, _compiled_backward)


def of_others(also, d_out, delta, log_scale) -> Partial:
    """Gradients of what joins the blocks."""
    share = bounded_exp(also.log_scale - log_scale)
    along = jnp.sum(d_out * also.num, axis=-1)
    return Partial(d_out * share[..., None], -delta * share, (along - delta * also.den) * share)


def _of_prefix(prefix, query, scale) -> Partial:
    """A prefix's share, [1, T, 1, G], at one place of rows and kv heads."""
    share = _at_one_place(prefix).partial(query[:, :, 0], scale)
    return jax.tree.map(lambda array: array[:, :, None].astype(scale.dtype), share)


def _at_one_place(prefix):
    return jax.tree.map(lambda array: array[0, 0, 0], prefix)


def _heads_first(query, key, value, bias, hidden):
    """Heads before lengths, [b, K, G, T, H] and [b, K, S, H], as matrix products want them."""
    hidden = hidden._replace(mask=None if hidden.mask is None else hidden.mask[:, 0])
    key, value = (jnp.swapaxes(array, 1, 2) for array in (key, value))
    return jnp.moveaxis(query, 1, 3), key, value, None if bias is None else bias[:, 0], hidden


def _whole_bias(cut, bias):
    return None if bias is None else cut.whole_bias(bias[:, 0])


def _work(dtype):
    """Of the matrix products with weights: those below e^-17 are zero in float16, and many of them add up."""
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype
