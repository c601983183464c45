"""One training step, as `ntkprefix.train` takes it, as a thing that can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ntkprefix.train import TrainConfig
from ntkprefix.train.step import optimiser, step


def training_step(
    task: Any, params: PyTree, batch: Sequence[np.ndarray], config: TrainConfig | None = None, factors: PyTree = 1.0
) -> Callable[[], None]:
    """What takes one step of AdamW behind a clip of the gradient's norm, always on one batch, and waits for it.

    Args:
        task: has the `loss`, the `frozen` weights and the `project` of a training.
        params: where it starts; they are copied.
        batch: rows.
        config: step size, weight decay and clip; the usual ones if None.
        factors: of the step size, as for `ntkprefix.train.train`.
    """
    config = config or TrainConfig()
    transformation = optimiser(config.weight_decay, config.clip)
    latest = [jax.tree.map(jnp.copy, (params, transformation.init(params)))]
    arrays, step_size = tuple(map(jnp.asarray, batch)), jnp.float32(config.learning_rate)

    def run() -> None:
        *after, told = step(
            task.loss, transformation, task.project, 1, *latest[0], task.frozen, step_size, factors, arrays
        )
        latest[0] = tuple(after)
        told.loss.block_until_ready()

    return run
