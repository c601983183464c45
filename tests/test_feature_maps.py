"""Feature sizes, positivity, and what phi(q).phi(k) equals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkprefix import FeaturePrefix, attention, feature_map


def kernel(phi, x, y):
    """phi(x).phi(y) in float64."""
    (a, log_a), (b, log_b) = phi(x), phi(y)
    product = np.einsum("ir,jr->ij", np.asarray(a, np.float64), np.asarray(b, np.float64))
    return product * np.exp(np.asarray(log_a)[:, None] + np.asarray(log_b)[None, :])


@pytest.mark.parametrize(("degree", "width"), [(0, 5), (1, 5), (2, 64), (3, 7), (6, 3)])
def test_taylor_size(degree, width):
    phi = feature_map("taylor", degree=degree)
    assert phi.size(width) == math.comb(width + degree, degree)
    assert phi(jnp.ones((2, width)))[0].shape == (2, phi.size(width))


@settings(max_examples=15, deadline=None)
@given(
    degree=st.integers(0, 6), width=st.integers(1, 5), scale=st.sampled_from([0.1, 1.0, 3.0]), seed=st.integers(0, 99)
)
def test_taylor_is_the_truncated_exponential(degree, width, scale, seed):
    with jax.enable_x64(True):
        x, y = scale * np.random.default_rng(seed).standard_normal((2, 4, width))
        ours = kernel(feature_map("taylor", degree=degree), jnp.asarray(x), jnp.asarray(y))
    expected = sum((x @ y.T) ** j / math.factorial(j) for j in range(degree + 1))
    largest = sum((np.abs(x) @ np.abs(y).T) ** j / math.factorial(j) for j in range(degree + 1))
    assert (np.abs(ours - expected) <= 1e-12 * largest).all()


def far_out(rng, rows, width):
    """Vectors [rows, width] of norms from 0 to 1e5 (at most 6e4, for float16)."""
    x = rng.standard_normal((rows, width))
    norms = rng.choice([0, 1e-3, 1e-1, 1, 30, 1e3, 6e4], rows)
    return x * (norms / np.linalg.norm(x, axis=1))[:, None]


@pytest.mark.parametrize(
    ("degree", "dtype"),
    [(degree, jnp.float32) for degree in range(11)] + [(8, jnp.bfloat16), (8, jnp.float16), (3, jnp.float16)],
)
def test_taylor_neither_underflows_nor_overflows(degree, dtype):
    # Two tokens a row, half of them at one point, which recentred leaves the constant feature alone. Whatever the
    # terms' sizes, the mass is right up to rounding, measured against the terms' absolute values.
    width, rows = 1 + degree % 4, 60
    rng = np.random.default_rng(degree)
    query, one, two = (far_out(rng, rows, width) for _ in range(3))
    two[::2] = one[::2]
    query, keys = (jnp.asarray(x).astype(dtype) for x in (query, np.stack([one, two], axis=1)))
    values = jnp.asarray(rng.choice([-2.0, -0.5, 0.7, 3.0], (rows, 2)), dtype)
    recentre = (np.arange(rows) % 3 > 0)[:, None]
    centre = jnp.asarray(np.where(recentre, np.asarray(keys, np.float32).mean(axis=1), 0))

    @jax.jit
    def share(query, keys, values, centre):
        state = FeaturePrefix.from_tokens(
            keys[:, :, None],
            values[:, :, None, None],
            feature_map=feature_map("taylor", degree=degree),
            centre=centre[:, None],
            scale=1.0,
        )
        partial = state.partial(query[:, None, None], 1.0)
        return partial.log_mass()[:, 0, 0], partial.normalise()[:, 0, 0, 0], partial.num

    log_mass, out, num = (np.asarray(x, np.float64) for x in share(query, keys, values, centre))
    assert np.isfinite(num).all()
    query, keys, values, centre = (np.asarray(x, np.float64) for x in (query, keys, values, centre))
    compared = 0
    for i in range(rows):
        log_den, expected, cancellation = oracle.taylor_exactly(query[i], keys[i] - centre[i], values[i], degree)
        if cancellation < 1e4:
            compared += 1
            rounding = 2e-7 * (degree + 1) * cancellation
            shifts = np.abs(query[i]) @ np.abs(centre[i]) + abs(log_den) + 100
            assert abs(log_mass[i] - log_den - query[i] @ centre[i]) <= rounding + 1e-6 * shifts
            assert abs(out[i] - expected) <= 3 * rounding * max(1, abs(expected))
    assert compared >= rows / 2


@pytest.mark.parametrize("degree", [2, 8, 10])
@pytest.mark.parametrize("input_logit", [-6.0, 0.0, 6.0])
def test_a_far_query_weighs_a_near_prefix_and_the_input_alike(degree, input_logit):
    # One prefix token at the origin: its mass is 1 for every query, under any polynomial. At |q| = 1e5 its features
    # are 1 in 1e50 (degree 10), and neither it nor the input may vanish; nor may the gradients, as long as those of Z,
    # the query's features, fit the type.
    query = jnp.asarray([[[[1e5, -3.0]]]])
    key, value, bias = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), input_logit)

    def attended(values, bias):
        state = FeaturePrefix.from_tokens(
            jnp.zeros((1, 1, 2)), values, feature_map=feature_map("taylor", degree=degree), scale=1.0
        )
        return attention(query, key, value, prefix=state, bias=bias, scale=1.0)[0, 0, 0, 0]

    out, gradients = jax.jit(jax.value_and_grad(attended, argnums=(0, 1)))(jnp.full((1, 1, 1), 3.0), bias)
    of_input = 1 / (1 + np.exp(-input_logit))
    np.testing.assert_allclose(out, of_input + 3 * (1 - of_input), rtol=2e-5)
    if degree == 10:
        return
    np.testing.assert_allclose(gradients[0].item(), 1 - of_input, rtol=2e-4)
    np.testing.assert_allclose(gradients[1].item(), -2 * of_input * (1 - of_input), rtol=2e-4)


@pytest.mark.parametrize(
    "phi",
    [
        feature_map("elu"),
        feature_map("taylor", degree=2),
        feature_map("taylor", degree=4),
        feature_map("favor", features=32, key=jax.random.key(0)),
    ],
)
def test_positive_where_claimed(phi, x64):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((60, 5)) * 4)
    assert phi.positive
    assert phi.nonnegative == bool((phi(x)[0] >= 0).all())
    assert (kernel(phi, x, -x) > 0).all()


def test_odd_degrees_claim_nothing():
    assert not feature_map("taylor", degree=3).positive
    x = jnp.full((1, 1), 2.0)
    assert kernel(feature_map("taylor", degree=3), x, -x) < 0


def test_favor_is_unbiased_and_its_error_falls_as_one_over_root_r():
    x, y = 0.2 * np.random.default_rng(0).standard_normal((2, 6, 8)).astype(np.float32)
    exact = np.exp(x.astype(np.float64) @ y.T.astype(np.float64))
    errors = {}
    for features in (16, 256):
        estimates = np.stack(
            [
                kernel(
                    feature_map("favor", features=features, key=jax.random.key(seed)), jnp.asarray(x), jnp.asarray(y)
                )
                for seed in range(400)
            ]
        )
        standard_error = estimates.std(axis=0, ddof=1) / math.sqrt(400)
        assert (np.abs(estimates.mean(axis=0) - exact) < 4.5 * standard_error).all()
        errors[features] = np.sqrt(np.mean((estimates - exact) ** 2))
    slope = math.log(errors[256] / errors[16]) / math.log(16)
    assert -0.6 < slope < -0.4, f"fitted slope {slope:.3f}, expected -1/2"


def test_favor_directions_are_orthogonal_blocks_and_repeat_for_a_key():
    one, same, other = (feature_map("favor", features=16, key=jax.random.key(seed)) for seed in (3, 3, 4))
    x = jnp.eye(8)
    np.testing.assert_array_equal(one(x)[0], same(x)[0])
    assert not np.array_equal(one(x)[0], other(x)[0])
    assert hash(one) == hash(same)
    # log phi of unit vectors gives the directions back, up to a row's constant
    phi, log_scale = one(x)
    directions = np.asarray(jnp.log(phi) + log_scale[:, None] + 0.5 + math.log(math.sqrt(16))).T
    gram = directions[:8] @ directions[:8].T
    np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-4)


def test_elu():
    phi, log_scale = feature_map("elu")(jnp.array([[-2.0, 0.0, 3.0]]))
    np.testing.assert_allclose(phi, [[math.exp(-2), 1, 4]], rtol=1e-6)
    assert not log_scale.any()
    far = feature_map("elu")(jnp.array([[-20.0, -60.0]]))[0]
    np.testing.assert_allclose(far, [[math.exp(-20), math.exp(-60)]], rtol=1e-5)
