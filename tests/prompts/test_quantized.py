"""Rows of numbers in 8 bits and in 4: how far off they are, and that twice is as once."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.prompts.quantized import dequantize, quantize


@pytest.mark.parametrize("largest", [1e6, 1.0, 0.02, 1e-3, 1e-4, 1e-5, 1e-7, 0.0])
def test_rows_of_any_size_in_eight_bits(largest):
    """Scales are float16, which has steps of 6e-8 at the smallest: they are rounded up, and nothing is cut off."""
    random = np.random.default_rng(0)
    rows = random.uniform(-1, 1, (200, 16))
    rows = jnp.asarray(largest * rows / np.abs(rows).max(axis=1, keepdims=True), jnp.float32)
    small = quantize(rows, "int8")
    assert small.numbers.dtype == jnp.int8
    off = np.abs(np.asarray(dequantize(small), float) - np.asarray(rows, float)).max()
    assert off <= largest / 253.7 + 3.1e-8
    again = quantize(dequantize(small), "int8")
    if largest > 0.01:
        np.testing.assert_array_equal(again.numbers, small.numbers)
        np.testing.assert_array_equal(again.scales, small.scales)


def by_hand(size):
    """Sylvester's construction, entry by entry: the parity of the bits that two indices share."""
    return np.array([[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]) / np.sqrt(size)


@pytest.mark.parametrize(("width", "size"), [(64, 64), (16, 16), (80, 16), (6, 2), (512, 256)])
@pytest.mark.parametrize("largest", [1e4, 1.0, 0.01, 1e-4, 1e-6, 0.0])
def test_rows_of_any_size_in_four_bits(largest, width, size):
    """After its rotation, a number is off by half a step, a fifteenth of its row's range, and by float16's rounding."""
    random = np.random.default_rng(0)
    rows = random.uniform(-1, 1, (50, width))
    rows[:, 1] *= 20  # a channel as those of keys are
    rows = jnp.asarray(largest * rows / np.abs(rows).max(axis=1, keepdims=True), jnp.float32)
    small = quantize(rows, "int4")
    assert small.numbers.dtype == jnp.uint8
    assert small.numbers.shape == (50, width // 2)
    turn = np.kron(np.eye(width // size), by_hand(size))
    wanted, found = (np.asarray(each, float) @ turn for each in (rows, dequantize(small)))
    steps = (wanted.max(axis=1) - wanted.min(axis=1)) / 15
    most = steps / 2 * 1.002 + np.abs(wanted).max(axis=1) * 2**-10 + 6e-8
    assert (np.abs(found - wanted) <= most[:, None]).all()
    integers = np.concatenate([small.numbers & 15, small.numbers >> 4], axis=1)
    scales, lows = (np.asarray(each, float)[:, None] for each in (small.scales, small.lows))
    np.testing.assert_allclose(found, integers * scales + lows, atol=2e-6 * largest)
    again = quantize(dequantize(small), "int4")
    if largest >= 0.01:
        for one, other in zip(again, small, strict=True):
            np.testing.assert_array_equal(one, other)


def test_turning_saves_the_small_channels():
    """Of rows with one large channel, four bits leave others nothing, but for the turn."""
    rows = np.random.default_rng(0).normal(size=(100, 64))
    rows[:, 3] += 60
    small = np.asarray(dequantize(quantize(jnp.asarray(rows, jnp.float32), "int4")))
    step = np.ptp(rows, axis=1, keepdims=True) / 15
    low = rows.min(axis=1, keepdims=True)
    plain = low + step * np.rint((rows - low) / step)
    assert np.abs(small - rows).mean() < 0.5 * np.abs(plain - rows).mean()
