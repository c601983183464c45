"""`attention` against jax.nn, a float64 oracle, the official code, and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import (
    HV,
    KEY,
    MASK,
    OPTIONS,
    PREFIXES,
    QUERY,
    SQUARE,
    VALUE,
    B,
    H,
    K,
    N,
    S,
    T,
    as_oracle,
    normal,
    state,
    tokens,
)
from places import GOLDEN, SHARED

from ntkprefix import FeaturePrefix, Partial, attention, feature_map, merge
from ntkprefix.kernels import EVERYWHERE

IN_EVERY_DTYPE = [("xla", jnp.float32), ("xla", jnp.bfloat16), ("xla", jnp.float16), ("blockwise", jnp.float32)]


def test_no_implementation_is_left_out():
    assert {name for name, _ in IN_EVERY_DTYPE} == set(EVERYWHERE)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("implementation", "dtype"), IN_EVERY_DTYPE)
def test_without_a_prefix_equals_jax(name, implementation, dtype, relaxed):
    query, key, value = (x.astype(dtype) for x in (QUERY, KEY, normal(B, S, K, H)))
    ours = attention(query, key, value, implementation=implementation, **OPTIONS[name])
    theirs = jax.nn.dot_product_attention(query, key, value, **OPTIONS[name])
    if name == "query lengths":  # jax.nn zeroes those rows, as documented here
        assert not np.asarray(ours, np.float32)[1, 4:].any()
    assert ours.dtype == dtype
    tolerance = {jnp.float32: 2e-6, jnp.bfloat16: 3e-2, jnp.float16: 4e-3}[dtype]
    np.testing.assert_allclose(np.asarray(ours, np.float32), np.asarray(theirs, np.float32), atol=tolerance)


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "query lengths"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_residual_without_a_prefix_equals_jax(name, dtype, relaxed):
    query, key, value = (x.astype(dtype) for x in (QUERY, KEY, normal(B, S, K, H)))
    out, ours = attention(query, key, value, return_residual=True, **OPTIONS[name])
    theirs = jax.nn.dot_product_attention(query, key, value, return_residual=True, **OPTIONS[name])[1]
    assert ours.shape == theirs.shape == (B, T, N)
    assert ours.dtype == jnp.float32  # theirs is rounded to the key's
    np.testing.assert_allclose(ours, theirs.astype(jnp.float32), rtol=2e-6 if dtype == jnp.float32 else 1e-2, atol=2e-6)
    np.testing.assert_array_equal(out, attention(query, key, value, **OPTIONS[name]))


def test_without_a_batch_axis_equals_jax(relaxed):
    value = normal(S, K, H)
    ours = attention(QUERY[0], KEY[0], value, mask=MASK[0], is_causal=True)
    options = {"mask": MASK[0], "is_causal": True, "return_residual": True}
    theirs, residual = jax.nn.dot_product_attention(QUERY[0], KEY[0], value, **options)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)
    np.testing.assert_allclose(attention(QUERY[0], KEY[0], value, **options)[1], residual, rtol=2e-6)


@pytest.mark.parametrize("prefix_name", PREFIXES)
@pytest.mark.parametrize("name", ["plain", "all", "bias"])
@pytest.mark.parametrize("implementation", EVERYWHERE)
def test_equals_the_oracle(prefix_name, name, implementation):
    prefix = PREFIXES[prefix_name]()
    options = dict(OPTIONS[name])
    ours = attention(QUERY, KEY, VALUE, prefix=prefix, implementation=implementation, **options)
    renamed = {"key_value_seq_lengths": "kv_len", "local_window_size": "window"}
    options = {
        renamed.get(k, k): (v if isinstance(v, (bool, float, tuple)) else np.asarray(v)) for k, v in options.items()
    }
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=as_oracle(prefix), **options)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_a_residual_merges_with_more_keys():
    first, second = slice(0, 4), slice(4, S)
    halves = [
        attention(QUERY, KEY[:, keys], VALUE[:, keys], mask=MASK[..., keys], return_residual=True)
        for keys in (first, second)
    ]
    shares = [Partial(out, jnp.ones_like(residual), residual) for out, residual in halves]
    whole, residual = attention(QUERY, KEY, VALUE, mask=MASK, return_residual=True)
    np.testing.assert_allclose(merge(*shares).normalise(), whole, atol=2e-6)
    np.testing.assert_allclose(merge(*shares).log_mass(), residual, rtol=2e-6)


def test_taylor_state_equals_the_truncated_exponential():
    keys, values = normal(40, K, H, scale=0.5), normal(40, K, HV)
    prefix = FeaturePrefix.from_tokens(keys, values, feature_map=feature_map("taylor", degree=4))
    share = oracle.per_kv_head(oracle.taylor_features(keys, values, 4), N // K)
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=share)
    np.testing.assert_allclose(attention(QUERY, KEY, VALUE, prefix=prefix), expected, rtol=2e-5, atol=5e-6)


# Outputs of the authors' PyTorch release of NTK-Attention for random inputs, [B, N, T, H]. The committed file is a part
# of a larger one, rows and heads of four of its six cases (they do not depend on each other): 0 and 2 are causal.
OFFICIAL = {"committed": GOLDEN, "whole": SHARED / "golden"}


@pytest.mark.parametrize(
    ("source", "case"), [("committed", case) for case in range(4)] + [("whole", case) for case in range(6)]
)
def test_equals_the_official_code(source, case):
    path = OFFICIAL[source] / "ntk_attention_reference.npz"
    if source == "whole" and not path.exists():
        pytest.skip("the whole of the official code's outputs is not beside this checkout")
    with np.load(path) as archive:
        golden = {name: archive[f"case{case}/{name}"] for name in ("q", "k", "v", "sum_phi_k", "sum_phi_kv", "out")}
        causal = bool(archive[f"case{case}/causal"])
    query, key, value, expected = (jnp.asarray(np.swapaxes(golden[name], 1, 2)) for name in ("q", "k", "v", "out"))
    prefix = FeaturePrefix(jnp.asarray(golden["sum_phi_kv"][0]), jnp.abs(jnp.asarray(golden["sum_phi_k"][0, :, :, 0])))
    ours = attention(query, key, value, prefix=prefix, is_causal=causal, query_offset=key.shape[1] - query.shape[1])
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("offset", [S - T, jnp.array(S - T), jnp.array([0, S - T])])
def test_query_offset(offset):
    options = {"is_causal": True, "prefix": tokens()}
    ours = attention(QUERY, KEY, VALUE, query_offset=offset, **options)
    expected = oracle.attention(
        QUERY, KEY, VALUE, prefix=as_oracle(options["prefix"]), is_causal=True, offset=np.asarray(offset)
    )
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_decoding_step_by_step_equals_the_whole(compiled):
    query, key = SQUARE
    prefix = state()
    whole = attention(query, key, VALUE[:, :T], prefix=prefix, is_causal=True)

    @jax.jit
    def step(t):
        row = jax.lax.dynamic_slice_in_dim(query, t, 1, axis=1)
        return attention(row, key, VALUE[:, :T], prefix=prefix, is_causal=True, query_offset=t)

    steps = [step(t) for t in range(T)]
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, atol=1e-6)
    assert compiled.count("step") == 1
