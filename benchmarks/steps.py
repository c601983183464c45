"""One training step, as `ntkprefix.train` takes it, as a thing that can be timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ntkprefix.parallel import on_mesh, put_rest, put_rows
from ntkprefix.train import TrainConfig
from ntkprefix.train.step import optimiser, own, step, step_on_mesh


def training_step(
    task: Any,
    params: PyTree,
    batch: Sequence[np.ndarray],
    config: TrainConfig | None = None,
    factors: PyTree = 1.0,
    mesh: Mesh | None = None,
) -> Callable[[], None]:
    """What takes one step of AdamW behind a clip of the gradient's norm, always on one batch, and waits for it.

    Args:
        task: has the `loss`, the `frozen` weights and the `project` of a training.
        params: where it starts; they are copied.
        batch: rows.
        config: step size, weight decay and clip; the usual ones if None.
        factors: of the step size, as for `ntkprefix.train.train`.
        mesh: of the devices that the parameters lie on, if they are shared out, as for `ntkprefix.train.train`.
    """
    config = config or TrainConfig()
    transformation = optimiser(config.weight_decay, config.clip)
    latest = [jax.tree.map(own, (params, transformation.init(params)))]
    frozen, step_size = task.frozen, jnp.float32(config.learning_rate)
    if mesh is None:
        take, arrays = step, tuple(map(jnp.asarray, batch))
    else:
        latest, frozen = put_rest((latest, frozen), mesh)
        take, arrays = step_on_mesh(*latest[0]), put_rows(batch, mesh)

    def run() -> None:
        static = task.loss, transformation, task.project, 1
        with on_mesh(mesh):
            *after, told = take(*static, *latest[0], frozen, step_size, factors, arrays)
        latest[0] = tuple(after)
        told.loss.block_until_ready()

    return run
