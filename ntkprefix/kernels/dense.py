"""Partial attention that holds all [T, S] logits: plain XLA, any device, the reference for faster kernels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.kernels.masks import combined_mask
from ntkprefix.partial import Partial, merge


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    scale: float | Float[Array, ""],
    prefix: Any = None,
    **options: Any,
) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"]]:
    """Output and log-sum-exp of a prefix and the input; arguments as in `ntkprefix.attention`, which checks them.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        scale: beta.
        prefix: joins the input's keys, or None.
        options: of `partial_attention`.

    Returns:
        The output, [B, T, N, Hv], and the natural logarithm of its denominator, [B, T, N], -inf where nothing is seen
        and NaN where a prefix makes it negative; both in float32 or wider.

    Raises:
        TypeError: as for the prefix's `partial`.
        ValueError: as for the prefix's `partial`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.kernels import dense
        >>> query, value = jnp.zeros((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4))
        >>> prefix = TokenPrefix(jnp.zeros((5, 2, 4)), jnp.zeros((5, 2, 4)))
        >>> out, log_mass = dense.attend(query, query, value, scale=0.5, prefix=prefix, is_causal=True)
        >>> [round(float(mass), 3) for mass in jnp.exp(log_mass[0, :, 0])]  # 5 keys of the prefix, 1 to 3 of the input
        [6.0, 7.0, 8.0]
        >>> round(float(out[0, 2, 0, 0]), 3)  # 3 of 8 equal weights
        0.375
    """
    also = None if prefix is None else prefix.partial(query, scale)
    share = partial_attention(query, key, value, scale=scale, also=also, **options)
    return share.normalise(), share.log_mass()


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
) -> Partial:
    """The input's share of attention, and what `also` holds with it; the rest as for `attend`.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        scale: beta.
        bias: added to the logits; broadcastable to [B, N, T, S].
        mask: True where a key may be seen; broadcastable to [B, N, T, S].
        is_causal: hide keys after the query's position.
        query_seq_lengths: queries at or beyond it, [B], see nothing.
        key_value_seq_lengths: keys at or beyond it, [B], are hidden.
        local_window_size: positions seen to the left and to the right of the query's own.
        query_offset: position of the first query among the keys, a number or [B].
        also: another group's share, [B, T, N, Hv] and [B, T, N], which is merged with the input's.

    Returns:
        The share of both, in float32 or wider.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import merge
        >>> from ntkprefix.kernels import dense
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
        >>> first = dense.partial_attention(query, key[:, :4], value[:, :4], scale=0.5)
        >>> second = dense.partial_attention(query, key[:, 4:], value[:, 4:], scale=0.5)
        >>> whole, _ = dense.attend(query, key, value, scale=0.5)
        >>> bool(jnp.allclose(merge(first, second).normalise(), whole, atol=1e-5))
        True
    """
    kv_heads = key.shape[2]
    logits = grouped_logits(query, key, scale)
    if bias is not None:
        logits = logits + group_heads(bias, kv_heads).astype(logits.dtype)
    allowed = combined_mask(
        query.shape[1],
        key.shape[1],
        mask=None if mask is None else group_heads(mask, kv_heads),
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
        query_offset=query_offset,
    )
    if allowed is not None:
        logits = jnp.where(allowed, logits, -jnp.inf)
    weights, den, log_scale = exponentials(logits)
    share = to_partial(weighted_sum(weights, value), den, log_scale)
    return share if also is None else merge(share, also)


def grouped_logits(
    query: Float[Array, "B T N H"], key: Float[Array, "*B S K H"], scale: float | Float[Array, ""]
) -> Float[Array, "B K G T S"]:
    """Logits `scale * q.k` in at least float32, query heads grouped under their kv head; keys may lack the B axis."""
    batch, length, heads, width = query.shape
    kv_heads = key.shape[-2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width)
    lead = "B" if key.ndim == 4 else ""
    dtype = accumulator(query.dtype)
    logits = jnp.einsum(f"BTKGH,{lead}SKH->BKGTS", grouped, key.astype(query.dtype), preferred_element_type=dtype)
    return logits * jnp.asarray(scale, dtype)


def exponentials(
    logits: Float[Array, "*heads T S"],
) -> tuple[Float[Array, "*heads T S"], Float[Array, "*heads T"], Float[Array, "*heads T"]]:
    """`exp(logits - max)`, their sum and the max over S; a row without any finite logit gives (0, 0, -inf)."""
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, initial=-jnp.inf))
    weights = jnp.exp(logits - jnp.where(jnp.isfinite(largest), largest, 0.0)[..., None])
    return weights, jnp.sum(weights, axis=-1), largest


def weighted_sum(weights: Float[Array, "B K G T S"], value: Float[Array, "*B S K Hv"]) -> Float[Array, "B K G T Hv"]:
    """Values summed with weights, accumulated in the weights' type; values may lack the B axis."""
    lead = "B" if value.ndim == 4 else ""
    if value.dtype == jnp.float16:
        value = value.astype(weights.dtype)  # weights below e^-17 are zero in float16, and many of them add up
    return jnp.einsum(
        f"BKGTS,{lead}SKH->BKGTH", weights.astype(value.dtype), value, preferred_element_type=weights.dtype
    )


def to_partial(
    num: Float[Array, "B K G T Hv"], den: Float[Array, "B K G T"], log_scale: Float[Array, "B K G T"]
) -> Partial:
    """Move the head axes behind T and join them: [B, K, G, T] -> [B, T, N]."""
    return Partial(*(_join_heads(array) for array in (num, den, log_scale)))


def group_heads(array: Array, kv_heads: int) -> Array:
    """[b, 1 or N, t, s] -> [b, 1 or K, 1 or G, t, s], without copying a broadcast axis."""
    if array.shape[1] == 1:
        return array[:, :, None]
    return array.reshape(array.shape[0], kv_heads, array.shape[1] // kv_heads, *array.shape[2:])


def _join_heads(array: Array) -> Array:
    batch, kv_heads, group, *rest = array.shape
    return jnp.moveaxis(array.reshape(batch, kv_heads * group, *rest), 1, 2)
