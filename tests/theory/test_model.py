import jax
import numpy as np
import numpy_model as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from theory import init_stylized, model, stylized_model


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@settings(max_examples=8, deadline=None)
@given(M=st.sampled_from([1, 2, 9]), d=st.sampled_from([1, 4]), n=st.sampled_from([1, 3]), seed=st.integers(0, 1000))
def test_model_equals_numpy(M, d, n, seed):
    W, a, x = normal(seed, M, d), jax.numpy.sign(normal(seed + 1, M)), normal(seed + 2, n, d)
    np.testing.assert_allclose(stylized_model(W, a, x), oracle.model(W, a, x), rtol=2e-5, atol=2e-6)


def test_starts_at_zero_in_pairs():
    W, a = init_stylized(jax.random.key(0), 1024, 8)
    np.testing.assert_array_equal(W[:512], W[512:])
    np.testing.assert_array_equal(a, np.repeat([1.0, -1.0], 512))
    assert np.abs(stylized_model(W, a, normal(1, 5, 8))).max() < 1e-4


def test_logits_of_ten_thousand():
    W, a = init_stylized(jax.random.key(0), 64, 4)
    outputs = stylized_model(1e4 * W, a, normal(1, 3, 4))
    assert np.isfinite(outputs).all()


def test_initial_covariance():
    covariance = jax.numpy.array([[2.0, 0.6], [0.6, 0.5]])
    W, _ = init_stylized(jax.random.key(0), 2**16, 2, covariance=covariance)
    np.testing.assert_allclose(np.cov(W.T), covariance, atol=0.03)
    W, _ = init_stylized(jax.random.key(0), 2**16, 2, 0.5)
    np.testing.assert_allclose(np.cov(W.T), 0.25 * np.eye(2), atol=0.01)


def test_singular_covariance_stays_in_its_plane():
    W, _ = init_stylized(jax.random.key(0), 64, 2, covariance=jax.numpy.ones((2, 2)))
    np.testing.assert_allclose(W[:, 0], W[:, 1], atol=1e-5)


LONG = 2 * model._CHUNK + 37


def test_a_prefix_in_chunks_equals_numpy_in_value_and_derivatives(x64):
    W, a, x = normal(0, LONG, 3), jax.numpy.sign(normal(1, LONG)), normal(2, 2, 3)
    direction, weights = normal(3, LONG, 3), normal(4, 2, 3)
    value, tangent = jax.jvp(lambda W: stylized_model(W, a, x), (W,), (direction,))
    np.testing.assert_allclose(value, oracle.model(W, a, x), rtol=1e-10)
    step = 1e-6
    ahead, behind = (oracle.model(W + sign * step * direction, a, x) for sign in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), rtol=1e-6)
    gradient = jax.grad(lambda W: jax.numpy.sum(weights * stylized_model(W, a, x)))(W)
    np.testing.assert_allclose(np.sum(gradient * direction), np.sum(weights * tangent), rtol=1e-10)


def test_chunks_with_logits_of_ten_thousand():
    W, a = init_stylized(jax.random.key(0), 2**15, 4)
    gradient = jax.grad(lambda W: jax.numpy.sum(stylized_model(W, a, normal(1, 3, 4))))(1e4 * W)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_gradient_of_a_million_tokens_holds_no_logits():
    M, d, n = 2**20, 16, 32
    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((M, d), (M,), (n, d))]
    loss = jax.value_and_grad(lambda W, a, x: jax.numpy.sum(stylized_model(W, a, x) ** 2))
    working = jax.jit(loss).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert working < 4 * n * M / 16
