"""Options by name, numbers in range, feature maps."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ntkprefix.checks.describe import described, is_int, is_integer, is_real

# ImageNet-21k has 21,841. A head has a column per class, so a label out of a damaged file would fill the memory.
MOST_CLASSES = 30_000


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


def at_most(most: int, kind: str, **counts: int) -> None:
    """Counts beyond which nothing comes to an end.

    Raises:
        ValueError: above `most`.
    """
    for name, count in counts.items():
        if count > most:
            raise ValueError(f"{kind}: expected {name} of at most {most:,}, got {count:,}.")


def characters(where: str, text: str) -> None:
    """A text whose letters can all be written: halves of letters, which JSON can spell and bytes become, cannot.

    Raises:
        ValueError: there is such a half; the message says where.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: expected text, got {text[error.start]!r} as its letter {error.start + 1:,}, which is no "
            "character. Is it UTF-8?"
        ) from error


def finite(kind: str, *, least: float = -math.inf, **numbers: Any) -> None:
    """Numbers that an option takes.

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinity, what is infinite in float32, or below `least`.
    """
    for name, number in numbers.items():
        if not is_real(number) or jnp.ndim(number):
            raise TypeError(f"{kind}: expected a number as {name}, got {described(number)}.")
        if not (_is_finite(number) and number >= least):
            wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
            more = ", more than float32 holds" if -math.inf < number < math.inf and not _is_finite(number) else ""
            raise ValueError(f"{kind}: expected {wanted} as {name}, got {number}{more}.")


def _is_finite(number: Any) -> bool:
    try:
        return abs(float(number)) <= float(jnp.finfo(jnp.float32).max)
    except OverflowError:  # an integer that no float is as large as
        return False


def yes_or_no(kind: str, **flags: Any) -> None:
    """Options that are on or off.

    Raises:
        TypeError: not a bool.
    """
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{kind}: expected True or False as {name}, got {described(flag)}.")


def one_of(kind: str, name: str, value: Any, known: Sequence[str]) -> None:
    """An option among names.

    Raises:
        ValueError: another name.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{kind}: unknown {name} {value!r}; expected one of {', '.join(known)}.")


def non_negative(function: str, **numbers: float) -> None:
    """Radii, degrees and bounds.

    Raises:
        TypeError: not one real number.
        ValueError: a negative number or NaN.
    """
    for name, number in numbers.items():
        if not is_real(number) or jnp.ndim(number):
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
    if radius > sys.float_info.max:
        raise ValueError(f"taylor_degree: expected a finite radius, got {radius}.")
    if tolerance == 0:
        raise ValueError(f"taylor_degree: expected a tolerance above 0, got {tolerance}.")


def feature_options(name: str, options: Mapping[str, Any], expected: Mapping[str, tuple[str, ...]]) -> None:
    """The name of a feature map and its options.

    Raises:
        ValueError: an unknown name, a missing or an unknown option.
    """
    if not isinstance(name, str) or name not in expected:
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
    missing = [name for name in ("positive", "nonnegative") if not hasattr(feature_map, name)]
    if missing:
        raise TypeError(f"{kind}: expected a feature map that says whether it is {missing[0]}, got {feature_map!r}.")


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
        TypeError: something else, several, or a traced one: the features are constants of the compiled program.
    """
    if isinstance(key, jax.core.Tracer):
        raise TypeError(
            "feature_map('favor'): expected a key that is known when compiling, got a traced one. Make the feature map "
            "outside the jitted function."
        )
    one = getattr(key, "shape", None) == ((2,) if getattr(key, "dtype", None) == jnp.uint32 else ())
    if not one or not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32):
        raise TypeError(f"feature_map('favor'): expected one random key, jax.random.key(0), got {described(key)}.")


def not_too_many_directions(features: int, most: int) -> None:
    """The size of a random feature map.

    Raises:
        ValueError: above `most`.
    """
    if features > most:
        raise ValueError(f"feature_map('favor'): expected at most {most:,} features, got {features:,}.")


def seed(kind: str, numbers: Any) -> None:
    """What a random generator starts from.

    Raises:
        TypeError: no tuple of integers.
        ValueError: none, or negative ones.
    """
    if not isinstance(numbers, tuple) or not all(map(is_int, numbers)):
        raise TypeError(f"{kind}: expected a tuple of integers as seed, got {numbers!r}.")
    if not numbers or min(numbers) < 0:
        raise ValueError(f"{kind}: expected integers of at least 0 as seed, got {numbers!r}.")


def short_seed(kind: str, number: Any) -> None:
    """A seed that NumPy and JAX both take, whatever the width of JAX's integers.

    Raises:
        TypeError: not an integer.
        ValueError: below 0, or more than 32 bits.
    """
    at_least(0, kind, seed=number)
    if number >= 2**32:
        raise ValueError(f"{kind}: expected a seed below 2^32, got {number}.")


def random_seed(kind: str, number: Any) -> None:
    """What JAX makes a random key from; a traced integer will do.

    Raises:
        TypeError: not one integer.
        ValueError: more than 64 bits.
    """
    if not is_integer(number) or jnp.ndim(number):
        raise TypeError(f"{kind}: expected an integer as seed, got {described(number)}.")
    if is_int(number) and not -(2**63) <= number < 2**63:
        raise ValueError(f"{kind}: expected a seed within 64 bits, got {number}.")


def not_too_many_features(degree: int, width: int, size: int, most: int) -> None:
    """The size of a Taylor feature map.

    Raises:
        ValueError: above `most`, or above 16 times as many factors in all.
    """
    name = f"feature_map('taylor', degree={degree})"
    if size > most:
        raise ValueError(
            f"{name} has {_readable(size)} features at head width {width}; expected at most {most:,}. Use a lower "
            "degree."
        )
    if size * degree > 16 * most:
        raise ValueError(
            f"{name} has {size:,} features of {degree} factors each at head width {width}; expected at most "
            f"{16 * most:,} factors in all. Use a lower degree."
        )


def _readable(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"10^{math.log10(number):.0f}"
