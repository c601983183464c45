"""In how many bits a prefix's numbers are stored: what that takes, and what it rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress import Method
from ntkprefix.compress.compress import method_of
from ntkprefix.compress.problem import Problem
from ntkprefix.prefixes import JoinedPrefix, TokenPrefix

Dtype = Literal["float32", "float16", "int8"]

_BYTES: dict[str, float] = {"float32": 4.0, "float16": 2.0, "int8": 1.0}
# Of a log-weight, in all types, and of the scale of one token's key or value.
_LOG_WEIGHT, _SCALE = 4, 2
# Of int8: -128 is not used, so that both signs reach as far.
_MOST = 127
# Of a quotient in float32, with room.
_ROUNDING = 2.0**-20


class Itemsizes(NamedTuple):
    """What sizes in bytes are counted in.

    Attributes:
        itemsize: bytes of a stored number, on average.
        prompt_itemsize: of one of the prompt's.
    """

    itemsize: float
    prompt_itemsize: float


def itemsizes(dtype: Dtype, width: int) -> Itemsizes:
    """What sizes in bytes are counted in.

    A prefix is compared with a prompt that is stored as precisely, but in no less than the 16 bits in which models keep
    keys and values.

    Args:
        dtype: of a prefix's keys and values in a file; log-weights are float32 in all.
        width: H + Hv, numbers of a token.

    Returns:
        Of the numbers of weighted tokens, and of the prompt's.

    Raises:
        ValueError: another dtype.

    Example:
        >>> from ntkprefix.prompts.precision import itemsizes
        >>> itemsizes("float32", 128)
        Itemsizes(itemsize=4.0, prompt_itemsize=4.0)
        >>> itemsizes("int8", 128).itemsize * 129  # 128 numbers, two scales of 2 bytes and a log-weight of 4
        136.0
    """
    checks.one_of("compress_prompt", "dtype", dtype, get_args(Dtype))
    scales = 2 * _SCALE if dtype == "int8" else 0
    stored = (width * _BYTES[dtype] + scales + _LOG_WEIGHT) / (width + 1)
    return Itemsizes(stored, max(_BYTES[dtype], _BYTES["float16"]))


def narrow(array: Float[Array, "*rows H"]) -> tuple[Int8[Array, "*rows H"], Float[Array, " *rows"]]:
    r"""Every token's key or value in 8 bits, times a scale of its own, float16.

    $$ x \approx s\, n, \qquad s = \max_i |x_i| / 127, \qquad n_i = round(x_i / s) $$

    with s rounded up: off by s/2, at most a 253rd of the largest |x_i| where that is above 0.01, and by no more than
    3e-8 more where it is smaller.

    Returns:
        n and s.
    """
    largest = jnp.max(jnp.abs(array), axis=-1).astype(jnp.float32)
    scales = (largest / _MOST).astype(jnp.float16)
    # Up, so that nothing is cut off, and not where only the division was rounded: what was narrow stays as it is.
    below = scales.astype(jnp.float32) * (_MOST * (1 + _ROUNDING)) < largest
    scales = jnp.where(below, jnp.nextafter(scales, jnp.full_like(scales, jnp.inf)), scales)
    divisors = jnp.where(scales > 0, scales, 1).astype(array.dtype)[..., None]
    return jnp.clip(jnp.round(array / divisors), -_MOST, _MOST).astype(jnp.int8), scales


def widen(numbers: Any, scales: Any) -> Any:
    """What `narrow` made narrow, float32: of JAX's arrays, or of NumPy's."""
    return numbers.astype(np.float32) * scales.astype(np.float32)[..., None]


def rounded(prefixes: Any, dtype: Dtype) -> Any:
    """Tokens as a file of 8 bits gives them back, and of more bits as they are.

    Args:
        prefixes: of one layer or of all.
        dtype: of the file's numbers.

    Returns:
        The same, in the same types in memory.

    Raises:
        TypeError: anything but tokens in int8.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts.precision import rounded
        >>> tokens = TokenPrefix(jnp.array([[[127.0, 0.6, -3.2]]]), jnp.ones((1, 1, 3)))
        >>> rounded(tokens, "int8").keys.ravel().tolist()
        [127.0, 1.0, -3.0]
    """
    if dtype != "int8":
        return prefixes
    if isinstance(prefixes, JoinedPrefix):
        return JoinedPrefix(tuple(rounded(part, dtype) for part in prefixes.parts))
    only_tokens("compress_prompt", prefixes)
    keys, values = (widen(*narrow(array)).astype(array.dtype) for array in (prefixes.keys, prefixes.values))
    return TokenPrefix(keys, values, prefixes.log_weights)


def only_tokens(function: str, prefix: Any) -> None:
    """Sums over features and clouds need more than 8 bits.

    Raises:
        TypeError: anything but tokens.
    """
    if not isinstance(prefix, TokenPrefix):
        raise TypeError(
            f"{function}: expected tokens for dtype='int8', got a {type(prefix).__name__}. Take float16, or a method "
            "that makes tokens."
        )


def as_stored(method: str | Method, dtype: Dtype) -> str | Method:
    """A method whose prefixes are as a file gives them back.

    Raises:
        ValueError: no such method.
    """
    return Rounded(method_of(method)) if dtype == "int8" else method


@dataclass(frozen=True)
class Rounded:
    """A method whose prefixes are rounded to 8 bits as a file will round them, so that its report is about that.

    Attributes:
        method: any that makes tokens.
    """

    method: Method

    @property
    def needs_queries(self) -> bool:
        """As the method."""
        return self.method.needs_queries

    @property
    def takes_weights(self) -> bool:
        """As the method."""
        return getattr(self.method, "takes_weights", False)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> Any:
        """The method's prefix, rounded."""
        return rounded(self.method(problem, numbers, key), "int8")
