"""A population's members train as they would alone, in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.train import TrainConfig, train, train_population
from ntkprefix.train import step as step_module

X = np.linspace(-1, 1, 40, dtype=np.float32)
CONFIGS = [
    TrainConfig(epochs=2, batch_size=8, learning_rate=rate, seed=seed) for rate in (0.01, 0.1) for seed in (0, 1)
]
STARTS = [{"w": jnp.full((), float(index)), "b": jnp.zeros(2)} for index in range(4)]
FACTORS = [{"w": 1.0, "b": factor} for factor in (1.0, 0.5, 0.1, 0.0)]


def loss(params, slope, x):
    return jnp.mean((params["w"] * slope * x + params["b"][0] * x**2 + params["b"][1] - jnp.cos(2 * x)) ** 2)


def _clipped(params):
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -0.2, 2.0), params)


@pytest.mark.parametrize("project", [None, _clipped])
def test_every_member_trains_as_it_would_alone(project):
    options = {"project": project}
    together = train_population(loss, STARTS, 2.0, (X,), CONFIGS, factors=FACTORS, **options)
    assert together.losses.shape == (4, 10)
    for index, (start, config, factors) in enumerate(zip(STARTS, CONFIGS, FACTORS, strict=True)):
        alone = train(loss, start, 2.0, (X,), config, factors=factors, **options)
        np.testing.assert_allclose(together.losses[index], alone.losses, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together.member(index), alone.params
        )


def test_one_program_serves_all_populations_of_a_size(compiled):
    train_population(loss, STARTS, 2.0, (X,), CONFIGS)
    others = [TrainConfig(epochs=1, batch_size=8, learning_rate=0.3, seed=seed) for seed in range(4)]
    train_population(loss, STARTS, 1.0, (X,), others)
    assert compiled.count("population_step") == 1


def test_frozen_weights_are_shared_not_copied():
    frozen = jnp.ones((512, 512))

    def heavy(params, frozen, x):
        return jnp.mean((params["w"] * (frozen @ frozen)[0, 0] - x) ** 2)

    members = {"w": jnp.zeros(8)}
    transformation = step_module.optimiser(0.0, 1.0)
    state = jax.vmap(transformation.init)(members)
    arguments = (members, state, frozen, jnp.zeros(8), jnp.ones(8), (jnp.zeros((8, 4)),))
    memory = step_module.population_step.lower(heavy, transformation, None, 1, *arguments).compile().memory_analysis()
    assert memory.argument_size_in_bytes < 1.1 * frozen.nbytes
    assert memory.temp_size_in_bytes < 2.5 * frozen.nbytes


def test_one_that_diverges_takes_no_other_with_it():
    starts = [{"w": jnp.full((), value), "b": jnp.zeros(2)} for value in (0.0, np.nan)]
    result = train_population(loss, starts, 1.0, (X,), CONFIGS[:2])
    assert list(result.diverged) == [False, True]
    alone = train(loss, starts[0], 1.0, (X,), CONFIGS[0])
    np.testing.assert_allclose(result.losses[0], alone.losses, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("starts", "configs", "message"),
    [
        (STARTS[:2], CONFIGS[:1], "a configuration for each of 2 members, got 1"),
        ([], [], "for each of 0 members"),
        (STARTS[:1], [TrainConfig(patience=1)], "no patience"),
        (
            STARTS[:2],
            [TrainConfig(batch_size=8), TrainConfig(batch_size=4)],
            "differ in learning_rate and seed alone, got batch_size 8 and 4",
        ),
    ],
)
def test_errors(starts, configs, message):
    with pytest.raises(ValueError, match=message):
        train_population(loss, starts, 1.0, (X,), configs)
