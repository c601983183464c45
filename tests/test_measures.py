"""Measure prefixes: clusters, their moments, and the limit of many tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from prefix_outputs import QUERY, normal, out

from ntkprefix import MeasurePrefix, TokenPrefix, attention
from ntkprefix.clusters import kmeans
from ntkprefix.prefixes import measure


def test_a_component_per_token_is_exact():
    keys, values = normal(12, 2, 6), normal(12, 2, 5)
    prefix = MeasurePrefix.from_tokens(keys, values, components=12)
    np.testing.assert_allclose(out(prefix), out(TokenPrefix(keys, values)), atol=1e-5)


def test_fitting_keeps_each_clusters_moments():
    keys, values = normal(400, 1, 6), normal(400, 1, 5)
    prefix = MeasurePrefix.from_tokens(keys, values, components=1, rank=6)
    flat_keys, flat_values = np.asarray(keys[:, 0], np.float64), np.asarray(values[:, 0], np.float64)
    centred = flat_keys - flat_keys.mean(axis=0)
    factor, cross = np.asarray(prefix.factor[0, 0]), np.asarray(prefix.cross[0, 0])
    np.testing.assert_allclose(prefix.log_weight, np.log(400), rtol=1e-6)
    np.testing.assert_allclose(factor @ factor.T, centred.T @ centred / 400, atol=1e-5)
    np.testing.assert_allclose(cross @ factor.T, flat_values.T @ centred / 400, atol=1e-5)


@pytest.mark.parametrize("rows", [(), (2,)], ids=["shared", "per row"])
@pytest.mark.parametrize("clouds", [8, 11], ids=["whole chunks", "and a rest"])
def test_many_clouds_are_added_up_by_chunks(rows, clouds, monkeypatch, x64):
    prefix = MeasurePrefix(*(normal(*rows, clouds, 2, *rest) for rest in ((), (6,), (6, 2), (5,), (5, 2))))
    prefix, query = jax.tree.map(lambda array: array.astype(float), (prefix, QUERY))

    def both(prefix):
        return out(prefix, query), jax.grad(lambda prefix: jnp.sum(jnp.sin(out(prefix, query))))(prefix)

    at_once = both(prefix)
    monkeypatch.setattr(measure, "_CHUNK", 4)
    for one, other in zip(*map(jax.tree.leaves, (both(prefix), at_once)), strict=True):
        assert one.dtype == float
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_one_gaussian_cloud_is_the_limit_of_many_tokens():
    # The claim behind the measure: for jointly Gaussian keys and values softmax over M tokens tends to the closed form.
    rng = np.random.default_rng(5)
    mixing = rng.standard_normal((11, 11)) * 0.35
    mean = rng.standard_normal(11)
    covariance = mixing @ mixing.T
    factor = np.linalg.cholesky(covariance[:6, :6])
    cross = covariance[6:, :6] @ np.linalg.inv(factor.T)
    as_head = [jnp.asarray(x, jnp.float32)[None, None] for x in (0.0, mean[:6], factor, mean[6:], cross)]
    query = QUERY[:, :, :1]
    empty = jnp.zeros((2, 0, 1, 6)), jnp.zeros((2, 0, 1, 5))
    limit = attention(query, *empty, prefix=MeasurePrefix(*as_head))
    errors = []
    for length in (2**8, 2**12, 2**16):
        tokens = jnp.asarray(mean + rng.standard_normal((length, 11)) @ mixing.T, jnp.float32)[:, None]
        finite = attention(query, *empty, prefix=TokenPrefix(tokens[..., :6], tokens[..., 6:]))
        errors.append(float(jnp.sqrt(jnp.mean((finite - limit) ** 2))))
    slope = np.polyfit(np.log([2**8, 2**12, 2**16]), np.log(errors), 1)[0]
    assert -0.7 < slope < -0.3, f"fitted slope {slope:.2f}, expected -1/2; errors {errors}"


def test_kmeans_finds_separated_groups_and_lowers_the_distortion():
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((5, 3)) * 20
    points = jnp.asarray(np.repeat(groups, 40, axis=0) + 0.1 * rng.standard_normal((200, 3)), jnp.float32)
    _, labels = kmeans(jax.random.key(0), points, 5)
    assert len({tuple(set(np.asarray(labels[i * 40 : (i + 1) * 40]))) for i in range(5)}) == 5
    distortion = [
        float(jnp.sum((points - c[label]) ** 2))
        for c, label in (kmeans(jax.random.key(1), points + 0.0, 9, iterations=i) for i in (0, 1, 5))
    ]
    assert distortion[0] >= distortion[1] >= distortion[2]


def test_kmeans_tells_near_groups_apart_far_from_the_origin():
    # Keys have large means in real models; |x|^2 = 3e8 leaves no digit for a distance of 1 in float32.
    rng = np.random.default_rng(3)
    groups = rng.permutation(8)[:5, None] * np.array([[1.0, -1.0, 0.5]])
    points = 1e4 + np.repeat(groups, 20, axis=0) + 0.01 * rng.standard_normal((100, 3))
    centres, labels = kmeans(jax.random.key(0), jnp.asarray(points, jnp.float32), 5)
    assert [len(set(np.asarray(labels[i * 20 : (i + 1) * 20]))) for i in range(5)] == [1] * 5
    assert len(set(np.asarray(labels))) == 5
    np.testing.assert_allclose(centres[np.asarray(labels)[::20]], 1e4 + groups, atol=0.02)


def test_more_clusters_than_distinct_points():
    keys = jnp.ones((4, 1, 6))
    prefix = MeasurePrefix.from_tokens(keys, normal(4, 1, 5), components=3, rank=1)
    assert sorted(np.isneginf(np.asarray(prefix.log_weight)).ravel().tolist()) == [False, True, True]


DEGENERATE = {  # keys [M, 2, 4] and a number of clusters
    "more clusters than tokens": (normal(3, 2, 4), 5),
    "one token": (normal(1, 2, 4), 1),
    "one token and empty clusters": (normal(1, 2, 4), 3),
    "all at one point": (jnp.full((7, 2, 4), 1.37), 3),
    "all at the origin": (jnp.zeros((5, 2, 4)), 2),
    "each point four times": (jnp.repeat(normal(3, 2, 4), 4, axis=0), 5),
    "on a line": (normal(9, 2, 1) * normal(1, 2, 4), 2),
    "equal variances": (jnp.concatenate([jnp.eye(4), -jnp.eye(4)])[:, None].repeat(2, axis=1), 1),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_fitting_degenerate_clusters_has_finite_gradients(name, rank):
    keys, components = DEGENERATE[name]
    values, query = normal(len(keys), 2, 5), normal(1, 3, 2, 4)

    def loss(keys, values):
        prefix = MeasurePrefix.from_tokens(keys, values, components=components, rank=rank)
        return jnp.sum(out(prefix, query) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(keys, values)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert gradients[1].any()
    # no rounding error in a cluster that is a point is taken for a direction that it spreads in
    assert all(np.abs(gradient).max() < 1e3 for gradient in gradients)


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_gradients_of_fitting_equal_finite_differences(rank, x64):
    # of the float64 formulas, with the clusters and the directions of each held where they are
    rng = np.random.default_rng(8)
    keys, values, query = (
        rng.standard_normal((25, 1, 4)),
        rng.standard_normal((25, 1, 5)),
        rng.standard_normal((1, 3, 1, 4)),
    )
    moves = rng.standard_normal(keys.shape), rng.standard_normal(values.shape)
    nothing = np.zeros((1, 0, 1, 4)), np.zeros((1, 0, 1, 5))
    options = {"components": 3, "iterations": 10}
    weights = rng.standard_normal((1, 3, 1, 5))

    def loss(keys, values):
        prefix = MeasurePrefix.from_tokens(keys, values, rank=rank, **options)
        return jnp.vdot(weights, attention(jnp.asarray(query), *map(jnp.asarray, nothing), prefix=prefix))

    centres = np.asarray(MeasurePrefix.from_tokens(jnp.asarray(keys), jnp.asarray(values), **options).mean)[:, 0]
    labels = np.argmin(((keys - centres[None, :, :]) ** 2).sum(axis=-1), axis=1)
    assert min(np.bincount(labels, minlength=3)) > 4
    directions = [np.linalg.eigh(np.cov(keys[labels == c, 0].T, bias=True))[1][:, 4 - rank :] for c in range(3)]

    def expected(step):
        moved_keys, moved_values = keys[:, 0] + step * moves[0][:, 0], values[:, 0] + step * moves[1][:, 0]
        moments = []
        for c in range(3):
            p, u, d = moved_keys[labels == c], moved_values[labels == c], directions[c]
            p_spread, u_spread = p - p.mean(axis=0), u - u.mean(axis=0)
            variances = np.diag(np.diag(d.T @ p_spread.T @ p_spread @ d)) / len(p)
            covariance, cross = d @ variances @ d.T, u_spread.T @ p_spread / len(p) @ d @ d.T
            moments.append((np.log(len(p)), p.mean(axis=0), covariance, u.mean(axis=0), cross))
        share = oracle.measure(*(np.stack(moment)[:, None] for moment in zip(*moments, strict=True)))
        return np.vdot(weights, oracle.attention(query, *nothing, prefix=share))

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(keys), jnp.asarray(values))
    np.testing.assert_allclose(value, expected(0), rtol=1e-10)
    slope = sum(np.vdot(gradient, move) for gradient, move in zip(gradients, moves, strict=True))
    np.testing.assert_allclose(slope, (expected(1e-5) - expected(-1e-5)) / 2e-5, rtol=1e-6)
