import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpy_model as oracle
import pytest
from numpy_model import relative
from simulated_devices import on_devices

from theory import finite_ntk, infinite_ntk, init_stylized, kernels, neural_tangents_compat, stylized_model


def prefix(M, d, seed=0, scale=1.0):
    """A prefix away from its start, so that F and mu are not zero."""
    W, a = init_stylized(jax.random.key(seed), M, d)
    return scale * (W + 0.3 * jax.random.normal(jax.random.key(seed + 1), (M, d))), a


def inputs(n, d, seed=5):
    return jax.random.normal(jax.random.key(seed), (n, d)) / d**0.5


def neural_tangents_kernel(W, a, x1, x2, implementation=1):
    kernel_fn = neural_tangents_compat.empirical_ntk_fn(
        lambda W, x: stylized_model(W, a, x), implementation=implementation
    )
    return kernel_fn(x1, x2, W)


@pytest.mark.parametrize("chunk", [1, 7, 24, 32, 4096])
@pytest.mark.parametrize("M", [2, 24, 32])
def test_equals_numpy_jacobian_for_every_chunk(M, chunk):
    (W, a), x1, x2 = prefix(M, 3), inputs(4, 3), inputs(2, 3, seed=6)
    assert relative(finite_ntk(W, a, x1, x2, chunk=chunk), oracle.kernel(W, a, x1, x2)) < 1e-5
    assert relative(finite_ntk(W, a, x1, chunk=chunk), oracle.kernel(W, a, x1, x1)) < 1e-5


@pytest.mark.parametrize("implementation", [1, 2])
def test_equals_neural_tangents_in_float32(implementation):
    (W, a), x1, x2 = prefix(3000, 8), inputs(5, 8), inputs(4, 8, seed=6)
    for second in (None, x2):
        assert relative(finite_ntk(W, a, x1, second), neural_tangents_kernel(W, a, x1, second, implementation)) < 1e-5


def test_equals_neural_tangents_and_numpy_in_float64(x64):
    (W, a), x = prefix(96, 4), inputs(4, 4)
    assert W.dtype == x.dtype == jnp.float64
    H = finite_ntk(W, a, x, chunk=40)
    assert relative(H, neural_tangents_kernel(W, a, x, None)) < 1e-10
    assert relative(H, oracle.kernel(W, a, x, x)) < 1e-10


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_large_logits(x64, scale):
    (W, a), x = prefix(64, 4, scale=scale), inputs(3, 4)
    assert np.abs(W @ x.T).max() > scale
    assert relative(finite_ntk(W, a, x, chunk=16), oracle.kernel(W, a, x, x)) < 1e-10


def test_logits_of_ten_thousand_in_float32():
    # Multiples of a power of two, so that float32 holds the logits exactly and only the kernel is tested.
    W = jnp.round(64 * prefix(64, 4)[0]) * 256.0
    W = W.at[32:].set(W[:32] + 0.0)
    a = jnp.repeat(jnp.array([1.0, -1.0]), 32).at[3].set(-1.0)
    x = jnp.round(64 * inputs(3, 4)) / 64
    assert np.abs(W @ x.T).max() > 1e4
    assert relative(finite_ntk(W, a, x, chunk=16), oracle.kernel(W, a, x, x)) < 1e-5


def test_padding_does_not_contribute():
    (W, a), x = prefix(1030, 3), inputs(4, 3)
    assert relative(finite_ntk(W, a, x, chunk=1000), finite_ntk(W, a, x, chunk=1030)) < 1e-6


def test_very_negative_logits_are_not_lost_to_padding():
    (W, a), x = prefix(24, 3), inputs(4, 3)
    # A common shift of all logits by -1e4 / 4 changes no softmax, and padded tokens have logit 0 before masking.
    x = jnp.concatenate([x, jnp.full((4, 1), 0.25)], axis=1)
    W = jnp.concatenate([W, jnp.full((24, 1), -1e4)], axis=1)
    H = finite_ntk(W, a, x)
    assert relative(H, oracle.kernel(W, a, x, x)) < 1e-4


def test_one_compilation_serves_lengths_between_powers_of_two(compiled):
    (W, a), x = prefix(1024, 5), inputs(3, 5)
    finite_ntk(W[:514], a[:514], x)
    for M in (801, 1024):
        finite_ntk(W[:M], a[:M], x)
    assert compiled.count("_streamed_ntk") == 1


def compiled_memory(M, n, d):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((M, d), (M,), (n, d))]
    return jax.jit(finite_ntk).lower(*shapes).compile().memory_analysis()


def test_memory_of_four_million_tokens_is_under_two_gigabytes_and_flat():
    small, large = compiled_memory(2**14, 32, 16), compiled_memory(2**22, 32, 16)
    total = large.argument_size_in_bytes + large.output_size_in_bytes + large.temp_size_in_bytes
    assert total < 2**31, f"{total / 2**20:.0f} MiB"
    assert large.temp_size_in_bytes <= 1.01 * small.temp_size_in_bytes


def test_tokens_that_devices_share_out():
    """On 8 simulated devices, which only a process of its own can have."""
    on_devices("theory/on_eight_devices.py", 8)


