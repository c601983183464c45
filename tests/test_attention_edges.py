"""`attention` where numbers, shapes or masks are extreme."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import HV, KEY, MASK, PREFIXES, QUERY, VALUE, B, H, K, N, S, T, as_oracle, clouds, normal

from ntkprefix import FeaturePrefix, MeasurePrefix, TokenPrefix, attention, feature_map


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["tokens", "measure", "elu", "taylor", "favor"])
@pytest.mark.parametrize("heavier", ["input", "prefix"])
def test_extreme_logits(kind, dtype, heavier):
    # One direction carries logits of 1e4 for one side and -1e4 for the other: the heavier side takes all the weight.
    size, sign = 100 * H**0.25, 1 if heavier == "prefix" else -1
    direction = np.eye(H)[0]
    query = jnp.asarray(np.broadcast_to(size * direction, (1, 2, 2, H)), dtype)
    key = jnp.asarray(np.broadcast_to(-sign * size * direction, (1, 3, 1, H)), dtype)
    keys = jnp.asarray(np.broadcast_to(sign * size * direction, (4, 1, H)), jnp.float32)
    value, values = jnp.ones((1, 3, 1, HV), dtype), 2 * jnp.ones((4, 1, HV), jnp.float32)
    prefix = {
        "tokens": lambda: TokenPrefix(keys, values),
        "measure": lambda: MeasurePrefix.from_tokens(keys, values, components=2, rank=1),
        "elu": lambda: FeaturePrefix.from_tokens(keys, values, recentre=True),
        "taylor": lambda: FeaturePrefix.from_tokens(keys, values, feature_map=feature_map("taylor", degree=2)),
        "favor": lambda: FeaturePrefix.from_tokens(
            keys, values, feature_map=feature_map("favor", features=16, key=jax.random.key(0))
        ),
    }[kind]()
    out, gradient = jax.jit(
        jax.value_and_grad(lambda p: attention(query, key, value, prefix=p).astype(jnp.float32).sum())
    )(prefix)
    expected = {"prefix": 2.0, "input": 1.0}[heavier] * 2 * 2 * HV
    np.testing.assert_allclose(out, expected, rtol=1e-2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_extreme_logits_without_a_prefix(dtype):
    query = jnp.full((1, 1, 1, 4), 100.0, dtype)
    key = jnp.asarray([50.0, -50.0], dtype).reshape(1, 2, 1, 1) * jnp.ones((1, 1, 1, 4), dtype)
    value = jnp.asarray([3.0, 7.0], dtype).reshape(1, 2, 1, 1)
    assert attention(query, key, value).item() == 3.0


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_fully_masked_rows(prefix_name):
    prefix = PREFIXES[prefix_name]()
    mask = MASK.at[0, :, 2].set(False)

    def loss(query, key, value, prefix):
        return jnp.sum(jnp.sin(attention(query, key, value, prefix=prefix, mask=mask)))

    share = as_oracle(prefix)
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=share, mask=np.asarray(mask))
    np.testing.assert_allclose(attention(QUERY, KEY, VALUE, prefix=prefix, mask=mask), expected, rtol=2e-5, atol=2e-6)
    gradients = jax.grad(loss, argnums=(0, 1, 2))(QUERY, KEY, VALUE, prefix)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    if prefix is None:
        assert not expected[0, 2].any()
        assert not gradients[0][0, 2].any()


@pytest.mark.parametrize("prefix_name", [name for name in PREFIXES if name != "none"])
def test_no_input_keys(prefix_name):
    prefix = PREFIXES[prefix_name]()
    ours = attention(QUERY, KEY[:, :0], VALUE[:, :0], prefix=prefix)
    expected = oracle.attention(QUERY, KEY[:, :0], VALUE[:, :0], prefix=as_oracle(prefix))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("log_scale", [None, 30.0, -30.0])
def test_a_no_op_state_changes_nothing_and_learns(log_scale):
    scale = None if log_scale is None else jnp.full((K,), log_scale)
    prefix = FeaturePrefix(jnp.zeros((K, H, HV)), jnp.zeros((K, H)), log_scale=scale)
    base = attention(QUERY, KEY, VALUE)
    assert (attention(QUERY, KEY, VALUE, prefix=prefix) == base).all()
    gradient = jax.grad(lambda p: jnp.sum(attention(QUERY, KEY, VALUE, prefix=p) ** 2))(prefix)
    assert (gradient.Z != 0).all()
    assert (gradient.k != 0).all()


@pytest.mark.parametrize("log_sum_exp", [-120.0, -60.0, 60.0])
def test_an_additive_memory_never_silences_the_input(log_sum_exp):
    # Where the memory's scale is far above the input's, the input's denominator must not underflow against it.
    bias = jnp.full((1, 1, T, S), log_sum_exp)
    memory = FeaturePrefix(1e-30 * jnp.ones((K, H, HV)), jnp.zeros((K, H)))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), memory)
    share = oracle.per_kv_head(oracle.elu_features(double.Z, double.k), N // K)
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=share, bias=np.asarray(bias))
    ours = attention(QUERY, KEY, VALUE, prefix=memory, bias=bias)
    if log_sum_exp > -100:  # beyond e^80 the memory's weight is capped, and its gradient may overflow
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)
        gradient = jax.grad(lambda p: jnp.sum(attention(QUERY, KEY, VALUE, prefix=p, bias=bias)))(memory)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert ours.any(axis=-1).all()
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_no_queries_and_no_rows(prefix_name):
    prefix = PREFIXES[prefix_name]()

    def loss(query, key, value, prefix):
        out, residual = attention(query, key, value, prefix=prefix, is_causal=True, return_residual=True)
        assert out.shape == (*query.shape[:-1], HV)
        assert residual.shape == query.shape[:-1]
        return out.sum() + residual.sum()

    inputs = [(QUERY[:, :0], KEY, VALUE)]
    if prefix is None or prefix.shape().rows is None:
        inputs.append((QUERY[:0], KEY[:0], VALUE[:0]))
    for arrays in inputs:
        gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays, prefix)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("window", [(2**31 - 1, 2**31 - 1), (2**40, 0), 2**62])
def test_a_window_beyond_every_key_hides_none(window):
    for offset in (0, 10):
        options = {"query_offset": offset, "is_causal": True}
        ours = attention(QUERY, KEY, VALUE, local_window_size=window, **options)
        np.testing.assert_array_equal(ours, attention(QUERY, KEY, VALUE, **options))


def test_no_clouds_are_no_prefix():
    for prefix in (clouds(components=0), jax.tree.map(lambda leaf: jnp.stack([leaf] * B), clouds(components=0))):
        ours = attention(QUERY, KEY, VALUE, prefix=prefix)
        np.testing.assert_allclose(ours, attention(QUERY, KEY, VALUE), atol=1e-6)


def test_offsets_near_the_largest_integer_hide_no_key():
    everything = attention(QUERY, KEY, VALUE)
    for window in (None, 2**31 - 1):
        ours = attention(QUERY, KEY, VALUE, is_causal=True, query_offset=2**31 - 2, local_window_size=window)
        np.testing.assert_array_equal(ours, everything)


@pytest.mark.parametrize("prefix_name", [name for name in PREFIXES if name != "none"])
def test_a_float64_prefix_of_a_float32_model(prefix_name, x64):
    prefix = jax.tree.map(lambda x: x.astype(jnp.float64), PREFIXES[prefix_name]())
    ours = attention(QUERY, KEY, VALUE, prefix=prefix)
    assert ours.dtype == jnp.float32
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=as_oracle(prefix))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_a_prefix_is_not_rounded_to_the_querys_float16():
    query, key = jnp.full((1, 1, 1, 4), 1e-4, jnp.float16), jnp.zeros((1, 0, 1, 4), jnp.float16)
    prefix = TokenPrefix(jnp.full((1, 1, 4), 7e4), jnp.ones((1, 1, 4)))
    assert attention(query, key, key, prefix=prefix).tolist() == [[[[1.0] * 4]]]
    large = TokenPrefix(jnp.zeros((1, 1, 4), jnp.float16), jnp.full((1, 1, 4), 7e4))  # so do a value
    light_query = jnp.zeros((1, 1, 1, 4), jnp.float16)
    out = attention(light_query, light_query, light_query, prefix=large)
    assert out.tolist() == [[[[35008.0] * 4]]]  # 35,000 in float16
    # 200,000 tokens of relative weight e^-18 each: together 0.3 of one heavy token's neighbour
    light = TokenPrefix(jnp.zeros((200_000, 1, 4), jnp.float16), jnp.ones((200_000, 1, 4), jnp.float16))
    one = jnp.ones((1, 1, 1, 4), jnp.float16)
    out = attention(one * 3, one * 3, 0 * one, prefix=light)
    np.testing.assert_allclose(np.asarray(out, np.float32), 2e5 / (2e5 + np.exp(18)), rtol=2e-3)


def test_an_additive_memory_stays_outside_the_normaliser():
    memory = FeaturePrefix(normal(K, H, HV), jnp.zeros((K, H)))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), memory)
    share = oracle.per_kv_head(oracle.elu_features(double.Z, double.k), N // K)
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=share)
    np.testing.assert_allclose(attention(QUERY, KEY, VALUE, prefix=memory), expected, rtol=2e-5, atol=2e-6)


def test_the_residual_where_there_is_no_logarithm():
    nothing = KEY[:, :0], VALUE[:, :0]
    negative = FeaturePrefix(normal(K, H, HV), -jnp.ones((K, H)))
    assert jnp.isnan(attention(QUERY, *nothing, prefix=negative, return_residual=True)[1]).all()
    memory = FeaturePrefix(normal(K, H, HV), jnp.zeros((K, H)))  # outside the normaliser: adds no mass
    assert (attention(QUERY, *nothing, prefix=memory, return_residual=True)[1] == -jnp.inf).all()
    ours, plain = (attention(QUERY, KEY, VALUE, prefix=p, return_residual=True)[1] for p in (memory, None))
    np.testing.assert_array_equal(ours, plain)
