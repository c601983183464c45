"""What one call of attention is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.checks.describe import described, is_int, is_integer, shapes


def arrays(query: Any, key: Any, value: Any) -> None:
    """Query, key and value of one attention call, before a missing batch axis is added.

    Raises:
        TypeError: not arrays of floating-point numbers, or not all of one dtype.
        ValueError: wrong rank, or sizes that do not match.
    """
    named = {"query": query, "key": key, "value": value}
    for name, array in named.items():
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            found = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"attention: expected {name} to be an array of floating-point numbers, got {found}.")
        if array.ndim not in (3, 4):
            raise ValueError(f"attention: expected {name} [B, T, N, H] or [T, N, H], got shape {array.shape}.")
    if len({array.dtype for array in named.values()}) > 1:
        found = ", ".join(f"{name} {array.dtype}" for name, array in named.items())
        raise TypeError(f"attention: expected one dtype for query, key and value, got {found}. Cast with `astype`.")
    if len({array.ndim for array in named.values()}) > 1 or len({a.shape[:-3] for a in named.values()}) > 1:
        raise ValueError(f"attention: expected one batch size B, got {shapes(named)}.")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention: expected key [.., S, K, H] and value [.., S, K, Hv], got {shapes(named)}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: expected one head width H of query and key, got {shapes(named)}.")
    if query.shape[-1] == 0:
        raise ValueError(f"attention: expected a head width H of at least 1, got {shapes(named)}.")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"attention: expected the {query.shape[-2]} query heads N to be a multiple of the {key.shape[-2]} "
            f"key-value heads K."
        )


def array_like(name: str, value: Any) -> jax.Array:
    """An argument that may be an array, a number, or nested lists of them.

    Raises:
        TypeError: something else.
    """
    unlike = f"attention: expected {name} to be an array, got {described(value)}."
    # NumPy would read a text as the name of a dtype: "f" is one, and "a" one that it warns of.
    if isinstance(value, str | bytes):
        raise TypeError(unlike)
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(unlike) from error


def over_logits(name: str, array: Any, batch: int, heads: int, queries: int, keys: int) -> None:
    """A mask or bias, already of rank 4, over [B, N, T, S].

    Raises:
        TypeError: a mask that is not boolean, a bias that is not floating point.
        ValueError: a shape that does not broadcast to [B, N, T, S].
    """
    if name == "mask" and array.dtype != bool:
        raise TypeError(f"attention: expected a boolean mask (True = visible), got {array.dtype}. Use `bias` to add.")
    if name == "bias" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"attention: expected a floating-point bias, got {array.dtype}. Use `mask` for booleans.")
    full = (batch, heads, queries, keys)
    if array.ndim != 4 or any(size not in (1, whole) for size, whole in zip(array.shape, full, strict=True)):
        raise ValueError(
            f"attention: expected a {name} that broadcasts to [B, N, T, S] = {list(full)}, got shape {array.shape}."
        )


def lengths(name: str, array: Any, batch: int) -> None:
    """Sequence lengths, one per row.

    Raises:
        TypeError: not integers.
        ValueError: not of shape [B].
    """
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"attention: expected integer {name}, got {array.dtype}.")
    if array.shape != (batch,):
        raise ValueError(f"attention: expected {name} of shape [B] = [{batch}], got {array.shape}.")


def offset(query_offset: Any, batch: int) -> None:
    """Position of the first query.

    Raises:
        TypeError: not an integer.
        ValueError: neither a scalar nor of shape [B].
    """
    if not is_integer(query_offset):
        raise TypeError(f"attention: expected an integer query_offset, got {described(query_offset)}.")
    shape = jnp.shape(query_offset)
    if shape not in ((), (batch,)):
        raise ValueError(f"attention: expected query_offset to be a scalar or [B] = [{batch}], got shape {shape}.")
    if not isinstance(query_offset, jax.core.Tracer) and np.any(np.abs(np.asarray(query_offset, float)) >= 2**31):
        raise ValueError(f"attention: expected a query_offset within 32 bits, got {query_offset}.")


def flag(name: str, value: Any) -> None:
    """An option that is on or off, and known when compiling.

    Raises:
        TypeError: not a bool.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"attention: expected {name} to be True or False, got {described(value)}.")


def window(local_window_size: Any) -> tuple[int, int] | None:
    """The window as (left, right).

    Raises:
        TypeError: not an int or a pair of ints.
        ValueError: a negative side.
    """
    if local_window_size is None:
        return None
    pair = tuple(local_window_size) if isinstance(local_window_size, (tuple, list)) else (local_window_size,) * 2
    if len(pair) != 2 or not all(is_int(side) for side in pair):
        raise TypeError(f"attention: expected local_window_size as int or (left, right), got {local_window_size!r}.")
    if min(pair) < 0:
        raise ValueError(f"attention: expected window sides of at least 0, got {pair}.")
    return int(pair[0]), int(pair[1])


def implementation(name: str | None, known: Sequence[str]) -> None:
    """The name of an implementation; None for the best there is.

    Raises:
        ValueError: an unknown name.
    """
    if name is not None and not (isinstance(name, str) and name in known):
        names = ", ".join(repr(one) for one in known)
        raise ValueError(f"attention: unknown implementation {name!r}; expected None (the best there is) or {names}.")


def prefix(prefix: Any, query: Any, key: Any, value: Any) -> None:
    """A prefix, and each of its parts if it has some, against the attention it enters; all arrays with a batch axis.

    Raises:
        TypeError: not a prefix.
        ValueError: sizes that do not match, or, with JAX's `jax_debug_nans` on, NaN in it.
    """
    kind = type(prefix).__name__
    if isinstance(prefix, type) or not (hasattr(prefix, "partial") and hasattr(prefix, "shape")):
        raise TypeError(f"attention: expected a prefix (TokenPrefix, FeaturePrefix, MeasurePrefix, ...), got {kind}.")
    shape = prefix.shape()
    parts = getattr(prefix, "parts", None)
    if parts is None:
        _fits(kind, shape, query, key, value)
    else:
        for part in parts:
            _fits(type(part).__name__, part.shape(), query, key, value)
    if jax.config.jax_debug_nans:
        _no_nan(kind, prefix)


def _fits(kind: str, shape: Any, query: Any, key: Any, value: Any) -> None:
    rows, heads, width, value_width, per_query_head = shape
    batch, _, query_heads, query_width = query.shape
    kv_heads = key.shape[2]
    if rows not in (None, batch):
        raise ValueError(f"attention: expected one {kind} per row of the batch, B = {batch}, got {rows}.")
    allowed = {kv_heads, query_heads} if per_query_head else {kv_heads}
    if heads not in allowed:
        raise ValueError(
            f"attention: expected a {kind} with {' or '.join(str(n) for n in sorted(allowed))} heads "
            f"(key-value heads K = {kv_heads}, query heads N = {query_heads}), got {heads}."
        )
    if width not in (None, query_width):
        raise ValueError(f"attention: expected a {kind} of head width H = {query_width}, got {width}.")
    if value_width != value.shape[-1]:
        raise ValueError(f"attention: expected a {kind} of value width Hv = {value.shape[-1]}, got {value_width}.")


def _no_nan(kind: str, prefix: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(prefix):
        if not isinstance(leaf, jax.core.Tracer) and np.isnan(np.asarray(leaf, np.float32)).any():
            raise ValueError(f"attention: NaN in {kind}{jax.tree_util.keystr(path)}. Was the training step too large?")
