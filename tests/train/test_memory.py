"""The compiler's account of a training step's memory, and what is told when there is not enough."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.train import TrainConfig, step_memory, train
from ntkprefix.train import memory as memory_module

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


def greedy(params, _, x):
    """A gigabyte and more for every row: sorting needs all of it at once."""
    rows = x[:, None, None] * params[None, :, None] * jnp.ones((1, 1, 40_000))
    return jnp.mean(jax.lax.stop_gradient(jnp.sort(rows, axis=-1)) * params[None, :, None])


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the memory there is, is read from Linux")
def test_a_step_that_does_not_fit_says_what_would():
    x, params, config = np.ones(4096, np.float32), jnp.ones(5_000), TrainConfig(batch_size=4096, epochs=1)
    with pytest.raises(
        MemoryError, match=r"out of memory at step 1\. A step of 4096 rows in 1 micro-batch works"
    ) as told:
        train(greedy, params, None, (x,), config)
    parts = int(re.search(r"set micro_batches=(\d+)\.", str(told.value))[1])
    there = 1024 * int(re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())[1])
    fits, one_fewer = (
        step_memory(greedy, params, None, (x,), TrainConfig(batch_size=4096, micro_batches=n))
        for n in (parts, parts // 2)
    )
    assert fits < there < one_fewer


def test_a_step_that_is_too_large_to_be_compiled_does_not_fit(monkeypatch):
    """As a GPU's compiler ends that tries parts of the program out."""

    def step_memory(*arguments):
        if arguments[-1].micro_batches < 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Failed to get configs")
        return 2 * 10**9 // arguments[-1].micro_batches

    monkeypatch.setattr(memory_module, "step_memory", step_memory)
    told = memory_module.what_would_fit(loss, jnp.ones(10), None, (np.ones(64, np.float32),), TrainConfig())
    assert told.startswith(
        "A step of 16 rows in 1 micro-batch is too large to be compiled beside 2.24e-07 GB of weights"
    )
    assert told.endswith("In 8 micro-batches it works in 0.25 GB: set micro_batches=8.")


def test_where_not_even_a_row_fits_it_says_so():
    def loss(params, _, x):
        return greedy(jnp.tile(params, 10**4), None, x)

    with pytest.raises(MemoryError, match="Not even 2 micro-batches would fit: take a smaller model, shorter inputs"):
        train(loss, jnp.ones(1_000), None, (np.ones(2, np.float32),), TrainConfig(batch_size=2, epochs=1))


def test_other_errors_of_the_device_are_passed_on():
    def broken(params, _, x):
        jax.debug.callback(lambda: 1 / 0)
        return jnp.sum(params) + jnp.sum(x)

    with pytest.raises(jax.errors.JaxRuntimeError):
        train(broken, jnp.ones(10), None, (np.ones(32, np.float32),), TrainConfig())
