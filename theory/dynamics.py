"""Training the stylised model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from ntkprefix.checks import at_least
from theory import checks
from theory.model import stylized_model

# By name, for configurations. "sgd" differs from "gd" by the batches it is given, not by its update.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "gd": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "sgd": optax.sgd,
}


class Trajectory(NamedTuple):
    """What training leaves.

    Attributes:
        loss: 1/2 Σ_i ||F(x_i) - y_i||² at t = 0..steps, [steps + 1].
        movement: max_r ||w_r(t) - w_r(0)|| at t = 0..steps, [steps + 1].
        W: the trained prefix, [M, d].

    Example:
        >>> import jax
        >>> from theory import init_stylized, train
        >>> W, a = init_stylized(jax.random.key(0), M=64, d=2)
        >>> run = train(W, a, jax.numpy.eye(2), jax.numpy.eye(2), steps=20, step_size=0.02)
        >>> run.movement.shape, float(run.movement[0])
        ((21,), 0.0)
        >>> bool(jax.numpy.isclose(run.movement[-1], jax.numpy.linalg.norm(run.W - W, axis=1).max()))
        True
    """

    loss: Float[Array, " time"]
    movement: Float[Array, " time"]
    W: Float[Array, "M d"]


def train(
    W: Float[Array, "M d"],
    a: Float[Array, " M"],
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    *,
    steps: int,
    step_size: float | Float[Array, ""],
    optimizer: str | Callable[..., optax.GradientTransformation] = "gd",
    batch_size: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Trajectory:
    """Train the prefix on the loss 1/2 Σ_i ||F(W, a; x_i) - y_i||², by default with full-batch gradient descent.

    Args:
        W: prefix at the start, [M, d].
        a: signs, [M].
        x: inputs, [n, d].
        y: targets, [n, d].
        steps: number of updates.
        step_size: eta, above 0.
        optimizer: a name among `OPTIMIZERS`, or what makes an optax optimiser from a step size. Pass the same object
            each time, not a fresh lambda, or every call compiles again.
        batch_size: inputs per step, drawn without replacement; all when absent. Their gradient is scaled
            by n / batch_size.
        key: random key for the batches.

    Returns:
        Loss and movement at steps 0..steps, on all inputs, and the trained prefix.

    Raises:
        TypeError: an argument is not an array of floating-point numbers, their dtypes differ, `steps` or `batch_size`
            is not an integer, `step_size` is not a number, `key` is no random key, or `optimizer` is neither a name nor
            a function.
        ValueError: `batch_size` is given without a key or is not within 1..n, the optimiser's name is unknown, steps
            are negative, the step size is not positive and finite, the shapes do not belong together, or one is empty.

    Example:
        >>> import jax
        >>> from theory import init_stylized, train
        >>> W, a = init_stylized(jax.random.key(0), M=64, d=2)
        >>> x = jax.numpy.eye(2)
        >>> run = train(W, a, x, x, steps=20, step_size=0.02)
        >>> run.loss.shape, bool(run.loss[-1] < run.loss[0])
        ((21,), True)

    Source: arXiv 2406.14036, setting of the convergence theorem.
    """
    checks.prefix("train", W, a, x=x, y=y)
    checks.targets("train", x, y)
    at_least(0, "train", steps=steps)
    checks.positive("train", step_size=step_size)
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"train: expected an optimizer among {', '.join(OPTIMIZERS)}, got {optimizer!r}.")
        optimizer = OPTIMIZERS[optimizer]
    elif not callable(optimizer):
        raise TypeError(
            f"train: expected a name or what makes an optimizer from a step size, such as optax.adam, got "
            f"{type(optimizer).__name__}."
        )
    if key is not None:
        checks.random_key("train", key)
    if batch_size is not None:
        at_least(1, "train", batch_size=batch_size)
        if key is None or batch_size > len(x):
            raise ValueError(
                f"train: expected batch_size within 1..{len(x)} and a key, got {batch_size}, "
                f"key {'absent' if key is None else 'given'}."
            )
    # eta is an argument of the compiled function, so that a new step size compiles nothing.
    step_size = jnp.asarray(step_size, jnp.result_type(W))
    return _train(W, a, x, y, step_size, key, steps=steps, optimizer=optimizer, batch_size=batch_size)


@partial(jax.jit, static_argnames=("steps", "optimizer", "batch_size"))
def _train(W, a, x, y, step_size, key, *, steps, optimizer, batch_size):
    rule = optimizer(step_size)
    start = W

    def loss(W, x, y):
        return 0.5 * jnp.sum((stylized_model(W, a, x) - y) ** 2)

    def value_and_grad(W, index):
        if batch_size is None:
            return jax.value_and_grad(loss)(W, x, y)
        rows = jax.random.choice(jax.random.fold_in(key, index), x.shape[0], (batch_size,), replace=False)
        gradient = jax.grad(loss)(W, x[rows], y[rows])
        return loss(W, x, y), gradient * (x.shape[0] / batch_size)

    def step(carry, index):
        W, state = carry
        value, gradient = value_and_grad(W, index)
        # optax counts its steps in integers and relies on their promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = rule.update(gradient, state, W)
        return (W + updates, state), (value, _movement(W, start))

    (W, _), (losses, movements) = jax.lax.scan(step, (W, rule.init(W)), jnp.arange(steps))
    last = loss(W, x, y), _movement(W, start)
    return Trajectory(jnp.append(losses, last[0]), jnp.append(movements, last[1]), W)


def _movement(W, start):
    return jnp.sqrt(jnp.max(jnp.sum((W - start) ** 2, axis=1)))
