"""Every complaint about input, in one place: what was expected, what came, what to do.

`TypeError` for types and dtypes, `ValueError` for shapes and options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.kernels import DEFAULT, IMPLEMENTATIONS


def arrays(query: Any, key: Any, value: Any) -> None:
    """Query, key and value of one attention call, before a missing batch axis is added.

    Raises:
        TypeError: not floating point, or not all of one dtype.
        ValueError: wrong rank, or sizes that do not match.
    """
    named = {"query": query, "key": key, "value": value}
    for name, array in named.items():
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"attention: expected a floating-point {name}, got {array.dtype}.")
        if array.ndim not in (3, 4):
            raise ValueError(f"attention: expected {name} [B, T, N, H] or [T, N, H], got shape {array.shape}.")
    if len({array.dtype for array in named.values()}) > 1:
        found = ", ".join(f"{name} {array.dtype}" for name, array in named.items())
        raise TypeError(f"attention: expected one dtype for query, key and value, got {found}. Cast with `astype`.")
    if len({array.ndim for array in named.values()}) > 1 or len({a.shape[:-3] for a in named.values()}) > 1:
        raise ValueError(f"attention: expected one batch size B, got {_shapes(named)}.")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention: expected key [.., S, K, H] and value [.., S, K, Hv], got {_shapes(named)}.")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"attention: expected one head width H of query and key, got {_shapes(named)}.")
    if query.shape[-1] == 0:
        raise ValueError(f"attention: expected a head width H of at least 1, got {_shapes(named)}.")
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"attention: expected the {query.shape[-2]} query heads N to be a multiple of the {key.shape[-2]} "
            f"key-value heads K."
        )


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
    if not _is_integer(query_offset):
        raise TypeError(f"attention: expected an integer query_offset, got {_described(query_offset)}.")
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
        raise TypeError(f"attention: expected {name} to be True or False, got {_described(value)}.")


def window(local_window_size: Any) -> tuple[int, int] | None:
    """The window as (left, right).

    Raises:
        TypeError: not an int or a pair of ints.
        ValueError: a negative side.
    """
    if local_window_size is None:
        return None
    pair = tuple(local_window_size) if isinstance(local_window_size, (tuple, list)) else (local_window_size,) * 2
    if len(pair) != 2 or not all(_is_int(side) for side in pair):
        raise TypeError(f"attention: expected local_window_size as int or (left, right), got {local_window_size!r}.")
    if min(pair) < 0:
        raise ValueError(f"attention: expected window sides of at least 0, got {pair}.")
    return int(pair[0]), int(pair[1])


def implementation(name: str | None) -> str:
    """The implementation to run.

    Raises:
        ValueError: an unknown name.
    """
    if name is None:
        return DEFAULT
    if not isinstance(name, str) or name not in IMPLEMENTATIONS:
        known = ", ".join(repr(known) for known in IMPLEMENTATIONS)
        raise ValueError(f"attention: unknown implementation {name!r}; expected None (the best there is) or {known}.")
    return name


def prefix(prefix: Any, query: Any, key: Any, value: Any) -> None:
    """A prefix against the attention it enters; all arrays with a batch axis.

    Raises:
        TypeError: not a prefix.
        ValueError: sizes that do not match, or, with JAX's `jax_debug_nans` on, NaN in it.
    """
    kind = type(prefix).__name__
    if isinstance(prefix, type) or not (hasattr(prefix, "partial") and hasattr(prefix, "shape")):
        raise TypeError(f"attention: expected a prefix (TokenPrefix, FeaturePrefix, MeasurePrefix, ...), got {kind}.")
    rows, heads, width, value_width, per_query_head = prefix.shape()
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
    if jax.config.jax_debug_nans:
        _no_nan(kind, prefix)


def fit_together(kind: str, axes: Mapping[str, str], named: Mapping[str, Any]) -> None:
    """Arrays of one object: every axis letter has one size, and all have a leading B axis or none.

    Args:
        kind: name for the message.
        axes: axis letters per array, as in `"M K H"`.
        named: the arrays; None is skipped.

    Raises:
        TypeError: something that is not an array of floating-point numbers.
        ValueError: a wrong rank, or sizes that differ.
    """
    sizes: dict[str, int] = {}
    present = {name: array for name, array in named.items() if array is not None}
    for name, array in present.items():
        if not hasattr(array, "dtype") or not jnp.issubdtype(array.dtype, jnp.floating):
            found = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{kind}: expected {name} to be an array of floating-point numbers, got {found}.")
    wanted = ", ".join(f"{name} [{axes[name].replace(' ', ', ')}]" for name in present)
    for name, array in present.items():
        letters = axes[name].split()
        if array.ndim == len(letters) + 1:
            letters = ["B", *letters]
        elif array.ndim != len(letters):
            raise ValueError(f"{kind}: expected {wanted} (each with a leading B or none), got {_shapes(present)}.")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{kind}: expected one size of axis {letter} in {wanted}, got {_shapes(present)}.")
    ranks = {array.ndim - len(axes[name].split()) for name, array in present.items()}
    if len(ranks) > 1:
        raise ValueError(f"{kind}: expected a leading B axis on every array or on none, got {_shapes(present)}.")


def scale(function: str, scale: Any, width: int) -> Any:
    """The logit scale beta, 1/sqrt(H) if None.

    Raises:
        TypeError: not a real number.
        ValueError: an array that is not a scalar, NaN or infinity.
    """
    if scale is None:
        return width**-0.5
    if not _is_real(scale):
        raise TypeError(f"{function}: expected a number as scale, got {_described(scale)}.")
    if jnp.shape(scale) != ():
        raise ValueError(f"{function}: expected a scalar scale, got shape {jnp.shape(scale)}.")
    if not isinstance(scale, jax.core.Tracer) and not math.isfinite(float(scale)):
        raise ValueError(f"{function}: expected a finite scale, got {scale}.")
    return scale


def positive_scale(beta: Any, width: int) -> Any:
    """The logit scale beta of a feature state, 1/sqrt(H) if None.

    Raises:
        TypeError: not a real number.
        ValueError: not a scalar, not finite, or not above 0: features need its square root.
    """
    beta = scale("FeaturePrefix", beta, width)
    if not isinstance(beta, jax.core.Tracer) and not beta > 0:
        raise ValueError(f"FeaturePrefix: expected a scale above 0, got {beta}.")
    return beta


def known_scale(scale: Any) -> float | None:
    """The scale as a number for a state to remember; None where it is traced."""
    return None if isinstance(scale, jax.core.Tracer) else float(scale)


def scale_of_state(built: float | None, scale: Any) -> None:
    """The scale that a state meets against the one that it was built with, as far as both are known.

    Raises:
        ValueError: they differ by more than float32's rounding.
    """
    met = known_scale(scale)
    if built is not None and met is not None and not math.isclose(built, met, rel_tol=1e-6):
        raise ValueError(
            f"FeaturePrefix: expected scale {built:.7g}, which the state was built with, got {met:.7g}. Build the "
            f"state with `from_tokens(..., scale={met:.7g})`."
        )


def feature_count(feature_map: Any, width: int, found: int) -> None:
    """A state's feature count against its map's.

    Raises:
        ValueError: they differ.
    """
    expected = feature_map.size(width)
    if expected != found:
        raise ValueError(
            f"FeaturePrefix: expected R = {expected} features ({feature_map} at head width {width}), got {found}."
        )


def addable(a: Any, b: Any) -> None:
    """Two feature states whose sums are over the same features.

    Raises:
        TypeError: the second is no feature state.
        ValueError: other feature maps, shapes, scales or centres.
    """
    if type(b) is not type(a):
        raise TypeError(f"{type(a).__name__}: can add or subtract only its own kind, got {type(b).__name__}.")
    if a.feature_map != b.feature_map:
        raise ValueError(f"FeaturePrefix: expected one feature map, got {a.feature_map} and {b.feature_map}.")
    if a.Z.shape != b.Z.shape:
        raise ValueError(f"FeaturePrefix: expected states of one shape, got Z {a.Z.shape} and {b.Z.shape}.")
    if b.scale is not None:
        scale_of_state(a.scale, b.scale)
    if (a.centre is None) != (b.centre is None) or _known_to_differ(a.centre, b.centre):
        raise ValueError(
            "FeaturePrefix: states recentred on different points cannot be added. Build the second with "
            "`from_tokens(..., centre=first.centre)`, or use `first.append(keys, values)`."
        )


def at_least(least: int, kind: str, **counts: Any) -> None:
    """Degrees and budgets: numbers of features, components, ranks.

    Raises:
        TypeError: not an integer.
        ValueError: below `least`.
    """
    for name, count in counts.items():
        if not _is_int(count):
            raise TypeError(f"{kind}: expected an integer {name}, got {type(count).__name__}.")
        if count < least:
            raise ValueError(f"{kind}: expected {name} of at least {least}, got {count}.")


def one_of(kind: str, name: str, value: Any, known: Sequence[str]) -> None:
    """An option among names.

    Raises:
        ValueError: another name.
    """
    if value not in known:
        raise ValueError(f"{kind}: unknown {name} {value!r}; expected one of {', '.join(known)}.")


def rank_fits(rank: int, width: int) -> None:
    """The rank of a covariance.

    Raises:
        ValueError: above the width.
    """
    if rank > width:
        raise ValueError(f"MeasurePrefix: expected a rank of at most the head width H = {width}, got {rank}.")


def non_negative(function: str, **numbers: float) -> None:
    """Radii, degrees and bounds.

    Raises:
        ValueError: a negative number or NaN.
    """
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{function}: expected {name} >= 0, got {number}.")


def reachable(radius: float, tolerance: float) -> None:
    """What `taylor_degree` is asked for.

    Raises:
        ValueError: a radius or tolerance for which there is no degree.
    """
    non_negative("taylor_degree", radius=radius)
    if math.isinf(radius):
        raise ValueError(f"taylor_degree: expected a finite radius, got {radius}.")
    if not tolerance > 0:
        raise ValueError(f"taylor_degree: expected a tolerance above 0, got {tolerance}.")


def feature_options(name: str, options: Mapping[str, Any], expected: Mapping[str, tuple[str, ...]]) -> None:
    """The name of a feature map and its options.

    Raises:
        ValueError: an unknown name, a missing or an unknown option.
    """
    if name not in expected:
        raise ValueError(f"feature_map: unknown name {name!r}; expected one of {', '.join(expected)}.")
    if set(options) != set(expected[name]):
        wanted = ", ".join(expected[name]) or "no options"
        raise ValueError(f"feature_map({name!r}): expected {wanted}; got {', '.join(options) or 'no options'}.")


def is_feature_map(kind: str, feature_map: Any) -> None:
    """What features come from.

    Raises:
        TypeError: not a feature map; a name of one, perhaps.
    """
    if isinstance(feature_map, type) or not (callable(feature_map) and hasattr(feature_map, "size")):
        raise TypeError(f"{kind}: expected a feature map, such as feature_map('elu'), got {_described(feature_map)}.")


def nonnegative_features(kind: str, feature_map: Any) -> None:
    """A feature map under which k >= 0 keeps the denominator from vanishing.

    Raises:
        ValueError: its features can be negative.
    """
    if not feature_map.nonnegative:
        raise ValueError(
            f"{kind}: expected a feature map whose features are never negative, got {feature_map}: k >= 0 would not "
            f"keep the denominator positive. Use feature_map('elu') or feature_map('favor', ...)."
        )


def one_random_key(key: Any) -> None:
    """A JAX random key.

    Raises:
        TypeError: something else, or several.
    """
    one = getattr(key, "shape", None) == ((2,) if getattr(key, "dtype", None) == jnp.uint32 else ())
    if not one or not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32):
        raise TypeError(f"feature_map('favor'): expected one random key, jax.random.key(0), got {_described(key)}.")


def not_too_many_features(degree: int, width: int, size: int, most: int) -> None:
    """The size of a Taylor feature map.

    Raises:
        ValueError: above `most`.
    """
    if size > most:
        raise ValueError(
            f"feature_map('taylor', degree={degree}) has {size:,} features at head width {width}; expected at most "
            f"{most:,}. Use a lower degree."
        )


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def _is_integer(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.integer) if hasattr(x, "dtype") else _is_int(x)


def _is_real(x: Any) -> bool:
    return _is_integer(x) or (jnp.issubdtype(x.dtype, jnp.floating) if hasattr(x, "dtype") else isinstance(x, float))


def _described(x: Any) -> str:
    return f"an array of {x.dtype}" if hasattr(x, "dtype") else repr(x)


def _known_to_differ(a: Any, b: Any) -> bool:
    if a is None or a is b or isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    return not np.array_equal(np.asarray(a), np.asarray(b))


def _no_nan(kind: str, prefix: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(prefix):
        if not isinstance(leaf, jax.core.Tracer) and np.isnan(np.asarray(leaf, np.float32)).any():
            raise ValueError(f"attention: NaN in {kind}{jax.tree_util.keystr(path)}. Was the training step too large?")


def _shapes(named: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in named.items())
