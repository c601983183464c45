"""Options by name, numbers in range, feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntkprefix.checks.describe import described, is_int, is_real


def at_least(least: int, kind: str, **counts: Any) -> None:
    """Degrees and budgets: numbers of features, components, ranks.

    Raises:
        TypeError: not an integer.
        ValueError: below `least`.
    """
    for name, count in counts.items():
        if not is_int(count):
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


def non_negative(function: str, **numbers: float) -> None:
    """Radii, degrees and bounds.

    Raises:
        TypeError: not one real number.
        ValueError: a negative number or NaN.
    """
    for name, number in numbers.items():
        if not is_real(number) or getattr(number, "ndim", 0):
            raise TypeError(f"{function}: expected a number as {name}, got {described(number)}.")
        if not number >= 0:
            raise ValueError(f"{function}: expected {name} >= 0, got {number}.")


def reachable(radius: float, tolerance: float) -> None:
    """What `taylor_degree` is asked for.

    Raises:
        TypeError: not real numbers.
        ValueError: a radius or tolerance for which there is no degree.
    """
    non_negative("taylor_degree", radius=radius, tolerance=tolerance)
    if math.isinf(radius):
        raise ValueError(f"taylor_degree: expected a finite radius, got {radius}.")
    if tolerance == 0:
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
        raise TypeError(f"{kind}: expected a feature map, such as feature_map('elu'), got {described(feature_map)}.")


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
        raise TypeError(f"feature_map('favor'): expected one random key, jax.random.key(0), got {described(key)}.")


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
