"""Rows of numbers in 8 bits or in 4: small integers, and for each row what they are multiples of."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int8, UInt8
from scipy.linalg import hadamard

Bits = Literal["int8", "int4"]
# Numbers stored beside a row's integers, in float16.
BESIDE: dict[str, int] = {"int8": 1, "int4": 2}
# Of int8: -128 is not used, so that both signs reach as far.
_MOST = 127
_STEPS = 15
# Channels of one Hadamard matrix.
_BLOCK = 256
# Of a quotient in float32, with room.
_ROUNDING = 2.0**-20


class Quantized(NamedTuple):
    """Integers, and what makes numbers of them.

    Attributes:
        numbers: int8 [..., H], or uint8 [..., H / 2]: of the first half of a row in the low four bits, of the second in
            the high ones.
        scales: of each row, float16.
        lows: likewise; the smallest number of a row in 4 bits.
    """

    numbers: Int8[Array, "*rows H"] | UInt8[Array, "*rows half"]
    scales: Float16[Array, " *rows"]
    lows: Float16[Array, " *rows"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what they stand for."""
        *rows, stored = self.numbers.shape
        return *rows, stored if self.lows is None else 2 * stored


def quantize(array: Float[Array, "*rows H"], bits: Bits) -> Quantized:
    r"""Every row, such as a token's key or value, in 8 bits or in 4.

    In 8 bits, $x \approx s\,n$ with $s = \max_i |x_i| / 127$: off by s/2, at most a 253rd of the largest |x_i| where
    that is above 0.01, and by no more than 3e-8 more where it is smaller.

    In 4 bits, $R x \approx a + s\,n$ with $a = \min_i (R x)_i$ and $s = (\max_i (R x)_i - a)/15$, where R is
    block-diagonal of Hadamard matrices over the root of their size. A few channels of a model's keys are many times as
    large as the others, and would leave those no steps; R spreads them over all, and is its own inverse.

    Args:
        array: rows; of an even number of channels in 4 bits.
        bits: how many.

    Returns:
        Integers, and float16 beside them. Scales are rounded up, so that no number is cut off by more than float16's
        rounding of a.

    Raises:
        ValueError: an odd number of channels in 4 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.prompts.quantized import dequantize, quantize
        >>> row = jnp.array([1.0, -2.0, 50.0, 0.0])
        >>> dequantize(quantize(row, "int4")).round(1).tolist()
        [1.0, -3.5, 48.5, 0.0]

    Source: rotations that spread large channels, QuaRot (arXiv 2404.00456).
    """
    if bits == "int8":
        scales = _scales(jnp.max(jnp.abs(array), axis=-1), _MOST)
        numbers = jnp.clip(_quotients(array, scales), -_MOST, _MOST)
        return Quantized(numbers.astype(jnp.int8), scales)
    if array.shape[-1] % 2:
        raise ValueError(f"dtype='int4': expected an even number of channels, got {array.shape[-1]}. Take int8.")
    found = turned(array)
    smallest = jnp.min(found, axis=-1)
    scales = _scales(jnp.max(found, axis=-1) - smallest, _STEPS)
    lows = smallest.astype(jnp.float16)
    above = found - lows.astype(array.dtype)[..., None]
    numbers = jnp.clip(_quotients(above, scales), 0, _STEPS).astype(jnp.uint8)
    first, second = jnp.split(numbers, 2, axis=-1)
    return Quantized(first | (second << 4), scales, lows)


def dequantize(of: Quantized) -> Float[Array, "*rows H"]:
    """What `quantize` made narrow, float32."""
    return turned(as_turned(of)) if is_turned(of) else as_turned(of)


def is_turned(of: Any) -> bool:
    """Whether rows are kept turned by R."""
    return isinstance(of, Quantized) and of.lows is not None


def as_turned(of: Any) -> Float[Array, "*rows H"]:
    """The rows as they are kept, float32: R x where they are turned, whose product with R q is that of x and q."""
    if not isinstance(of, Quantized):
        return of.astype(jnp.float32)
    scales = of.scales.astype(jnp.float32)[..., None]
    if of.lows is None:
        return of.numbers.astype(jnp.float32) * scales
    # One shift for each half, which a loop over numbers does; halves that are put together would have to be made first.
    shifts = jnp.array([0, 4], jnp.uint8).reshape(*[1] * (of.numbers.ndim - 1), 2, 1)
    numbers = ((of.numbers[..., None, :] >> shifts) & _STEPS).reshape(of.shape)
    return numbers.astype(jnp.float32) * scales + of.lows.astype(jnp.float32)[..., None]


def _scales(largest: Float[Array, " *rows"], steps: int) -> Float16[Array, " *rows"]:
    largest = largest.astype(jnp.float32)
    scales = (largest / steps).astype(jnp.float16)
    # Up, so that nothing is cut off, and not where only the division was rounded: what was narrow stays as it is.
    below = scales.astype(jnp.float32) * (steps * (1 + _ROUNDING)) < largest
    return jnp.where(below, jnp.nextafter(scales, jnp.full_like(scales, jnp.inf)), scales)


def _quotients(array: Float[Array, "*rows H"], scales: Float16[Array, " *rows"]) -> Float[Array, "*rows H"]:
    divisors = jnp.where(scales > 0, scales, 1).astype(array.dtype)[..., None]
    return jnp.round(array / divisors)


def turned(array: Float[Array, "*rows H"]) -> Float[Array, "*rows H"]:
    """R x of every row: Hadamard matrices of the largest power of two that divides H, up to 256, block by block."""
    channels = array.shape[-1]
    size = math.gcd(channels, _BLOCK)
    blocks = array.reshape(*array.shape[:-1], channels // size, size)
    matrix = jnp.asarray(hadamard(size) * np.sqrt(1 / size), array.dtype)
    return jnp.matmul(blocks, matrix, precision="highest").reshape(array.shape)
