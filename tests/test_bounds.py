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


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 4),
    length=st.integers(1, 12),
    inputs=st.integers(0, 5),
    degree=st.integers(0, 6),
    radius=st.floats(1e-3, 4.0),
    offset=st.floats(-5, 5),
    log_prefix_values=st.floats(-3, 3),
    log_input_values=st.floats(-3, 3),
    recentre=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_measured_error_never_exceeds_the_bound(
    width, length, inputs, degree, radius, offset, log_prefix_values, log_input_values, recentre, seed
):
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((1, 6, 1, width)), rng.standard_normal((1, inputs, 1, width))
    keys = rng.standard_normal((length, 1, width)) + (offset if recentre else 0)
    values = 10**log_prefix_values * rng.standard_normal((length, 1, 3))
    value = 10**log_input_values * rng.standard_normal((1, inputs, 1, 3))
    beta = 1 / math.sqrt(width)
    centred = keys - keys.mean(axis=0) if recentre else keys
    query = query * radius / max(np.abs(beta * np.einsum("bthw,rhw->tr", query, centred)).max(), 1e-12)
    rho = np.abs(beta * np.einsum("bthw,rhw->tr", query, centred)).max()
    error = measured_error(query, key, value, keys, values, degree=degree, recentre=recentre)
    largest = max(np.abs(values).max(), np.abs(value).max(initial=0))
    assert error <= taylor_error_bound(rho, degree, largest) + 1e-10 * (1 + largest)


def measured_error(query, key, value, keys, values, *, degree, recentre=True):
    """The largest difference of an output through the state from the exact one of a NumPy oracle."""
    with jax.enable_x64(True):
        state = FeaturePrefix.from_tokens(
            jnp.asarray(keys), jnp.asarray(values), feature_map=feature_map("taylor", degree=degree), recentre=recentre
        )
        ours = np.asarray(attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), prefix=state))
    return np.abs(ours - oracle.attention(query, key, value, prefix=oracle.tokens(keys, values))).max()


@pytest.mark.parametrize("recentre", [False, True])
def test_the_input_s_values_count_too(recentre):
    # Prefix values of a thousandth: what errs is the prefix's mass, and with it the weight of the input's value of 1.
    query, key, value = np.ones((1, 1, 1, 1)), np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1, 1))
    keys, values = np.array([-1.0 if recentre else 1.0, 1.0]).reshape(2, 1, 1), np.full((2, 1, 1), 1e-3)
    for degree in (2, 4, 6):
        error = measured_error(query, key, value, keys, values, degree=degree, recentre=recentre)
        assert taylor_error_bound(1.0, degree, 1e-3) < error <= taylor_error_bound(1.0, degree, 1.0)


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("degree", [2, 4])
def test_the_bound_is_within_a_factor_of_three_of_a_bad_case(degree, largest):
    # Two tokens at logits -rho and rho with opposite values, their weights almost equal: half of the mass errs upwards
    # and half downwards. Any bound less than a third as large would be false, and any much larger one useless.
    rho = 0.05
    query, none = np.ones((1, 1, 1, 1)), np.zeros((1, 0, 1, 1))
    keys, values = np.array([-rho, rho]).reshape(2, 1, 1), largest * np.array([-1.0, 1.0]).reshape(2, 1, 1)
    error = measured_error(query, none, none, keys, values, degree=degree)
    assert error <= taylor_error_bound(rho, degree, largest) <= 3 * error


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
@pytest.mark.parametrize("largest", [1.0, math.inf])
def test_ends_of_the_range(radius, expected, largest):
    assert taylor_error_bound(radius, 2, largest) == expected


def test_numbers_beyond_floats():
    huge = 10**400
    assert taylor_error_bound(1, huge) == taylor_error_bound(0, huge, huge) == 0
    assert (
        taylor_error_bound(huge, 3, 1) == taylor_error_bound(1, 3, huge) == taylor_error_bound(huge, huge) == math.inf
    )
    # Below the smallest float eps is above 0 all the same, and no bound of unbounded values.
    assert taylor_error_bound(1, huge, math.inf) == math.inf


@pytest.mark.parametrize("radius", [1e5, 1e9, 1e300, 1.7e308])
def test_degrees_of_huge_radii(radius):
    """eps = 1 where rho + p log(rho / p) + p = 0: p = rho / t with t + log t + 1 = 0."""
    t = 0.2784645427610738
    degree = taylor_degree(radius, 0.1)
    np.testing.assert_allclose(degree * 10**6 // int(radius), 1e6 / t, rtol=1e-3)
    assert taylor_error_bound(radius, degree) <= 0.1 < taylor_error_bound(radius, degree - 1)


def test_the_factorial_s_two_forms_agree():
    # either side of a million terms, where the second, a bound from above, takes over
    near = [math.log(taylor_weight_error(278_400.0, 10**6 + step)) for step in (-3, -2, -1, 0)]
    step, jump, _ = np.diff(near)
    assert step < jump < step + math.log(2 * math.pi * 10**6)


def test_the_smallest_degree_is_found_wherever_the_bound_is_not_monotone():
    for radius in (0.0, 0.1, 3.0, 30.0):
        for tolerance in (1e-300, 1e-8, 0.5, 1e5, math.inf):
            counted = next(p for p in range(1000) if taylor_error_bound(radius, p) <= tolerance)
            assert taylor_degree(radius, tolerance) == counted
