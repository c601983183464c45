"""The training loop: it learns, repeats itself, compiles once, and stops where it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntkprefix import train as train_module
from ntkprefix.train import TrainConfig, train

X = np.linspace(-1, 1, 40, dtype=np.float32)


def squares(params, slope, x, y):
    return jnp.mean((params["w"] * x * slope + params["b"] - y) ** 2)


START = {"w": jnp.zeros(()), "b": jnp.zeros(())}


def test_equals_a_plain_loop(relaxed):
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.05, seed=4)
    result = train(squares, START, 1.0, (X, 2 * X + 1), config)
    steps = 3 * 5
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, round(0.1 * steps), steps)
    # the loop's n-th update takes the schedule's value at n, not n - 1: no update is wasted on a step size of zero
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda n: schedule(n + 1), weight_decay=1e-4))
    params, state, losses = START, optimiser.init(START), []
    random = np.random.default_rng(4)
    for _ in range(3):
        order = random.permutation(40)
        for rows in order.reshape(5, 8):
            loss, gradient = jax.value_and_grad(squares)(params, 1.0, X[rows], (2 * X + 1)[rows])
            updates, state = optimiser.update(gradient, state, params)
            params, losses = optax.apply_updates(params, updates), [*losses, float(loss)]
    np.testing.assert_allclose(result.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(result.params["w"], params["w"], rtol=1e-4)


def test_factors_make_the_steps_of_a_branch_smaller():
    # Two steps, of which the schedule's last has size zero; the first of Adam is as large as the step size, whatever
    # the gradient.
    config = TrainConfig(epochs=1, batch_size=20, learning_rate=0.1)
    whole = train(squares, START, 1.0, (X, 2 * X + 1), config).params
    parts = train(squares, START, 1.0, (X, 2 * X + 1), config, factors={"w": 1.0, "b": 0.25}).params
    half = train(squares, START, 1.0, (X, 2 * X + 1), config, factors=0.5).params
    np.testing.assert_allclose([parts["w"], parts["b"]], [whole["w"], 0.25 * whole["b"]], rtol=1e-6)
    np.testing.assert_allclose([half["w"], half["b"]], [0.5 * whole["w"], 0.5 * whole["b"]], rtol=1e-6)
    assert whole["w"] > 0.04


def test_same_seed_same_bits_and_the_callers_parameters_live_on():
    config = TrainConfig(epochs=2, batch_size=8)
    first, second = (train(squares, START, 1.0, (X, X), config) for _ in range(2))
    np.testing.assert_array_equal(first.losses, second.losses)
    other = train(squares, START, 1.0, (X, X), TrainConfig(epochs=2, batch_size=8, seed=1))
    assert (first.losses != other.losses).any()
    assert START["w"] == 0


def test_another_step_size_does_not_compile_again():
    train(squares, START, 1.0, (X, X), TrainConfig(epochs=1, batch_size=8))
    compiled = train_module._step._cache_size()
    train(squares, START, 1.0, (X, X), TrainConfig(epochs=2, batch_size=8, learning_rate=0.5))
    assert train_module._step._cache_size() == compiled


def test_a_diverging_loss_stops_with_its_step():
    def explosive(params, _, x):
        return jnp.where(params["w"] == 0, 1.0 + params["w"], jnp.nan) + 0 * jnp.sum(x)

    with pytest.raises(FloatingPointError, match="loss is nan at step 2"):
        train(explosive, {"w": jnp.zeros(())}, None, (X,), TrainConfig(epochs=1, batch_size=8))


def _within_one(params):
    return jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), params)


def test_a_projection_ends_every_step():
    config = TrainConfig(epochs=20, batch_size=8, learning_rate=0.5)
    assert train(squares, START, 1.0, (X, 3 * X + 2), config).params["w"] > 2
    result = train(squares, START, 1.0, (X, 3 * X + 2), config, project=_within_one)
    assert float(result.params["w"]) == float(result.params["b"]) == 1.0


def test_progress_is_reported_every_step():
    seen = []
    train(squares, START, 1.0, (X, X), TrainConfig(batch_size=8, epochs=1), on_step=lambda *args: seen.append(args))
    assert [step for step, _ in seen] == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda: TrainConfig(epochs=0), ValueError, "epochs of at least 1, got 0"),
        (lambda: TrainConfig(batch_size=2.5), TypeError, "an integer batch_size, got float"),
        (lambda: TrainConfig(learning_rate=0.0), ValueError, "learning_rate above 0"),
        (lambda: TrainConfig(learning_rate=float("nan")), ValueError, "learning_rate above 0"),
        (lambda: TrainConfig(warmup=1.5), ValueError, "warmup share within 0..1"),
        (lambda: train(squares, START, 1.0, (X[:3], X[:3]), TrainConfig()), ValueError, "got 3 rows"),
        (lambda: train(squares, START, 1.0, (X, X[:3]), TrainConfig()), ValueError, r"one length, got \[40, 3\]"),
    ],
)
def test_errors(wrong, kind, message):
    with pytest.raises(kind, match=message):
        wrong()
