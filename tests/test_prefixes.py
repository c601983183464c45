"""The prefix kinds: built from tokens, added, subtracted, batched."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy.optimize import nnls

from ntkprefix import FeaturePrefix, MeasurePrefix, TokenPrefix, attention, feature_map
from ntkprefix.clusters import kmeans
from ntkprefix.prefixes.least_squares import fit_state

RNG = np.random.default_rng(1)
MAPS = {
    "elu": feature_map("elu"),
    "taylor": feature_map("taylor", degree=2),
    "favor": feature_map("favor", features=24, key=jax.random.key(7)),
}


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


QUERY = normal(2, 4, 4, 6)


def out(prefix, query=QUERY, scale=None):
    """The prefix's own output: attention with no input keys."""
    batch, _, _, width = query.shape
    empty = jnp.zeros((batch, 0, 2, width)), jnp.zeros((batch, 0, 2, 5))
    return attention(query, *empty, prefix=prefix, scale=scale)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("recentre", [True, False])
@pytest.mark.parametrize("length", [1, 511, 512, 513, 1500])
def test_from_tokens_is_the_plain_sum(name, recentre, length):
    keys, values = normal(length, 2, 6, scale=0.5), normal(length, 2, 5)
    state = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS[name], recentre=recentre)
    centre = np.asarray(keys).mean(axis=0) if recentre else 0
    phi, log_scale = MAPS[name](jnp.asarray((np.asarray(keys) - centre) * 6**-0.25))
    phi = np.asarray(phi, np.float64) * np.exp(np.asarray(log_scale, np.float64))[..., None]
    scale = np.exp(np.asarray(state.log_scale, np.float64))
    np.testing.assert_allclose(state.k * scale[:, None], phi.sum(axis=0), rtol=2e-5, atol=2e-6 * phi.max() * length)
    expected = np.einsum("mkr,mkh->krh", phi, np.asarray(values, np.float64))
    np.testing.assert_allclose(state.Z * scale[:, None, None], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", MAPS)
def test_appending_and_subtracting_documents(name):
    keys, values = normal(90, 2, 6), normal(90, 2, 5)
    whole = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS[name])
    first = FeaturePrefix.from_tokens(keys[:60], values[:60], feature_map=MAPS[name], centre=whole.centre)
    second = FeaturePrefix.from_tokens(keys[60:], values[60:], feature_map=MAPS[name], centre=whole.centre)
    for same in (first + second, second + first, first.append(keys[60:], values[60:])):
        np.testing.assert_allclose(out(same), out(whole), atol=2e-5)
    np.testing.assert_allclose(out(whole - second), out(first), atol=2e-4)


def test_a_state_remembers_its_scale():
    keys, values = normal(30, 2, 6), normal(30, 2, 5)
    state = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS["taylor"], scale=0.25)
    longer = state.append(keys, values)  # at 0.25, without being told
    twice = FeaturePrefix.from_tokens(
        jnp.concatenate([keys, keys]), jnp.concatenate([values, values]), feature_map=MAPS["taylor"], scale=0.25
    )
    np.testing.assert_allclose(out(longer, scale=0.25), out(twice, scale=0.25), atol=2e-5)
    np.testing.assert_allclose(out(longer - state, scale=0.25), out(state, scale=0.25), atol=2e-4)
    # a number in float32 is the same number; a trained state has none, and takes the other's when added
    np.testing.assert_allclose(out(state, scale=jnp.float32(0.25)), out(state, scale=0.25))
    trained = FeaturePrefix(state.Z, state.k, MAPS["taylor"], state.log_scale, state.centre)
    assert (state.scale, longer.scale, (trained + state).scale, trained.scale) == (0.25, 0.25, 0.25, None)
    assert out(trained, scale=0.7).shape == out(trained).shape


def test_a_remembered_scale_passes_through_transformations():
    keys, values = normal(3, 30, 2, 6), normal(3, 30, 2, 5)

    @jax.jit
    def per_layer(keys, values):
        return jax.vmap(lambda k, v: FeaturePrefix.from_tokens(k, v, scale=0.25))(keys, values)

    stacked = per_layer(keys, values)
    assert stacked.scale == per_layer(keys + 1, values).scale == 0.25
    assert per_layer._cache_size() == 1
    scanned = jax.lax.scan(lambda _, p: (None, out(p, scale=0.25)), None, stacked)[1]
    layers = [FeaturePrefix.from_tokens(keys[i], values[i], scale=0.25) for i in range(3)]
    np.testing.assert_allclose(scanned, jnp.stack([out(layer, scale=0.25) for layer in layers]), atol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(out(p, scale=0.25) ** 2))(layers[0])
    assert gradient.scale == 0.25
    with pytest.raises(ValueError, match="which the state was built with"):
        jax.jit(out)(layers[0])
    # appended to inside a loop, a state keeps its structure
    whole = jax.lax.scan(lambda state, kv: (state.append(*kv), None), layers[0], (keys[1:], values[1:]))[0]
    at_once = FeaturePrefix.from_tokens(
        keys.reshape(90, 2, 6), values.reshape(90, 2, 5), centre=layers[0].centre, scale=0.25
    )
    np.testing.assert_allclose(out(whole, scale=0.25), out(at_once, scale=0.25), atol=1e-5)


