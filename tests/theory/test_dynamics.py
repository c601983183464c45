import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as oracle
import optax
import pytest

from theory import OPTIMIZERS, as_matrix, infinite, infinite_ntk, init_stylized, make_data, predict_infinite, train
from theory.dynamics import _train


@pytest.fixture(scope="module")
def problem():
    data = make_data(5, 3, 4, seed=1)
    return (*init_stylized(jax.random.key(0), 12, 3), data.x, data.y)


def test_equals_a_numpy_descent(problem, x64):
    W, a, x, y = (jnp.asarray(np.asarray(array, np.float64)) for array in problem)
    run = train(W, a, x, y, steps=25, step_size=0.05)
    losses, trained = oracle.descend(W, a, x, y, 25, 0.05)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-10)
    np.testing.assert_allclose(run.W, trained, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(run.movement[-1], np.linalg.norm(trained - W, axis=1).max(), rtol=1e-9)
    assert run.movement[0] == 0


def test_momentum_by_hand(problem, x64):
    W, a, x, y = (np.asarray(array, np.float64) for array in problem)
    arrays = [jnp.asarray(array) for array in (W, a, x, y)]
    run = train(*arrays, steps=6, step_size=0.03, optimizer=OPTIMIZERS["momentum"])
    velocity = np.zeros_like(W)
    for _ in range(6):
        gradient = np.einsum("ik,ikrm->rm", oracle.model(W, a, x) - y, oracle.jacobian(W, a, x))
        velocity = 0.9 * velocity + gradient
        W = W - 0.03 * velocity
    np.testing.assert_allclose(run.W, W, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(problem, name):
    batch = {"batch_size": 3, "key": jax.random.key(3)} if name == "sgd" else {}
    run = train(*problem, steps=60, step_size=0.02, optimizer=OPTIMIZERS[name], **batch)
    assert run.loss[-1] < 0.8 * run.loss[0]


def test_batches_of_everything_are_gradient_descent(problem):
    plain = train(*problem, steps=10, step_size=0.02)
    batched = train(*problem, steps=10, step_size=0.02, batch_size=5, key=jax.random.key(3))
    np.testing.assert_allclose(batched.loss, plain.loss, rtol=1e-4)


def test_a_new_step_size_compiles_nothing(problem, compiled):
    train(*problem, steps=7, step_size=0.02)
    train(*problem, steps=7, step_size=0.03, optimizer=optax.sgd)
    assert compiled.count("_train") == 1


def kernel_spectrum(x, **options):
    matrix = np.asarray(as_matrix(infinite_ntk(x, **options)), np.float64)
    return matrix, np.linalg.eigvalsh(matrix)


# Above 1 the outputs overshoot; below it neural_tangents computes them.
@pytest.mark.parametrize("fraction", [0.3, 1.0, 1.4, 1.95])
def test_infinite_prefix_equals_the_recursion(fraction):
    x, y, x_test = make_data(6, 4, 5)
    H, spectrum = kernel_spectrum(x, sigma=0.8)
    step_size = fraction / spectrum[-1]
    prediction = predict_infinite(x, y, x_test, steps=40, step_size=step_size, sigma=0.8)
    cross = np.asarray(as_matrix(infinite_ntk(x_test, x, sigma=0.8)), np.float64)
    targets, dual = np.asarray(y, np.float64).ravel(), np.zeros(y.size)
    for t in range(41):
        np.testing.assert_allclose(np.ravel(prediction.train[t]), H @ dual, atol=2e-5)
        np.testing.assert_allclose(np.ravel(prediction.test[t]), cross @ dual, atol=2e-5)
        dual = dual - step_size * (H @ dual - targets)


@pytest.mark.parametrize("fraction", [0.2, 0.9, 1.0])
def test_two_ways_to_the_infinite_prefix_agree(fraction, x64):
    """neural_tangents' flow with another kernel, and powers of H*'s eigenvalues."""
    x, y, x_test = make_data(6, 4, 5)
    spectrum = infinite._spectrum(infinite_ntk(x, sigma=0.8))
    options = infinite_ntk(x_test, x, sigma=0.8), y, 60, fraction / spectrum.values[-1]
    for flow, powers in zip(
        infinite._descent_as_flow(spectrum, *options), infinite._descent(spectrum, *options), strict=True
    ):
        np.testing.assert_allclose(flow, powers, rtol=1e-6, atol=1e-9)


def test_infinite_prefix_without_held_out_inputs():
    x, y, x_test = make_data(6, 4, 5)
    for step_size in (0.01, 1.5 / kernel_spectrum(x)[1][-1]):
        alone = predict_infinite(x, y, steps=5, step_size=step_size)
        assert alone.test is None
        np.testing.assert_array_equal(alone.train, predict_infinite(x, y, x_test, steps=5, step_size=step_size).train)


def test_converged_infinite_prefix_is_kernel_regression():
    x, y, x_test = make_data(6, 4, 5)
    covariance = jnp.diag(jnp.array([0.5, 0.6, 0.7, 0.8]))
    H, _ = kernel_spectrum(x, covariance=covariance)
    cross = np.asarray(as_matrix(infinite_ntk(x_test, x, covariance=covariance)), np.float64)
    prediction = predict_infinite(x, y, x_test, steps=None, covariance=covariance)
    expected = cross @ np.linalg.solve(H, np.asarray(y, np.float64).ravel())
    np.testing.assert_allclose(np.ravel(prediction.test), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(prediction.train, y, rtol=1e-5)


def test_step_sizes_at_which_descent_diverges_are_refused():
    x, y, _ = make_data(6, 4, 5)
    for step_size in (10.0, 2.01 / kernel_spectrum(x)[1][-1], 0.0, float("nan"), None):
        with pytest.raises(ValueError, match=r"expected a step_size within \(0, 2/lambda_max"):
            predict_infinite(x, y, steps=3, step_size=step_size)


def test_repeated_inputs_are_refused():
    x, y, _ = make_data(6, 4, 5)
    with pytest.raises(ValueError, match="pairwise distinct"):
        predict_infinite(x.at[0].set(x[1]), y, steps=3, step_size=0.01)


def test_loss_ladder_approaches_the_infinite_prefix():
    """As in the first run on record: 2.41, 1.02, 0.64, 0.333, 0.281 at M = 2^6..2^14, then 0.267 (other data)."""
    x, y, _ = make_data(16, 8, 1, target_scale=8**0.5)
    step_size = float(1 / kernel_spectrum(x)[1][-1])
    limit = predict_infinite(x, y, steps=100, step_size=step_size).train[-1]
    limit = 0.5 * float(jnp.sum((limit - y) ** 2))

    def final_loss(M, seed):
        return train(*init_stylized(jax.random.key(seed), M, 8), x, y, steps=100, step_size=step_size).loss[-1]

    losses = [np.median([final_loss(M, seed) for seed in range(3)]) for M in (2**6, 2**10, 2**14)]
    distance = np.abs(np.array(losses) - limit) / limit
    assert distance[-1] < 0.2, (losses, limit)
    assert distance[-1] < distance[1] < distance[0], (losses, limit)
    assert losses[0] > 2 * limit


def test_works_under_vmap(problem):
    W, a, x, y = problem
    together = jax.vmap(functools.partial(train, steps=5, step_size=0.05), in_axes=(0, None, None, None))(
        jnp.stack([W, 2 * W]), a, x, y
    )
    np.testing.assert_allclose(together.loss[0], train(W, a, x, y, steps=5, step_size=0.05).loss, rtol=1e-4)


def test_optimisers_go_by_name_too():
    W, a, x, y = (jnp.ones((4, 2)), jnp.array([1.0, 1.0, -1.0, -1.0]), jnp.eye(2), jnp.eye(2))
    named, made = (train(W, a, x, y, steps=3, step_size=0.1, optimizer=o) for o in ("adam", optax.adam))
    np.testing.assert_array_equal(named.W, made.W)


def test_training_a_million_tokens_takes_a_few_copies_of_them_and_no_logits():
    M, d, n = 2**20, 8, 16
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((M, d), (M,), (n, d), (n, d), ())]
    program = _train.lower(*shapes, None, steps=10, optimizer=OPTIMIZERS["gd"], batch_size=None).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * (4 * M * d)
