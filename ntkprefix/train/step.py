"""One step of AdamW, compiled: gradient by micro-batches, clipped, scaled, projected."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from ntkprefix.faults import watched
from ntkprefix.parallel import rows_over_data

# (params, frozen, *batch) -> the mean loss of the batch; or (sum, weight), whose quotient is the mean over all that
# counts in the batch however it is cut into micro-batches: the tokens that are labelled, for example.
Loss = Callable[..., Float[Array, ""] | tuple[Float[Array, ""], Float[Array, ""]]]


class Told(NamedTuple):
    """What a step tells.

    Attributes:
        loss: before the step.
        norm: of the gradient.
        slopes: for every parameter, where along its first axis the gradient is not finite.
        faults: of the models that the loss runs, as of `ntkprefix.faults.watched`.
    """

    loss: Float[Array, ""]
    norm: Float[Array, ""]
    slopes: PyTree
    faults: list[Float[Array, "layers rows"]]


@lru_cache
def optimiser(weight_decay: float, clip: float) -> optax.GradientTransformation:
    """AdamW of step size 1 behind a clip of the gradient's norm.

    The step size multiplies its updates in `update`, as a number: another one compiles no other program.
    """
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(1.0, weight_decay=weight_decay))


def update(
    loss: Loss,
    transformation: optax.GradientTransformation,
    project: Callable[[PyTree], PyTree] | None,
    micro_batches: int,
    params: PyTree,
    state: PyTree,
    frozen: PyTree,
    step_size: Float[Array, ""],
    factors: PyTree,
    batch: tuple[Array, ...],
) -> tuple[PyTree, PyTree, Told]:
    """One step: parameters and optimiser state after it, and what it tells."""
    value, gradient, faults = _value_and_gradient(loss, micro_batches, params, frozen, batch)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers, which strict rules forbid
        norm = optax.tree.norm(gradient)  # the clip computes it too, so that it costs nothing
        updates, state = transformation.update(gradient, state, params)
    slopes = jax.tree.map(lambda leaf: ~jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim))), gradient)
    scaled = jax.tree.map(lambda factor, branch: _times(step_size * factor, branch), factors, updates)
    params = optax.apply_updates(params, scaled)
    return params if project is None else project(params), state, Told(value, norm, slopes, faults)


def own(leaf: Any) -> jax.Array:
    """A copy to donate, of strict type: a step makes strict what is weak, and the next would compile once more."""
    return jnp.array(leaf, jnp.result_type(leaf))


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5))
def step(*arguments: Any) -> Any:
    """`update`, compiled once, with the buffers of parameters and optimiser state donated."""
    return update(*arguments)


def step_on_mesh(params: PyTree, state: PyTree) -> Callable[..., Any]:
    """`step`, after which these parameters and this optimiser state lie where they lie now: XLA may prefer others."""
    leaves, structure = jax.tree.flatten((params, state))
    return _step_into(structure, tuple(leaf.sharding for leaf in leaves))


@lru_cache(maxsize=16)
def _step_into(structure: Any, shardings: tuple[Any, ...]) -> Callable[..., Any]:
    out = (*jax.tree.unflatten(structure, shardings), None)
    return jax.jit(update, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5), out_shardings=out)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(4, 5))
def population_step(loss, transformation, project, micro_batches, params, state, frozen, step_sizes, factors, batch):
    """`update` of every member of a population in one program; frozen weights and factors are shared."""
    one = partial(update, loss, transformation, project, micro_batches)
    return jax.vmap(one, in_axes=(0, 0, None, 0, 0, 0))(params, state, frozen, step_sizes, factors, batch)


def _value_and_gradient(loss, micro_batches, params, frozen, batch):
    def weighted(params, *rows):
        with watched() as faults:
            found = loss(params, frozen, *rows)
        total, weight = found if isinstance(found, tuple) else (found, jnp.ones_like(found))
        return total, (weight, faults)

    of_part = jax.value_and_grad(weighted, has_aux=True)
    if micro_batches == 1:
        (total, (weight, faults)), gradient = of_part(params, *batch)
    else:
        parts = jax.tree.map(
            lambda array: rows_over_data(array.reshape(micro_batches, -1, *array.shape[1:]), axis=1), batch
        )

        def add(sums, part):
            return jax.tree.map(jnp.add, sums, of_part(params, *part)), None

        shapes = jax.eval_shape(of_part, params, *jax.tree.map(lambda array: array[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        ((total, (weight, faults)), gradient), _ = jax.lax.scan(add, zeros, parts)
    # A batch without anything that counts changes nothing, rather than everything to NaN.
    share = 1 / jnp.where(weight == 0, 1, weight)
    return total * share, _times(share, gradient), faults


def _times(factor, branch):
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, branch)
