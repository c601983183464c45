"""In how many bits a prefix's numbers are stored: what that takes, and what it rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress import Matching, Method, Refined
from ntkprefix.compress.compress import method_of
from ntkprefix.compress.problem import Problem
from ntkprefix.prefixes import JoinedPrefix, TokenPrefix
from ntkprefix.prompts.quantized import BESIDE, Bits, dequantize, quantize

Dtype = Literal["float32", "float16", "int8", "int4"]

_BYTES: dict[str, float] = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.5}
# Of a log-weight, in all types, and of each of the numbers that stand beside a key's or value's integers.
_LOG_WEIGHT, _FLOAT16 = 4, 2


def integers(dtype: Dtype) -> Bits | None:
    """The type, where it is one of small integers."""
    return dtype if dtype in get_args(Bits) else None  # type: ignore[return-value]


def keeps_first(dtype: Dtype) -> bool:
    """Whether the first token of every head is stored in 16 bits as well, which are then what counts.

    Many heads rest on the prompt's first token where they look at nothing in particular. It is the first of what
    methods keep that take tokens in order, or those first that get most attention. What 4 bits make of its key changes
    how much is left for all others.
    """
    return dtype == "int4"


class Itemsizes(NamedTuple):
    """What sizes in bytes are counted in.

    Attributes:
        itemsize: bytes of a stored number, on average.
        prompt_itemsize: of one of the prompt's.
        per_head: bytes of every head beside its tokens: of its first one in 16 bits, where `keeps_first`.
    """

    itemsize: float
    prompt_itemsize: float
    per_head: float = 0.0


def itemsizes(dtype: Dtype, width: int) -> Itemsizes:
    """What sizes in bytes are counted in.

    A prefix is compared with a prompt that is stored as precisely, but in no less than the 16 bits in which models keep
    keys and values.

    Args:
        dtype: of a prefix's keys and values in a file; log-weights are float32 in all.
        width: H + Hv, numbers of a token.

    Returns:
        Of the numbers of weighted tokens, of the prompt's, and of every head beside its tokens.

    Raises:
        ValueError: another dtype.

    Example:
        >>> from ntkprefix.prompts.precision import itemsizes
        >>> itemsizes("float32", 128)
        Itemsizes(itemsize=4.0, prompt_itemsize=4.0, per_head=0.0)
        >>> itemsizes("int8", 128).itemsize * 129  # 128 numbers, two scales of 2 bytes and a log-weight of 4
        136.0
        >>> itemsizes("int4", 128).itemsize * 129  # 128 numbers, two scales and two lows of 2 bytes and a log-weight
        76.0
        >>> itemsizes("int4", 128).per_head  # a head's first key and value once more, in 16 bits
        256.0
    """
    checks.one_of("compress_prompt", "dtype", dtype, get_args(Dtype))
    of_rows = 2 * _FLOAT16 * BESIDE.get(dtype, 0)
    stored = (width * _BYTES[dtype] + of_rows + _LOG_WEIGHT) / (width + 1)
    first = width * _BYTES["float16"] if keeps_first(dtype) else 0.0
    return Itemsizes(stored, max(_BYTES[dtype], _BYTES["float16"]), first)


def rounded(prefixes: Any, dtype: Dtype) -> Any:
    """Tokens as a file of small integers gives them back, and in other types as they are.

    Args:
        prefixes: of one layer or of all, [..., C, K, H].
        dtype: of the file's numbers.

    Returns:
        The same, in the same types in memory.

    Raises:
        TypeError: anything but tokens in int8 or int4.
        ValueError: tokens with an odd number of channels in int4.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts.precision import rounded
        >>> tokens = TokenPrefix(jnp.array([[[127.0, 0.6, -3.2]]]), jnp.ones((1, 1, 3)))
        >>> rounded(tokens, "int8").keys.ravel().tolist()
        [127.0, 1.0, -3.0]
    """
    bits = integers(dtype)
    if bits is None:
        return prefixes
    if isinstance(prefixes, JoinedPrefix):
        return JoinedPrefix(tuple(rounded(part, dtype) for part in prefixes.parts))
    only_tokens("compress_prompt", prefixes, dtype)

    def narrow(array: Array) -> Array:
        few = dequantize(quantize(array, bits))
        if keeps_first(dtype) and array.shape[-3]:
            few = jnp.where(_is_first(prefixes)[..., None], array.astype(jnp.float16).astype(few.dtype), few)
        return few.astype(array.dtype)

    return TokenPrefix(narrow(prefixes.keys), narrow(prefixes.values), prefixes.log_weights)


def _is_first(tokens: TokenPrefix) -> Bool[Array, "*layers C K"]:
    """Which are the first of their heads that weigh something, or the first ones where none does."""
    weights = tokens.log_weights
    firsts = 0 if weights is None else jnp.argmax(~jnp.isneginf(weights), axis=-2, keepdims=True)
    shape = tokens.keys.shape[:-1]
    return jax.lax.broadcasted_iota(int, shape, len(shape) - 2) == firsts


@cache
def rounding(dtype: Dtype) -> Callable[[Any], Any]:
    """`rounded` to a type: one function for each, so that what is compiled with it is compiled once."""
    return partial(rounded, dtype=dtype)


def only_tokens(function: str, prefix: Any, dtype: Dtype) -> None:
    """Sums over features and clouds need more than small integers.

    Raises:
        TypeError: anything but tokens.
    """
    if not isinstance(prefix, TokenPrefix):
        raise TypeError(
            f"{function}: expected tokens for dtype={dtype!r}, got a {type(prefix).__name__}. Take float16, or a "
            "method that makes tokens."
        )


def as_stored(method: str | Method, dtype: Dtype) -> str | Method:
    """A method whose prefixes are as a file gives them back; Matching and Refined are fitted to that.

    Raises:
        ValueError: no such method.
    """
    if integers(dtype) is None:
        return method
    method = method_of(method)
    if isinstance(method, (Matching, Refined)):
        method = replace(method, stored=rounding(dtype))
    return Rounded(method, dtype)


@dataclass(frozen=True)
class Rounded:
    """A method whose prefixes are rounded as a file will round them, so that its report is about that.

    Attributes:
        method: any that makes tokens.
        dtype: of the file's numbers.
    """

    method: Method
    dtype: Dtype

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
        return rounded(self.method(problem, numbers, key), self.dtype)