@pytest.mark.parametrize("name", MAPS)
def test_a_traced_scale(name):
    keys, values = normal(30, 2, 6, scale=0.5), normal(30, 2, 5)
    inputs = QUERY, normal(2, 3, 2, 6), normal(2, 3, 2, 5)

    @jax.jit
    def attended(scale):
        state = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS[name], scale=scale)
        assert state.scale is None
        state = state.append(keys[:7], values[:7], scale=scale)
        return attention(*inputs, prefix=state, scale=scale)

    def expected(scale):
        state = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS[name], scale=scale)
        return np.asarray(attention(*inputs, prefix=state.append(keys[:7], values[:7]), scale=scale), np.float64)

    for scale in (0.3, 0.7):
        np.testing.assert_allclose(attended(scale), expected(scale), atol=2e-6)
    assert attended._cache_size() == 1
    slope = jax.jvp(attended, (0.5,), (1.0,))[1]
    by_differences = (expected(0.5 + 1e-2) - expected(0.5 - 1e-2)) / 2e-2
    np.testing.assert_allclose(slope, by_differences, atol=2e-3 * np.abs(by_differences).max())
    weights = normal(*slope.shape)
    gradient = jax.grad(lambda scale: jnp.vdot(weights, attended(scale)))(0.5)
    np.testing.assert_allclose(gradient, jnp.vdot(weights, slope), rtol=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_appending_to_nothing_is_building(name):
    # features of keys this long are e^-300 and less: a zero state's scale of 0 must not swallow them
    keys, values = normal(30, 2, 6, scale=15.0), normal(30, 2, 5)
    built = FeaturePrefix.from_tokens(keys, values, feature_map=MAPS[name], recentre=False)
    empty = FeaturePrefix.from_tokens(keys[:0], values[:0], feature_map=MAPS[name], recentre=False)
    query = QUERY * 0.1
    for same in (empty.append(keys, values), empty + built, built + empty):
        np.testing.assert_allclose(out(same, query), out(built, query), rtol=1e-4, atol=1e-5)
    assert np.isfinite((empty + empty).Z).all()


def test_a_state_of_a_hundred_thousand_tokens_needs_memory_for_a_chunk():
    def build(keys, values):
        return FeaturePrefix.from_tokens(keys, values, feature_map=MAPS["taylor"])

    def temporary(length):
        arrays = jax.ShapeDtypeStruct((length, 2, 6), jnp.float32), jax.ShapeDtypeStruct((length, 2, 5), jnp.float32)
        return jax.jit(build).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporary(100_000) <= 1.1 * temporary(2_000) + 4096


def test_building_and_using_a_state_is_differentiable():
    keys, values = normal(20, 2, 6), normal(20, 2, 5)

    def loss(keys, values):
        return jnp.sum(out(FeaturePrefix.from_tokens(keys, values, feature_map=MAPS["favor"])) ** 2)

    gradients = jax.grad(loss, argnums=(0, 1))(keys, values)
    direction = normal(20, 2, 6)
    step = 1e-3
    slope = (loss(keys + step * direction, values) - loss(keys - step * direction, values)) / (2 * step)
    np.testing.assert_allclose(jnp.vdot(gradients[0], direction), slope, rtol=2e-2)
    assert np.isfinite(gradients[1]).all()


@pytest.mark.parametrize("kind", ["features", "measure"])
def test_one_state_per_row(kind):
    keys, values = normal(2, 30, 2, 6), normal(2, 30, 2, 5)
    build = {
        "features": lambda k, v: FeaturePrefix.from_tokens(k, v, feature_map=MAPS["taylor"]),
        "measure": lambda k, v: MeasurePrefix.from_tokens(k, v, components=3, rank=2),
    }[kind]
    together = out(build(keys, values))
    for row in range(2):
        np.testing.assert_allclose(
            together[row], out(build(keys[row], values[row]), QUERY[row : row + 1])[0], atol=1e-5
        )


def test_a_state_without_tokens_is_a_no_op():
    prefix = FeaturePrefix.from_tokens(normal(0, 2, 6), normal(0, 2, 5))
    key, value = normal(2, 3, 2, 6), normal(2, 3, 2, 5)
    np.testing.assert_array_equal(attention(QUERY, key, value, prefix=prefix), attention(QUERY, key, value))


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


def test_states_of_two_dtypes_add_in_the_wider():
    keys, values = normal(30, 2, 6), normal(30, 2, 5)
    state = FeaturePrefix.from_tokens(keys, values, recentre=False)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    both = rounded + state
    assert both.Z.dtype == both.k.dtype == both.log_scale.dtype == jnp.float32
    np.testing.assert_allclose(out(both), out(state), atol=0.05)


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


def fitted(keys, values, query, log_mass, centre, log_scale, dtype=jnp.float32, **options):
    tokens = TokenPrefix(jnp.asarray(keys, dtype), jnp.asarray(values, dtype))
    query, log_mass = jnp.asarray(query, dtype), jnp.asarray(log_mass, dtype)
    centre, log_scale = jnp.asarray(centre, jnp.float32), jnp.asarray(log_scale, jnp.float32)
    options = {"feature_map": MAPS["elu"], "centre": centre, "log_scale": log_scale} | options
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
