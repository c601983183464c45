"""The a-priori bound: never below the measured error, and not vacuous."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkprefix import FeaturePrefix, attention, feature_map, taylor_error_bound
from ntkprefix.bounds import taylor_degree, taylor_weight_error


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 4),
    length=st.integers(1, 12),
    inputs=st.integers(0, 5),
    degree=st.integers(0, 6),
    radius=st.floats(1e-3, 4.0),
    offset=st.floats(-5, 5),
    recentre=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_measured_error_never_exceeds_the_bound(width, length, inputs, degree, radius, offset, recentre, seed):
    rng = np.random.default_rng(seed)
    query, key, value = rng.standard_normal((1, 6, 1, width)), *rng.standard_normal((2, 1, inputs, 1, width))
    keys, values = (
        rng.standard_normal((length, 1, width)) + (offset if recentre else 0),
        rng.standard_normal((length, 1, 3)),
    )
    value = rng.standard_normal((1, inputs, 1, 3))
    beta = 1 / math.sqrt(width)
    centred = keys - keys.mean(axis=0) if recentre else keys
    query = query * radius / max(np.abs(beta * np.einsum("bthw,rhw->tr", query, centred)).max(), 1e-12)
    rho = np.abs(beta * np.einsum("bthw,rhw->tr", query, centred)).max()
    with jax.enable_x64(True):
        state = FeaturePrefix.from_tokens(
            jnp.asarray(keys), jnp.asarray(values), feature_map=feature_map("taylor", degree=degree), recentre=recentre
        )
        ours = np.asarray(attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), prefix=state))
    exact = oracle.attention(query, key, value, prefix=oracle.tokens(keys, values))
    rounding = 1e-10 * (1 + np.abs(values).max())
    assert np.abs(ours - exact).max() <= taylor_error_bound(rho, degree, np.abs(values).max()) + rounding


def test_the_bound_is_within_a_constant_of_a_bad_case():
    # Two tokens at logits -rho and rho with opposite values: the error that the bound is about. A bound a thousand
    # times too large would be true and useless.
    rho, degree = 1.0, 4
    weights = np.exp([-rho, rho])
    truncated = [sum(x**j / math.factorial(j) for j in range(degree + 1)) for x in (-rho, rho)]
    values = np.array([1.0, -1.0])
    error = abs(values @ weights / weights.sum() - values @ truncated / np.sum(truncated))
    assert error <= taylor_error_bound(rho, degree) <= 100 * error


def test_weight_error_covers_both_signs():
    for rho in (0.3, 1.0, 2.5):
        for degree in range(6):
            worst = max(
                abs(1 - math.exp(-x) * sum(x**j / math.factorial(j) for j in range(degree + 1)))
                for x in np.linspace(-rho, rho, 41)
            )
            assert worst <= taylor_weight_error(rho, degree) * (1 + 1e-12)


def test_degree_is_the_smallest_that_meets_the_tolerance():
    for rho in (0.1, 1.0, 6.0):
        degree = taylor_degree(rho, 1e-4)
        assert taylor_error_bound(rho, degree) <= 1e-4 < taylor_error_bound(rho, degree - 1)


def test_polynomially_small_in_the_prefix_length():
    # degree c (rho + log M) gives an error below M^-1: the form in which the paper states it
    for length in (2**4, 2**10, 2**20):
        assert taylor_degree(1.0, 1 / length) <= 3 * (1 + math.log(length))


@pytest.mark.parametrize(("radius", "expected"), [(0.0, 0.0), (1e3, math.inf), (1e9, math.inf)])
def test_ends_of_the_range(radius, expected):
    assert taylor_error_bound(radius, 2) == expected
