"""What a training step takes in memory, from the compiler, without running it; and what would fit."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ntkprefix.memory import device_bytes, out_of_memory
from ntkprefix.train.config import TrainConfig
from ntkprefix.train.step import Loss, optimiser, step


def step_memory(loss: Loss, params: PyTree, frozen: PyTree, data: Sequence[np.ndarray], config: TrainConfig) -> int:
    """Working memory of one training step: activations, gradients and whatever else lives for the step alone.

    Parameters, optimiser state, frozen weights and the batch come on top. It is a fact of the compiled program on this
    device, without a clock or a run.

    Args:
        loss: as for `train`.
        params: as for `train`.
        frozen: as for `train`.
        data: as for `train`.
        config: of which the batch size and its micro-batches count.

    Returns:
        Bytes.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, step_memory
        >>> x, loss = np.ones((64, 1000), np.float32), lambda w, _, x: jnp.mean(jnp.tanh(x @ w) ** 2)
        >>> whole, parts = (
        ...     step_memory(loss, jnp.ones((1000, 50)), None, (x,), TrainConfig(batch_size=64, micro_batches=n))
        ...     for n in (1, 8)
        ... )
        >>> whole > 0 and parts > 0
        True
    """
    transformation = optimiser(config.weight_decay, config.clip)
    batch = tuple(jax.ShapeDtypeStruct((config.batch_size, *array.shape[1:]), array.dtype) for array in data)
    state = jax.eval_shape(transformation.init, params)
    lowered = step.lower(
        loss, transformation, None, config.micro_batches, params, state, frozen, jnp.float32(1), 1.0, batch
    )
    return int(lowered.compile().memory_analysis().temp_size_in_bytes)


def what_would_fit(loss: Loss, params: PyTree, frozen: PyTree, data: Sequence[np.ndarray], config: TrainConfig) -> str:
    """After a step that ran out of memory: what it takes, and in how many micro-batches it takes less than there is.

    Args:
        loss: as for `train`.
        params: as for `train`; shapes are enough.
        frozen: as for `train`.
        data: as for `train`.
        config: of the step.

    Returns:
        Sentences for a message.

    Raises:
        jax.errors.JaxRuntimeError: the step cannot be compiled, and not for its memory.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    parts = [n for n in range(config.micro_batches, config.batch_size + 1) if config.batch_size % n == 0]

    @cache
    def working(index: int) -> float:
        try:
            return step_memory(loss, shapes, frozen, data, dataclasses.replace(config, micro_batches=parts[index]))
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
            return math.inf  # compilers for GPUs try parts of a program out

    # Adam keeps two numbers for each that trains, and the gradient is a third.
    kept = 4 * _bytes(params) + _bytes(frozen) + sum(config.batch_size * _bytes(array[:1]) for array in data)
    there = device_bytes()
    rows, device = f"{config.batch_size} rows", f"; the device has {_gb(there)}" if there else ""
    told = (
        f"A step of {rows} in {_counted(parts[0])} {_works(working(0))} beside {_gb(kept)} of weights, what trains and "
        f"data{device}."
    )
    # It did not fit, whatever the device has in all: other programs may have a part of it.
    room = min(there - kept if there else working(0) / 2, working(0) - 1)
    fits = bisect.bisect_left(range(len(parts)), True, key=lambda index: working(index) <= room)
    if fits == len(parts):
        return f"{told} Not even {_counted(parts[-1])} would fit: take a smaller model, shorter inputs, or remat=True."
    return f"{told} In {_counted(parts[fits])} it {_works(working(fits))}: set micro_batches={parts[fits]}."


def _works(bytes_: float) -> str:
    return f"works in {_gb(bytes_)}" if math.isfinite(bytes_) else "is too large to be compiled"


def _counted(parts: int) -> str:
    return f"{parts} micro-batch{'es' if parts > 1 else ''}"


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def _gb(count: float) -> str:
    return f"{count / 1e9:,.3g} GB"
