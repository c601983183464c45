"""The one function: scaled dot-product attention, with a prefix."""

from __future__ import annotations

from typing import Literal, overload

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkprefix import checks
from ntkprefix.kernels import IMPLEMENTATIONS, best_for
from ntkprefix.prefixes import Prefix


@overload
def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K Hv"],
    *,
    prefix: Prefix | None = ...,
    bias: Float[Array, "..."] | None = ...,
    mask: Bool[Array, "..."] | None = ...,
    is_causal: bool = ...,
    scale: float | Float[Array, ""] | None = ...,
    query_seq_lengths: Int[Array, " B"] | None = ...,
    key_value_seq_lengths: Int[Array, " B"] | None = ...,
    local_window_size: int | tuple[int, int] | None = ...,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = ...,
    implementation: str | None = ...,
    return_residual: Literal[False] = ...,
) -> Float[Array, "*B T N Hv"]: ...


@overload
def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K Hv"],
    *,
    prefix: Prefix | None = ...,
    bias: Float[Array, "..."] | None = ...,
    mask: Bool[Array, "..."] | None = ...,
    is_causal: bool = ...,
    scale: float | Float[Array, ""] | None = ...,
    query_seq_lengths: Int[Array, " B"] | None = ...,
    key_value_seq_lengths: Int[Array, " B"] | None = ...,
    local_window_size: int | tuple[int, int] | None = ...,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = ...,
    implementation: str | None = ...,
    return_residual: Literal[True],
) -> tuple[Float[Array, "*B T N Hv"], Float[Array, "*B T N"]]: ...


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S K H"],
    value: Float[Array, "*B S K Hv"],
    *,
    prefix: Prefix | None = None,
    bias: Float[Array, "..."] | None = None,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | Float[Array, ""] | None = None,
    query_seq_lengths: Int[Array, " B"] | None = None,
    key_value_seq_lengths: Int[Array, " B"] | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    query_offset: int | Int[Array, ""] | Int[Array, " B"] = 0,
    implementation: str | None = None,
    return_residual: bool = False,
) -> Float[Array, "*B T N Hv"] | tuple[Float[Array, "*B T N Hv"], Float[Array, "*B T N"]]:
    r"""Attention over a prefix and the input, normalised together.

    $$ out(q) = \frac{\sum_r e^{\beta q \cdot p_r} u_r + \sum_s e^{\beta q \cdot k_s + bias} v_s}
                     {\sum_r e^{\beta q \cdot p_r} + \sum_s e^{\beta q \cdot k_s + bias}} $$

    The first sums are the prefix's, exact or in closed form (see the prefix kinds); the second, over the keys that
    mask, causality, window and lengths leave visible, are the input's. The prefix is visible to every query. Without a
    prefix this is `jax.nn.dot_product_attention`, but for rows that see no key: those are zero here (with a prefix,
    the prefix's output), where that function averages over hidden keys. Sums are accumulated in float32 or wider, and
    logits of 1e4 are fine in every dtype.

    Axes: B batch, T queries, S keys, N query heads, K key-value heads (N a multiple of K), H and Hv head widths.

    Args:
        query: [B, T, N, H]; the B axis may be left out on query, key and value together.
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        prefix: a `TokenPrefix`, `FeaturePrefix`, `MeasurePrefix`, several as a `JoinedPrefix`, or anything with their
            `partial` and `shape`.
        bias: added to the input's logits; broadcastable to [B, N, T, S].
        mask: True where the input may be seen; broadcastable to [B, N, T, S].
        is_causal: hide keys after the query's position.
        scale: beta; 1/sqrt(H) if None; may be traced. Feature prefixes need it above 0 and as they were built with.
        query_seq_lengths: queries at or beyond it, [B], see nothing of the input.
        key_value_seq_lengths: keys at or beyond it, [B], are hidden.
        local_window_size: (left, right): positions seen on either side of the query's own; an int for both.
        query_offset: position of the first query among the keys, for causality and window: 0 as in JAX, S - T when
            decoding or in chunked prefill. A number or [B]; may be traced.
        implementation: a name from `ntkprefix.kernels.IMPLEMENTATIONS`, or None for the best by shape and device.
            `"xla"` holds all [T, S] logits and differentiates in every way: ask for it where long inputs need forward
            mode (`jax.jvp`, `jax.linearize`) or second derivatives. `"blockwise"`, taken for long inputs, needs memory
            O(T H), leaves out blocks that no query may see, and has gradients in reverse mode, once. `"cudnn"` and
            `"pallas"` are fused kernels of NVIDIA GPUs for bfloat16 and float16, taken there for what they have;
            `"splash"` is one of TPUs, taken where it is named. Their gradients are like those by blocks.
        return_residual: return the log-sum-exp too, by which other keys' attention can be merged with this.

    Returns:
        [B, T, N, Hv], in the query's dtype. With `return_residual` a pair, its second the natural logarithm of the
        denominator, prefix and input together, [B, T, N], in float32 or wider: -inf where no key has any weight, NaN
        where a feature prefix makes the denominator negative. Unlike `jax.nn`'s it has gradients, and is not rounded.

    Raises:
        TypeError: dtypes that are not floating point or not one, a mask that is not boolean, options of another type,
            something that is no prefix.
        ValueError: shapes that do not match, head counts that do not divide, unknown options, something that the
            named implementation has no kernel for, a scale that is not finite or not the one that a feature prefix was
            built with; with JAX's `jax_debug_nans` switched on, NaN in the prefix.

    Example:
        >>> import jax
        >>> from ntkprefix import FeaturePrefix, attention
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 16, 4, 8))
        >>> prefix = FeaturePrefix.from_tokens(*jax.random.normal(jax.random.key(1), (2, 100_000, 4, 8)))
        >>> attention(query, key, value, prefix=prefix, is_causal=True).shape
        (2, 16, 4, 8)

    Source: prefix attention, arXiv 2406.14036, eq. (1) onwards; the layout and options of `jax.nn`'s function.
    """
    checks.arrays(query, key, value)
    query, key, value = (jnp.asarray(array) for array in (query, key, value))
    batched = query.ndim == 4
    if not batched:
        query, key, value = query[None], key[None], value[None]
    batch, length, heads, width = query.shape
    over_logits = {"bias": bias, "mask": mask}
    for name, array in over_logits.items():
        if array is not None:
            array = checks.array_like(name, array)
            over_logits[name] = array = array.reshape((1,) * (4 - array.ndim) + array.shape)
            checks.over_logits(name, array, batch, heads, length, key.shape[1])
    lengths = {"query_seq_lengths": query_seq_lengths, "key_value_seq_lengths": key_value_seq_lengths}
    for name, array in lengths.items():
        if array is not None:
            lengths[name] = checks.array_like(name, array)
            checks.lengths(name, lengths[name], batch)
    checks.offset(query_offset, batch)
    checks.flag("is_causal", is_causal)
    checks.flag("return_residual", return_residual)
    beta = checks.scale("attention", scale, width)
    if prefix is not None:
        checks.prefix(prefix, query, key, value)
    checks.implementation(implementation, tuple(IMPLEMENTATIONS))
    call = {
        "scale": beta,
        "prefix": prefix,
        "is_causal": is_causal,
        "local_window_size": checks.window(local_window_size),
        "query_offset": query_offset,
        **over_logits,
        **lengths,
    }
    name = implementation or best_for(query, key, value, **call)
    out, residual = IMPLEMENTATIONS[name].attend(query, key, value, **call)
    out = out.astype(query.dtype)
    if not batched:
        out, residual = out[0], residual[0]
    return (out, residual) if return_residual else out
