"""States fitted to a prefix's tokens on given queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from ntkprefix import TokenPrefix, feature_map
from ntkprefix.prefixes.least_squares import fit_state


def fitted(keys, values, query, log_mass, centre, log_scale, dtype=jnp.float32, **options):
    tokens = TokenPrefix(jnp.asarray(keys, dtype), jnp.asarray(values, dtype))
    query, log_mass = jnp.asarray(query, dtype), jnp.asarray(log_mass, dtype)
    centre, log_scale = jnp.asarray(centre, jnp.float32), jnp.asarray(log_scale, jnp.float32)
    options = {"feature_map": feature_map("elu"), "centre": centre, "log_scale": log_scale} | options
    return fit_state(tokens, query, log_mass, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("heads", [2, 1])
def test_fitting_solves_the_normal_equations(dtype, heads):
    """In float64, head by head; some queries see nothing, and some little."""
    rng, width = np.random.default_rng(3), 4
    keys, values = rng.standard_normal((2, 7, heads, width))
    query, log_mass = rng.standard_normal((2, 30, 4, width)), 9 + rng.standard_normal((2, 30, 4))
    log_mass[0, :5], log_mass[1, :5] = -np.inf, -3
    centre, log_scale = rng.standard_normal((4, width)), np.array([7.0, 7.5, 8.0, 7.0])
    state = fitted(keys, values, query, log_mass, centre, log_scale, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    assert state.scale == 0.5
    keys, values, query, log_mass = (
        np.asarray(jnp.asarray(array, dtype), np.float64) for array in (keys, values, query, log_mass)
    )
    for head in range(4):
        seen = np.isfinite(log_mass[..., head])
        q, mass, p = query[..., head, :][seen], log_mass[..., head][seen], keys[:, head * heads // 4]
        weights, x = np.exp(q @ p.T / 2), q / np.sqrt(2)
        rows = np.where(x > 0, x + 1, np.exp(x)) * np.exp(log_scale[head] + q @ centre[head] / 2)[:, None]
        total = np.maximum(np.exp(mass) + weights.sum(axis=1), rows.sum(axis=1) / 10)
        rows /= total[:, None]
        gram = rows.T @ rows
        gram += 1e-4 * np.trace(gram) / width * np.eye(width)
        expected = np.linalg.solve(gram, rows.T @ (weights @ values[:, head * heads // 4] / total[:, None]))
        np.testing.assert_allclose(state.Z[head], expected, atol=3e-3 * np.abs(expected).max())
        root = np.linalg.cholesky(gram)
        expected, _ = nnls(root.T, np.linalg.solve(root, rows.T @ (weights.sum(axis=1) / total)))
        np.testing.assert_allclose(state.k[head], expected, atol=3e-3 * np.abs(expected).max())


@pytest.mark.parametrize("log_mass", [-np.inf, -3e38, -200.0, 0.0])
def test_a_few_queries_that_see_nothing_do_not_decide_the_fit(log_mass):
    rng, width = np.random.default_rng(5), 8
    keys, values = 0.5 * rng.standard_normal((2, 30, 1, width))
    query, masses = rng.standard_normal((1, 500, 1, width)), 12 + 0.5 * rng.standard_normal((1, 500, 1))
    keys[..., 0] += 4
    query[..., 0] = 8 + 0.1 * query[..., 0]
    query[:, :3, :, 0] *= -1
    masses[:, :3] = log_mass
    state = fitted(keys, values, query, masses, np.zeros((1, width)), [10.0])
    rest, scale = jnp.asarray(query[:, 3:], jnp.float32), width**-0.5
    exact, ours = (
        TokenPrefix(*jnp.asarray([keys, values], jnp.float32)).partial(rest, scale),
        state.partial(rest, scale),
    )
    total = np.logaddexp(masses[:, 3:], np.asarray(exact.log_mass(), np.float64))
    share, found = (np.exp(np.asarray(one.log_mass(), np.float64) - total) for one in (exact, ours))
    assert np.sqrt(np.mean((found - share) ** 2)) < 0.2 * np.sqrt(np.mean(share**2))


EXTREMES = {
    "features far too heavy": {"log_scale": 200.0},
    "features far too light": {"log_scale": -200.0},
    "half in between": {"log_scale": -50.0},
    "an input of much mass": {"mass": 1e4},
    "no mass at all": {"mass": -np.inf, "length": 0},
    "no tokens": {"length": 0},
    "no queries": {"count": 0},
    "one query": {"count": 1},
    "long keys": {"size": 1e3},
    "a ridge below rounding": {"ridge": 1e-30, "count": 20, "width": 64},
}


@pytest.mark.parametrize("case", EXTREMES)
def test_fitting_stays_finite(case):
    options = {"log_scale": 0.0, "mass": 0.0, "length": 7, "count": 50, "width": 4, "size": 1.0} | EXTREMES[case]
    log_scale, mass, length, count, width, size = map(options.pop, list(options)[:6])
    rng = np.random.default_rng(0)
    keys, values = size * rng.standard_normal((2, length, 2, width))
    query, centre = rng.standard_normal((1, count, 4, width)), rng.standard_normal((4, width))
    masses = mass + rng.standard_normal((1, count, 4))
    state = fitted(keys, values, query, masses, centre, np.full(4, log_scale), **options)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert jnp.min(state.k) >= 0
