"""Which query sees which key: one boolean mask from every option that hides keys."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

# A window's side of this or more stands for "all".
WHOLE_SIDE = 2**31 - 1


def combined_mask(
    queries: int,
    keys: int,
    *,
    mask: Bool[Array, "#B #K #G #T #S"] | None,
    is_causal: bool,
    query_seq_lengths: Int[Array, " B"] | None,
    key_value_seq_lengths: Int[Array, " B"] | None,
    local_window_size: tuple[int, int] | None,
    query_offset: int | Int[Array, ""] | Int[Array, " B"],
) -> Bool[Array, "#B #K #G #T #S"] | None:
    """The conjunction of all that is asked for, broadcastable to [B, K, G, T, S]; None when every key is visible."""
    parts = [] if mask is None else [mask]
    rows = jnp.arange(queries, dtype=jnp.int32)[None, None, None, :, None]
    columns = jnp.arange(keys, dtype=jnp.int32)[None, None, None, None, :]
    low, high = band(is_causal, local_window_size, query_offset)
    if low is not None:
        parts.append(columns - rows >= over_batch(low))
    if high is not None:
        parts.append(columns - rows <= over_batch(high))
    if query_seq_lengths is not None:
        parts.append(rows < over_batch(query_seq_lengths))
    if key_value_seq_lengths is not None:
        parts.append(columns < over_batch(key_value_seq_lengths))
    combined = None
    for part in parts:
        combined = part if combined is None else combined & part
    return combined


def band(
    is_causal: bool, local_window_size: tuple[int, int] | None, query_offset: int | Int[Array, "*B"]
) -> tuple[Int[Array, "*B"] | None, Int[Array, "*B"] | None]:
    """Least and largest column less row, both counted from 0, of a key that causality and window leave visible.

    None where there is no such bound. Positions are compared with the offset, and never added to it: near 2^31 they
    would overflow.
    """
    offset = jnp.asarray(query_offset).astype(jnp.int32)
    low, high = None, offset if is_causal else None
    if local_window_size is not None:
        left, right = local_window_size
        if left < WHOLE_SIDE:
            low = offset - jnp.minimum(left, WHOLE_SIDE + jnp.minimum(offset, 0))
        if right < WHOLE_SIDE:
            ahead = offset + jnp.minimum(right, WHOLE_SIDE - jnp.maximum(offset, 0))
            high = ahead if high is None else jnp.minimum(high, ahead)
    return low, high


def over_batch(numbers: int | Int[Array, "*B"]) -> Int[Array, "#B 1 1 1 1"]:
    """A number for each row of a batch, or one for all, as it stands beside [B, K, G, T, S]."""
    return jnp.asarray(numbers).astype(jnp.int32).reshape(-1, 1, 1, 1, 1)


def not_fused(options: dict[str, Any]) -> str | None:
    """What is asked for beyond causality, with a window or without, and lengths, in words: fused kernels have no more.

    Args:
        options: of `dense.partial_attention`, each None where it asks for nothing.
    """
    window = options["local_window_size"]
    if window is not None and not (options["is_causal"] and window[1] >= 0):
        return "a window without causality"
    given = [name for name in ("bias", "mask", "query_offset") if options[name] is not None]
    return " and ".join(given) or None
