"""Fingerprints: the same for the same numbers, wherever they lie, and others for others."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.fingerprints import of_data, of_model

NUMBERS = np.arange(6, dtype=np.int32).reshape(2, 3)
OTHER = {
    "a number": NUMBERS + (NUMBERS == 4),
    "their order": NUMBERS[::-1],
    "their shape": NUMBERS.reshape(3, 2),
    "their type": NUMBERS.view(np.uint32),
    "none": NUMBERS[:0],
}


@pytest.mark.parametrize("case", OTHER)
def test_other_data(case):
    assert of_data((NUMBERS, OTHER[case])) != of_data((NUMBERS, NUMBERS))


def test_data_are_the_same_however_they_lie_in_memory():
    assert of_data([np.asfortranarray(NUMBERS), NUMBERS[:0]]) == of_data([NUMBERS, NUMBERS[:0].copy()])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_one_number_of_a_model(dtype):
    weights = {"a": jnp.arange(100, dtype=dtype), "b": jnp.ones(3, dtype)}
    other = {**weights, "b": jnp.array([1, 1, 2], dtype)}
    assert of_model("x", weights) == of_model("x", {name: leaf + 0 for name, leaf in weights.items()})
    assert len({of_model("x", weights), of_model("x", other), of_model("y", weights)}) == 3
