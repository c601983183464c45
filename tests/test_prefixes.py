"""Feature states and tokens: built, added, subtracted, batched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prefix_outputs import QUERY, normal, out

from ntkprefix import FeaturePrefix, MeasurePrefix, TokenPrefix, attention, feature_map

MAPS = {
    "elu": feature_map("elu"),
    "taylor": feature_map("taylor", degree=2),
    "favor": feature_map("favor", features=24, key=jax.random.key(7)),
}


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


def test_a_remembered_scale_passes_through_transformations(compiled):
    keys, values = normal(3, 30, 2, 6), normal(3, 30, 2, 5)

    @jax.jit
    def per_layer(keys, values):
        return jax.vmap(lambda k, v: FeaturePrefix.from_tokens(k, v, scale=0.25))(keys, values)

    stacked = per_layer(keys, values)
    assert stacked.scale == per_layer(keys + 1, values).scale == 0.25
    assert compiled.count("per_layer") == 1
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
def test_a_traced_scale(name, compiled):
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
    assert compiled.count("attended") == 1
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


def test_states_of_two_dtypes_add_in_the_wider():
    keys, values = normal(30, 2, 6), normal(30, 2, 5)
    state = FeaturePrefix.from_tokens(keys, values, recentre=False)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    both = rounded + state
    assert both.Z.dtype == both.k.dtype == both.log_scale.dtype == jnp.float32
    np.testing.assert_allclose(out(both), out(state), atol=0.05)


@pytest.mark.parametrize("kind", [TokenPrefix, FeaturePrefix, MeasurePrefix])
def test_the_table_of_axes_has_every_array_and_is_no_field(kind):
    fields = [field.name for field in dataclasses.fields(kind) if not field.metadata.get("static")]
    assert list(kind.axes) == [name for name in fields if name != "feature_map"]
