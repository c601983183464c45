"""The compiler's account of a training step's memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.train import TrainConfig, step_memory

WIDTH = 2000


def loss(params, _, x):
    return jnp.mean(jnp.sum(jnp.tanh(jnp.tanh(x[:, :, None] * params[None, None]) * params[None, None]), axis=1))


def memory(batch, micro_batches=1):
    x = np.ones((256, WIDTH), np.float32)
    return step_memory(loss, jnp.ones(10), None, (x,), TrainConfig(batch_size=batch, micro_batches=micro_batches))


def test_it_grows_with_the_batch_and_shrinks_with_its_parts():
    """An activation takes 4 bytes for each of the batch's rows, columns and parameters."""
    of_128, of_256, in_parts = memory(128), memory(256), memory(256, micro_batches=8)
    assert of_256 == pytest.approx(2 * of_128, rel=0.2)
    assert of_256 >= 4 * 256 * WIDTH
    assert in_parts < of_256 / 4


def test_nothing_is_run_and_nothing_given_away():
    params = jnp.ones(10)
    x = np.ones((256, WIDTH), np.float32)
    step_memory(loss, params, None, (x,), TrainConfig(batch_size=32))
    assert not params.is_deleted()
    assert isinstance(jax.device_get(params), np.ndarray)
