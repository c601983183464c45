"""Which query sees which key: one boolean mask from every option that hides keys."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

_LARGEST = 2**31 - 1


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
    rows = jnp.arange(queries)[None, None, None, :, None]
    columns = jnp.arange(keys)[None, None, None, None, :]
    if is_causal or local_window_size is not None:
        # Compared with the offset, and never added to it: positions near 2^31 would overflow.
        ahead, offset = columns - rows, _over_batch(query_offset)
        if is_causal:
            parts.append(ahead <= offset)
        if local_window_size is not None:
            left, right = local_window_size
            # A side of 2^31 - 1 or more stands for "all".
            if left < _LARGEST:
                parts.append(ahead >= offset - jnp.minimum(left, _LARGEST + jnp.minimum(offset, 0)))
            if right < _LARGEST:
                parts.append(ahead <= offset + jnp.minimum(right, _LARGEST - jnp.maximum(offset, 0)))
    if query_seq_lengths is not None:
        parts.append(rows < _over_batch(query_seq_lengths))
    if key_value_seq_lengths is not None:
        parts.append(columns < _over_batch(key_value_seq_lengths))
    combined = None
    for part in parts:
        combined = part if combined is None else combined & part
    return combined


def _over_batch(numbers: int | Int[Array, "*B"]) -> Int[Array, "#B 1 1 1 1"]:
    return jnp.asarray(numbers).astype(jnp.int32).reshape(-1, 1, 1, 1, 1)
