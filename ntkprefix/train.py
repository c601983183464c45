"""The training loop: one compiled step, data on the host, frozen weights shared and never copied."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ntkprefix import checks

# (params, frozen, *batch) -> mean loss of the batch
Loss = Callable[..., Float[Array, ""]]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the data.
        batch_size: rows per step; the last, smaller batch of an epoch is dropped.
        learning_rate: peak step size of AdamW; linear warm-up, then a cosine to zero.
        warmup: share of all steps that warm up.
        weight_decay: of AdamW.
        clip: largest global norm of a gradient.
        seed: of the order of the data.

    Raises:
        TypeError: a count that is not an integer.
        ValueError: a count below 1, a learning rate that is not above 0, a warm-up share outside 0..1.
    """

    epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 3e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        checks.at_least(1, "TrainConfig", epochs=self.epochs, batch_size=self.batch_size)
        if not self.learning_rate > 0:
            raise ValueError(f"TrainConfig: expected a learning_rate above 0, got {self.learning_rate}.")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"TrainConfig: expected a warmup share within 0..1, got {self.warmup}.")

    def steps(self, rows: int) -> int:
        """Number of steps on that many rows of data.

        Raises:
            ValueError: fewer rows than a batch.
        """
        if rows < self.batch_size:
            raise ValueError(f"train: expected at least one batch of {self.batch_size} rows of data, got {rows} rows.")
        return self.epochs * (rows // self.batch_size)

    def schedule(self, rows: int) -> np.ndarray:
        """Step size of every step on that many rows of data."""
        steps = self.steps(rows)
        schedule = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, round(self.warmup * steps), steps)
        return np.asarray(schedule(np.arange(1, steps + 1, dtype=np.float32)), np.float32)


class TrainResult(NamedTuple):
    """What training leaves.

    Attributes:
        params: trained parameters.
        losses: loss of every step, before the step.
        seconds: time in steps, the first (which compiles) left out.
    """

    params: PyTree
    losses: np.ndarray
    seconds: float


def train(
    loss: Loss,
    params: PyTree,
    frozen: PyTree,
    data: Sequence[np.ndarray],
    config: TrainConfig,
    *,
    factors: PyTree = 1.0,
    project: Callable[[PyTree], PyTree] | None = None,
    on_step: Callable[[int, float], Any] | None = None,
) -> TrainResult:
    """Minimise a loss over `params`.

    The step is compiled once, with the buffers of parameters and optimiser state donated. `frozen` is an argument of
    it, so the pretrained weights are neither copied nor compiled into the program.

    Args:
        loss: (params, frozen, *batch) -> mean loss.
        params: the trained pytree; its buffers are copied first, so the caller's stay valid.
        frozen: pytree handed to `loss` as it is.
        data: arrays with one leading axis of rows; a batch is the same rows of each.
        config: how to train.
        factors: of the step size, for parts of the parameters: a number for all, or a pytree of numbers whose leaves
            stand for whole branches of `params`, such as `{"adapter": 1.0, "head": 0.1}`. Others compile nothing new.
        project: maps parameters to the nearest allowed ones, after every step. Pass the same object each time, not a
            fresh lambda, or every call compiles again.
        on_step: called after every step with the number of steps done and the loss.

    Returns:
        Parameters, losses and seconds.

    Raises:
        ValueError: fewer rows than a batch, or arrays of different lengths.
        FloatingPointError: the loss is not finite; the message has the step.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, train
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> loss = lambda w, _, x, y: jnp.mean((w * x - y) ** 2)
        >>> result = train(loss, jnp.zeros(()), None, (x, 3 * x), TrainConfig(epochs=50, learning_rate=0.1))
        >>> round(float(result.params), 2)
        3.0
    """
    rows = len(data[0])
    if any(len(array) != rows for array in data):
        raise ValueError(f"train: expected arrays of one length, got {[len(array) for array in data]}.")
    optimiser = _optimiser(config.weight_decay, config.clip)
    step_sizes = config.schedule(rows)
    params = jax.tree.map(lambda leaf: jax.numpy.array(leaf, copy=True), params)
    state = optimiser.init(params)
    losses, began = [], time.perf_counter()
    for number, (step_size, batch) in enumerate(zip(step_sizes, _batches(data, config), strict=True), start=1):
        params, state, value = _step(loss, optimiser, project, params, state, frozen, step_size, factors, batch)
        losses.append(float(value))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(
                f"train: the loss is {losses[-1]} at step {number}. Try a smaller learning_rate than "
                f"{config.learning_rate}."
            )
        if number == 1:
            began = time.perf_counter()
        if on_step is not None:
            on_step(number, losses[-1])
    return TrainResult(params, np.asarray(losses), time.perf_counter() - began)


@lru_cache
def _optimiser(weight_decay: float, clip: float) -> optax.GradientTransformation:
    # The step size multiplies the updates in `_step`, as a number: another one does not compile another program.
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(1.0, weight_decay=weight_decay))


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(loss, optimiser, project, params, state, frozen, step_size, factors, batch):
    value, gradient = jax.value_and_grad(loss)(params, frozen, *batch)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers, which strict rules forbid
        updates, state = optimiser.update(gradient, state, params)
    scaled = jax.tree.map(lambda factor, branch: _times(step_size * factor, branch), factors, updates)
    params = optax.apply_updates(params, scaled)
    return params if project is None else project(params), state, value


def _times(factor, branch):
    return jax.tree.map(lambda leaf: factor * leaf, branch)


def _batches(data: Sequence[np.ndarray], config: TrainConfig) -> Iterator[tuple[np.ndarray, ...]]:
    random = np.random.default_rng(config.seed)
    rows = len(data[0])
    for _ in range(config.epochs):
        order = random.permutation(rows)
        for start in range(0, rows - config.batch_size + 1, config.batch_size):
            chosen = order[start : start + config.batch_size]
            yield tuple(array[chosen] for array in data)
