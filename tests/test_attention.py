"""`attention` against jax.nn, a float64 oracle, the official code, and its own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import GOLDEN, SHARED

from ntkprefix import FeaturePrefix, MeasurePrefix, Partial, TokenPrefix, attention, feature_map, merge

B, T, S, N, K, H, HV = 2, 5, 7, 4, 2, 8, 6
RNG = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


QUERY, KEY, VALUE = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, HV)
SQUARE = normal(B, T, K, H), normal(B, T, K, H)
MASK = jnp.asarray(RNG.random((B, N, T, S)) < 0.6).at[..., 0].set(True)

# Options of jax.nn.dot_product_attention: (name, options). No row may be fully masked, where the two differ on purpose.
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"bias": normal(B, N, T, S)},
    "bias over heads": {"bias": normal(1, 1, T, S)},
    "mask": {"mask": MASK},
    "mask over rows": {"mask": MASK[:1, :1]},
    "causal": {"is_causal": True},
    "window": {"local_window_size": (2, 1)},
    "symmetric window": {"local_window_size": 2},
    "causal window": {"is_causal": True, "local_window_size": (2, 0)},
    "key lengths": {"key_value_seq_lengths": jnp.array([3, 7], jnp.int32)},
    "query lengths": {"query_seq_lengths": jnp.array([5, 4], jnp.int32)},
    "all": {
        "bias": normal(B, 1, T, S),
        "mask": MASK,
        "is_causal": True,
        "scale": 0.5,
        "key_value_seq_lengths": jnp.array([6, 5], jnp.int32),
        "local_window_size": (9, 3),
    },
}


def tokens(rows=None, length=9, dtype=jnp.float32):
    lead = () if rows is None else (rows,)
    keys, values = normal(*lead, length, K, H), normal(*lead, length, K, HV)
    return TokenPrefix(keys.astype(dtype), values.astype(dtype), normal(*lead, length, K))


def clouds(components=3, rank=2):
    return MeasurePrefix(
        normal(components, K),
        normal(components, K, H),
        normal(components, K, H, rank, scale=0.3),
        normal(components, K, HV),
        normal(components, K, HV, rank),
    )


def state(heads=K):
    return FeaturePrefix(normal(heads, H, HV), jnp.abs(normal(heads, H)), log_scale=normal(heads))


def as_oracle(prefix):
    """The same prefix as explicit float64 formulas."""
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), prefix)
    match prefix:
        case TokenPrefix():
            return oracle.per_kv_head(oracle.tokens(double.keys, double.values, double.log_weights), N // K)
        case MeasurePrefix():
            covariance = np.einsum("ckhr,ckgr->ckhg", double.factor, double.factor)
            cross = np.einsum("ckvr,ckhr->ckvh", double.cross, double.factor)
            share = oracle.measure(double.log_weight, double.mean, covariance, double.value, cross)
            return oracle.per_kv_head(share, N // K)
        case FeaturePrefix():
            share = oracle.elu_features(double.Z, double.k, double.log_scale)
            return oracle.per_kv_head(share, N // len(double.Z))
    return None


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_without_a_prefix_equals_jax(name, dtype, relaxed):
    query, key, value = (x.astype(dtype) for x in (QUERY, KEY, normal(B, S, K, H)))
    ours = attention(query, key, value, **OPTIONS[name])
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


PREFIXES = {
    "none": lambda: None,
    "tokens": tokens,
    "tokens per row": lambda: tokens(rows=B),
    "no tokens": lambda: tokens(length=0),
    "measure": clouds,
    "measure without covariance": lambda: clouds(rank=0),
    "features per kv head": state,
    "features per query head": lambda: state(heads=N),
}


@pytest.mark.parametrize("prefix_name", PREFIXES)
@pytest.mark.parametrize("name", ["plain", "all", "bias"])
def test_equals_the_oracle(prefix_name, name):
    prefix = PREFIXES[prefix_name]()
    options = dict(OPTIONS[name])
    ours = attention(QUERY, KEY, VALUE, prefix=prefix, **options)
    renamed = {"key_value_seq_lengths": "kv_len", "local_window_size": "window"}
    options = {
        renamed.get(k, k): (v if isinstance(v, (bool, float, tuple)) else np.asarray(v)) for k, v in options.items()
    }
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=as_oracle(prefix), **options)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_the_residual_and_its_gradient_equal_the_oracles(prefix_name):
    # one row sees nothing of the input: without a prefix its residual is -inf
    prefix, mask = PREFIXES[prefix_name](), MASK.at[0, :, 2].set(False)
    leaves, structure = jax.tree.flatten((QUERY, KEY, prefix))
    tangents = [normal(*leaf.shape) for leaf in leaves]
    weights = np.asarray(normal(B, T, N))

    def expected(step):
        moved = [
            np.asarray(x, np.float64) + step * np.asarray(v, np.float64) for x, v in zip(leaves, tangents, strict=True)
        ]
        query, key, prefix = jax.tree.unflatten(structure, moved)
        return oracle.attention_and_residual(query, key, VALUE, prefix=as_oracle(prefix), mask=np.asarray(mask))[1]

    @jax.jit
    def residual(query, key, prefix):
        return attention(query, key, VALUE, prefix=prefix, mask=mask, return_residual=True)[1]

    ours = residual(QUERY, KEY, prefix)
    assert np.isneginf(expected(0)).any() == (prefix_name in ("none", "no tokens"))
    np.testing.assert_allclose(ours, expected(0), rtol=2e-6, atol=2e-6)
    visible = np.isfinite(expected(0))

    def loss(query, key, prefix):
        return jnp.sum(jnp.where(visible, residual(query, key, prefix), 0.0) * jnp.asarray(weights))

    gradients = jax.tree.leaves(jax.grad(loss, argnums=(0, 1, 2))(QUERY, KEY, prefix))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    slope = sum(np.vdot(np.asarray(g, np.float64), np.asarray(v)) for g, v in zip(gradients, tangents, strict=True))
    up, down = (np.where(visible, expected(step), 0) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, np.vdot(weights, (up - down) / 2e-5), rtol=2e-4)


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


def test_the_residual_where_there_is_no_logarithm():
    nothing = KEY[:, :0], VALUE[:, :0]
    negative = FeaturePrefix(normal(K, H, HV), -jnp.ones((K, H)))
    assert jnp.isnan(attention(QUERY, *nothing, prefix=negative, return_residual=True)[1]).all()
    memory = FeaturePrefix(normal(K, H, HV), jnp.zeros((K, H)))  # outside the normaliser: adds no mass
    assert (attention(QUERY, *nothing, prefix=memory, return_residual=True)[1] == -jnp.inf).all()
    ours, plain = (attention(QUERY, KEY, VALUE, prefix=p, return_residual=True)[1] for p in (memory, None))
    np.testing.assert_array_equal(ours, plain)


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


@pytest.mark.parametrize("offset", [S - T, jnp.array(S - T), jnp.array([0, S - T])])
def test_query_offset(offset):
    options = {"is_causal": True, "prefix": tokens()}
    ours = attention(QUERY, KEY, VALUE, query_offset=offset, **options)
    expected = oracle.attention(
        QUERY, KEY, VALUE, prefix=as_oracle(options["prefix"]), is_causal=True, offset=np.asarray(offset)
    )
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def test_decoding_step_by_step_equals_the_whole():
    query, key = SQUARE
    prefix = state()
    whole = attention(query, key, VALUE[:, :T], prefix=prefix, is_causal=True)
    step = jax.jit(
        lambda t: attention(
            jax.lax.dynamic_slice_in_dim(query, t, 1, axis=1),
            key,
            VALUE[:, :T],
            prefix=prefix,
            is_causal=True,
            query_offset=t,
        )
    )
    steps = [step(t) for t in range(T)]
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, atol=1e-6)
    assert step._cache_size() == 1


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_transformations_agree(prefix_name):
    prefix = PREFIXES[prefix_name]()

    def loss(query, prefix):
        return jnp.sum(jnp.sin(attention(query, KEY, VALUE, prefix=prefix, is_causal=True)))

    plain = jax.value_and_grad(loss, argnums=(0, 1))(QUERY, prefix)
    for transformed in (jax.value_and_grad(loss, (0, 1)), jax.value_and_grad(jax.checkpoint(loss), (0, 1))):
        transformed = jax.jit(transformed)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), transformed(QUERY, prefix), plain
        )


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_a_traced_scale(prefix_name):
    prefix = PREFIXES[prefix_name]()
    share, weights = as_oracle(prefix), np.asarray(normal(B, T, N, HV))
    attended = jax.jit(lambda scale: attention(QUERY, KEY, VALUE, prefix=prefix, scale=scale))

    def expected(scale):
        return oracle.attention(QUERY, KEY, VALUE, prefix=share, scale=scale)

    for scale in (0.2, 0.5):
        np.testing.assert_allclose(attended(scale), expected(scale), rtol=2e-5, atol=2e-6)
    assert attended._cache_size() == 1
    gradient = jax.grad(lambda scale: jnp.vdot(jnp.asarray(weights), attended(scale)))(0.3)
    by_differences = np.vdot(weights, expected(0.3 + 1e-5) - expected(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient, by_differences, rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_gradients_equal_finite_differences_of_the_oracle(prefix_name):
    prefix = PREFIXES[prefix_name]()
    leaves, structure = jax.tree.flatten((QUERY, KEY, VALUE, prefix))
    tangents = [normal(*leaf.shape) for leaf in leaves]
    weights = np.asarray(normal(B, T, N, HV))

    def oracle_at(step):
        moved = [
            np.asarray(x, np.float64) + step * np.asarray(v, np.float64) for x, v in zip(leaves, tangents, strict=True)
        ]
        query, key, value, prefix = jax.tree.unflatten(structure, moved)
        return np.sum(weights * oracle.attention(query, key, value, prefix=as_oracle(prefix), is_causal=True))

    def ours(query, key, value, prefix):
        return jnp.sum(jnp.asarray(weights) * attention(query, key, value, prefix=prefix, is_causal=True))

    gradients = jax.tree.leaves(jax.jit(jax.grad(ours, argnums=(0, 1, 2, 3)))(QUERY, KEY, VALUE, prefix))
    slope = sum(np.vdot(np.asarray(g, np.float64), np.asarray(v)) for g, v in zip(gradients, tangents, strict=True))
    np.testing.assert_allclose(slope, (oracle_at(1e-5) - oracle_at(-1e-5)) / 2e-5, rtol=2e-4)


@pytest.mark.parametrize("prefix_name", ["tokens", "measure", "features per kv head"])
def test_stacked_prefixes_scan_and_vmap(prefix_name):
    prefixes = [PREFIXES[prefix_name]() for _ in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prefixes)
    one_by_one = jnp.stack([attention(QUERY, KEY, VALUE, prefix=prefix) for prefix in prefixes])
    scanned = jax.lax.scan(lambda _, p: (None, attention(QUERY, KEY, VALUE, prefix=p)), None, stacked)[1]
    mapped = jax.vmap(lambda p: attention(QUERY, KEY, VALUE, prefix=p))(stacked)
    np.testing.assert_allclose(scanned, one_by_one, atol=1e-6)
    np.testing.assert_allclose(mapped, one_by_one, atol=1e-6)


def test_a_prefix_per_row_equals_row_by_row():
    prefixes = [tokens() for _ in range(B)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *prefixes)
    rows = [attention(QUERY[i], KEY[i], VALUE[i], prefix=prefixes[i]) for i in range(B)]
    np.testing.assert_allclose(attention(QUERY, KEY, VALUE, prefix=together), jnp.stack(rows), atol=1e-6)


@pytest.mark.parametrize("prefix_name", [name for name in PREFIXES if name != "none"])
def test_second_call_does_not_compile_again(prefix_name):
    jitted = jax.jit(lambda query, prefix: attention(query, KEY, VALUE, prefix=prefix))
    jitted(QUERY, PREFIXES[prefix_name]())
    jitted(QUERY + 1, PREFIXES[prefix_name]())
    assert jitted._cache_size() == 1


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


@pytest.mark.parametrize("prefix_name", ["tokens per row", "measure per row", "features per row"])
def test_layers_of_a_prefix_per_row_vmap_and_scan(prefix_name):
    build = {"tokens per row": tokens, "measure per row": clouds, "features per row": state}[prefix_name]
    layers = [jax.tree.map(lambda *rows: jnp.stack(rows), *(build() for _ in range(B))) for _ in range(3)]
    one_by_one = jnp.stack([attention(QUERY, KEY, VALUE, prefix=layer) for layer in layers])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    mapped = jax.vmap(lambda p: attention(QUERY, KEY, VALUE, prefix=p))(stacked)
    scanned = jax.lax.scan(lambda _, p: (None, attention(QUERY, KEY, VALUE, prefix=p)), None, stacked)[1]
    np.testing.assert_allclose(mapped, one_by_one, atol=2e-6)
    np.testing.assert_allclose(scanned, one_by_one, atol=2e-6)
    # and every row by itself, over the batch of inputs and prefixes together
    rows = jax.vmap(lambda q, k, v, p: attention(q, k, v, prefix=p))(QUERY, KEY, VALUE, layers[0])
    np.testing.assert_allclose(rows, one_by_one[0], atol=2e-6)


@pytest.mark.parametrize("prefix_name", [name for name in PREFIXES if name != "none"])
def test_a_float64_prefix_of_a_float32_model(prefix_name, x64):
    prefix = jax.tree.map(lambda x: x.astype(jnp.float64), PREFIXES[prefix_name]())
    ours = attention(QUERY, KEY, VALUE, prefix=prefix)
    assert ours.dtype == jnp.float32
    expected = oracle.attention(QUERY, KEY, VALUE, prefix=as_oracle(prefix))
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_gradients_in_half_precision(prefix_name, dtype):
    prefix, weights = PREFIXES[prefix_name](), normal(B, T, N, HV)

    def loss(query, key, value, prefix):
        return jnp.sum(weights * attention(query, key, value, prefix=prefix, is_causal=True).astype(jnp.float32))

    rounded = [x.astype(dtype) for x in (QUERY, KEY, VALUE)]
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    ours, single = gradients(*rounded, prefix), gradients(*(x.astype(jnp.float32) for x in rounded), prefix)
    assert [x.dtype for x in ours[:3]] == [dtype] * 3
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * max(1.0, np.abs(b).max(initial=0.0)))


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
