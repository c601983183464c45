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
    """Output and log-sum-exp of a prefix and the input; arguments as in `ntkprefix.attention`."""
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
    """The input's share of attention, and what `also` holds with it; the rest as for `attend`."""
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
