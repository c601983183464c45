"""Many runs of one method in one compiled program: seeds, step sizes, starts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ntkprefix.train.config import TrainConfig
from ntkprefix.train.loop import check_data
from ntkprefix.train.step import Loss, optimiser, own, population_step

# What a population's members may differ in; all else is compiled into their one program.
_OWN = ("learning_rate", "seed")


class PopulationResult(NamedTuple):
    """What training a population of P leaves.

    Attributes:
        params: trained parameters, every array with a leading axis P.
        losses: loss of every step, before the step, [P, steps]; not finite from where a member diverged.
        seconds: time in steps of the whole population, the first (which compiles) left out.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, train_population
        >>> loss = lambda w, _, x: jnp.mean((w - x) ** 2)
        >>> starts, configs = [jnp.zeros(()), jnp.asarray(jnp.inf)], [TrainConfig(epochs=2, batch_size=4)] * 2
        >>> result = train_population(loss, starts, None, (np.ones(8, np.float32),), configs)
        >>> result.losses.shape, result.diverged.tolist(), bool(result.member(0) > 0)
        ((2, 4), [False, True], True)
    """

    params: PyTree
    losses: Float[np.ndarray, "P steps"]
    seconds: float

    @property
    def diverged(self) -> np.ndarray:
        """Whether each member met a loss that is not finite, [P]."""
        return ~np.isfinite(self.losses).all(axis=1)

    def member(self, index: int) -> PyTree:
        """The parameters of one member."""
        return jax.tree.map(lambda leaf: leaf[index], self.params)


def train_population(
    loss: Loss,
    params: Sequence[PyTree],
    frozen: PyTree,
    data: Sequence[np.ndarray],
    configs: Sequence[TrainConfig],
    *,
    factors: Sequence[PyTree] | None = None,
    project: Callable[[PyTree], PyTree] | None = None,
    on_step: Callable[[int, Any], Any] | None = None,
) -> PopulationResult:
    """`train`, for P sets of parameters at once that share one frozen model.

    The frozen weights are read once per step for all members, so an accelerator that one small adapter leaves idle is
    filled. Each member takes the steps that `train` takes alone, on its own order of the data; one that diverges takes
    no other with it.

    Args:
        loss: as for `train`.
        params: a start for every member, of one structure.
        frozen: as for `train`.
        data: as for `train`; all members train on it.
        configs: one for every member; they differ in `learning_rate` and `seed` alone.
        factors: as for `train`, one for every member; 1 for all if None.
        project: as for `train`.
        on_step: called after every step with the number of steps done and the losses, [P].

    Returns:
        Parameters, losses and seconds.

    Raises:
        ValueError: no members, another number of configurations than starts, configurations that differ in more than
            they may, patience (a population has no early stopping), or data as for `train`.

    Example:
        >>> import dataclasses
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, train_population
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> loss = lambda w, _, x, y: jnp.mean((w * x - y) ** 2)
        >>> configs = [TrainConfig(epochs=50, learning_rate=rate) for rate in (0.1, 0.001)]
        >>> result = train_population(loss, [jnp.zeros(())] * 2, None, (x, 3 * x), configs)
        >>> [round(float(w), 1) for w in result.params]
        [3.0, 0.1]
    """
    rows = check_data(data)
    config = _common(configs, len(params))
    factors = [1.0] * len(params) if factors is None else factors
    members = _stacked(params)
    transformation = optimiser(config.weight_decay, config.clip)
    states = jax.vmap(transformation.init)(members)
    step_sizes = np.stack([each.step_sizes(rows) for each in configs], axis=1)
    losses, began = [], time.perf_counter()
    orders = zip(*(each.batches(data) for each in configs), strict=True)
    for number, batches in enumerate(orders, start=1):
        batch = tuple(np.stack(arrays) for arrays in zip(*batches, strict=True))
        members, states, told = population_step(
            loss,
            transformation,
            project,
            config.micro_batches,
            members,
            states,
            frozen,
            step_sizes[number - 1],
            _stacked(factors),
            batch,
        )
        losses.append(np.asarray(told.loss))
        if number == 1:
            began = time.perf_counter()
        if on_step is not None:
            on_step(number, losses[-1])
    return PopulationResult(members, np.stack(losses, axis=1), time.perf_counter() - began)


def _common(configs: Sequence[TrainConfig], members: int) -> TrainConfig:
    if not members or len(configs) != members:
        raise ValueError(
            f"train_population: expected a configuration for each of {members} members, got {len(configs)}."
        )
    if configs[0].patience:
        raise ValueError("train_population: expected no patience, got some: members cannot stop apart.")
    for config in configs[1:]:
        for field in dataclasses.fields(TrainConfig):
            first, other = getattr(configs[0], field.name), getattr(config, field.name)
            if field.name not in _OWN and first != other:
                raise ValueError(
                    f"train_population: expected configurations that differ in {' and '.join(_OWN)} alone, got "
                    f"{field.name} {first} and {other}. Train them as two populations."
                )
    return configs[0]


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack([own(leaf) for leaf in leaves]), *trees)
