"""What a training step takes in memory, from the compiler, without running it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

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
