"""The kernel of any model against neural_tangents', and linearised training against the linearised model's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix import FeaturePrefix, TokenPrefix, attention
from theory import linearised, model_ntk, neural_tangents_compat, predict_linearised

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape)


KEY, VALUE, HEAD = normal(1, 4, 2, 3), normal(1, 4, 2, 5), normal(10, 4)
TOKENS = {"keys": normal(7, 2, 3), "values": normal(7, 2, 5)}
STATE = {"Z": normal(2, 3, 5), "k": np.abs(normal(2, 3))}
QUERY, OTHER = normal(5, 3, 2, 3), normal(3, 3, 2, 3)


def of_tokens(params, query):
    return read(TokenPrefix(**params), query)


def of_state(params, query):
    return read(FeaturePrefix(**params), query)


def read(prefix, query):
    """Four outputs per row of one attention layer behind a prefix."""
    key, value, head = (jnp.asarray(array, query.dtype) for array in (KEY, VALUE, HEAD))
    rows = len(query)
    attended = attention(query, *(jnp.repeat(array, rows, axis=0) for array in (key, value)), prefix=prefix)
    return jnp.tanh(attended).mean(axis=1).reshape(rows, -1) @ head


CASES = {"tokens": (of_tokens, TOKENS), "state": (of_state, STATE)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory", [1, 20_000, 2**28])
@pytest.mark.parametrize("other", [None, OTHER])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_equals_neural_tangents(name, memory, other, dtype, tolerance, x64):
    outputs, params = CASES[name]
    params = jax.tree.map(lambda array: jnp.asarray(array, dtype), params)
    X1 = jnp.asarray(QUERY, dtype)
    X2 = None if other is None else jnp.asarray(other, dtype)
    expected = neural_tangents_compat.empirical_ntk_fn(outputs)(X1, X2, params)
    found = model_ntk(outputs, params, X1, X2, memory=memory)
    assert found.dtype == dtype
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)


def test_inputs_may_be_several_arrays():
    def outputs(params, x):
        return x["scale"][:, None] * (x["rows"] @ params)

    x = {"rows": jnp.asarray(normal(4, 3), jnp.float32), "scale": jnp.arange(1.0, 5.0)}
    kernel = model_ntk(outputs, jnp.ones((3, 2)), x, memory=1)
    scaled = np.asarray(x["rows"] * x["scale"][:, None], np.float64)
    expected = np.einsum("ij,kl->ijkl", scaled @ scaled.T, np.eye(2))
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)


def test_memory_is_that_of_two_blocks():
    """Jacobians of 64 inputs would take 64 times what one does."""
    block, numbers, o = 2, 3000, 4

    def outputs(params, x):
        return (x @ params.reshape(30, -1))[:, :o]

    shapes, jacobian = [], linearised._jacobian

    def recorded(*args):
        found = jacobian(*args)
        shapes.append(found.shape)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("theory.linearised._jacobian", recorded)
        model_ntk(
            outputs, jnp.ones(numbers), jnp.asarray(normal(7, 30), jnp.float32), memory=2 * block * 4 * o * numbers
        )
    assert set(shapes) == {(block, o, numbers)}


@pytest.mark.parametrize("name", CASES)
def test_prediction_is_descent_on_the_linearised_model(name, x64):
    outputs, start = CASES[name]
    start = jax.tree.map(jnp.asarray, start)
    x, other, y = jnp.asarray(QUERY), jnp.asarray(OTHER), jnp.asarray(normal(5, 4))
    kernel = model_ntk(outputs, start, x)
    step_size = 0.7 / float(np.linalg.eigvalsh(np.asarray(kernel).transpose(0, 2, 1, 3).reshape(20, 20))[-1])
    linear = neural_tangents_compat.linearize(outputs, start)
    gradient = jax.jit(jax.grad(lambda params: 0.5 * jnp.sum((linear(params, x) - y) ** 2)))
    params, train, test = start, [], []
    for _ in range(31):
        train.append(linear(params, x))
        test.append(linear(params, other))
        params = jax.tree.map(lambda p, g: p - step_size * g, params, gradient(params))
    residual, cross = y - outputs(start, x), model_ntk(outputs, start, other, x)
    found = predict_linearised(kernel, residual, cross, steps=30, step_size=step_size)
    np.testing.assert_allclose(found.train, np.stack(train) - np.asarray(train[:1]), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.test, np.stack(test) - np.asarray(test[:1]), rtol=1e-8, atol=1e-10)
    assert np.abs(found.train[-1]).max() > 0.1


def test_modes_without_a_kernel_stay():
    kernel = jnp.zeros((2, 2, 1, 1)).at[0, 0].set(1.0)
    cross = jnp.ones((1, 2, 1, 1))
    moved = predict_linearised(kernel, jnp.ones((2, 1)), cross, steps=5, step_size=1.0)
    np.testing.assert_allclose(moved.train[:, :, 0].T, [[0, 1, 1, 1, 1, 1], [0] * 6])
    np.testing.assert_allclose(moved.test.ravel(), [0, 2, 3, 4, 5, 6])