@pytest.mark.slow
def test_a_million_tokens_run():
    x = inputs(32, 8)
    H = finite_ntk(*init_stylized(jax.random.key(0), 2**20, 8, 0.5), x)
    assert relative(H, infinite_ntk(x, sigma=0.5)) < 0.02


def test_forward_mode_derivative_and_no_reverse_one(x64):
    (W, a), x = prefix(24, 3), inputs(4, 3)
    direction = jax.random.normal(jax.random.key(3), W.shape)
    _, tangent = jax.jvp(lambda W: finite_ntk(W, a, x, chunk=10), (W,), (direction,))
    step = 1e-6
    ahead, behind = (oracle.kernel(W + sign * step * direction, a, x, x) for sign in (1, -1))
    assert relative(tangent, (ahead - behind) / (2 * step)) < 1e-6
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda W: finite_ntk(W, a, x).sum())(W)


def test_works_under_jit_and_vmap():
    x = inputs(3, 4)
    W, a = (jnp.stack(parts) for parts in zip(prefix(24, 4), prefix(24, 4, seed=9), strict=True))
    batched = jax.jit(jax.vmap(functools.partial(finite_ntk, chunk=10), in_axes=(0, 0, None)))(W, a, x)
    for index in range(2):
        assert relative(batched[index], oracle.kernel(W[index], a[index], x, x)) < 1e-5


COVARIANCE = np.array([[0.6, 0.2, 0.0], [0.2, 0.4, -0.1], [0.0, -0.1, 0.3]])


def monte_carlo_ntk(x1, x2, root, samples, seed=0):
    """E over w of the kernel's summand, with the softmax's normaliser in closed form: E e^{w.x} = e^{x.Sigma x / 2}."""
    w = np.random.default_rng(seed).standard_normal((samples, len(root))) @ root.T
    half_norms = [0.5 * np.sum((x @ root) ** 2, axis=1) for x in (x1, x2)]
    density = [np.exp(w @ x.T - half) for x, half in zip((x1, x2), half_norms, strict=True)]
    total = np.zeros((len(x1), len(x2), len(root), len(root)))
    for i, p in enumerate(x1):
        for j, q in enumerate(x2):
            # The gradients of F_k(p) and F_l(q) with respect to w, per unit of sqrt(M) a / M.
            for k in range(len(root)):
                for m in range(len(root)):
                    gradient_p = (k == m) + w[:, k] * p[m]
                    for other in range(len(root)):
                        gradient_q = (other == m) + w[:, other] * q[m]
                        weight = density[0][:, i] * density[1][:, j]
                        total[i, j, k, other] += np.mean(weight * gradient_p * gradient_q)
    return total


@pytest.mark.parametrize("covariance", [None, COVARIANCE])
def test_infinite_kernel_is_the_gaussian_expectation(covariance):
    x1, x2 = (np.array(inputs(n, 3, seed), np.float64) for n, seed in ((3, 1), (2, 2)))
    root = 0.6 * np.eye(3) if covariance is None else np.linalg.cholesky(covariance)
    options = {"sigma": 0.6} if covariance is None else {"covariance": jnp.asarray(covariance, jnp.float32)}
    H = infinite_ntk(jnp.asarray(x1, jnp.float32), jnp.asarray(x2, jnp.float32), **options)
    assert relative(H, monte_carlo_ntk(x1, x2, root, samples=400_000)) < 0.02


def test_infinite_kernel_is_symmetric_and_positive():
    x = inputs(6, 4)
    matrix = np.array(kernels.as_matrix(infinite_ntk(x)), np.float64)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-5)
    assert np.linalg.eigvalsh(matrix)[0] > 0


def fitted_slope(lengths, errors):
    return np.polyfit(np.log2(lengths), np.log2(errors).mean(axis=1), 1)[0]


@pytest.mark.parametrize("covariance", [None, COVARIANCE])
def test_finite_kernel_converges_at_rate_one_half(covariance):
    x, lengths = inputs(4, 3), [2**k for k in (8, 11, 14, 17)]
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    # Small variances: the larger they are, the later the rate sets in, because softmax weights are log-normal.
    options = {"sigma": 0.4} if covariance is None else {"covariance": jnp.asarray(0.3 * covariance, jnp.float32)}
    limit = infinite_ntk(x, **options)

    def error(M, seed):
        return relative(finite_ntk(*init_stylized(jax.random.key(seed + M), M, 3, **options), x), limit)

    slope = fitted_slope(lengths, [[error(M, seed) for seed in range(24)] for M in lengths])
    assert abs(slope + 0.5) < 0.06, f"fitted exponent {slope:.3f}"


def test_reported_errors_at_sigma_one():
    """0.41, 0.40, 0.20, 0.097, 0.050 were reported at M = 2^8..2^16. Log-normal weights scatter by about a factor 2."""
    x = inputs(6, 4)
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    for M, reported in zip((2**8, 2**10, 2**12, 2**14, 2**16), (0.41, 0.40, 0.20, 0.097, 0.050), strict=True):
        errors = [
            relative(finite_ntk(*init_stylized(jax.random.key(seed), M, 4), x), infinite_ntk(x)) for seed in range(9)
        ]
        assert reported / 2 < np.median(errors) < reported * 2.2, (M, np.median(errors))
