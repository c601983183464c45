"""Attention by blocks: equal to the dense kernel in value and gradient however it is cut, without [T, S] arrays."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import HV, KEY, OPTIONS, QUERY, VALUE, B, H, K, N, S, T, normal
from flax import nnx

from ntkprefix import FeaturePrefix, MeasurePrefix, Partial, TokenPrefix, attention, feature_map, merge
from ntkprefix._pytree import pytree
from ntkprefix.feature_maps import Elu
from ntkprefix.kernels import blockwise, dense
from ntkprefix.kernels.blocks import Blocks
from ntkprefix.models import BlockConfig, TextConfig, TextModel

# Beside those of JAX's function: offsets, which it has not, biases that broadcast, and rows that see nothing.
CASES = {
    **OPTIONS,
    "offset": {"is_causal": True, "query_offset": 2},
    "offsets by row": {
        "is_causal": True,
        "query_offset": jnp.array([2, -3], jnp.int32),
        "local_window_size": (1, 0),
    },
    "far offset": {"is_causal": True, "query_offset": 2**31 - 1, "local_window_size": (2**31 - 2, 0)},
    "bias over queries": {"bias": normal(1, N, 1, S)},
    "bias over keys": {"bias": normal(B, 1, T, 1), "is_causal": True},
    "nothing seen": {"mask": jnp.zeros((1, 1, 1, 1), bool)},
    "no lengths": {"key_value_seq_lengths": jnp.array([0, 7], jnp.int32), "is_causal": True},
}
# Of 5 queries and 7 keys: with and without blocks that have to be filled up.
CUTS = {
    "one by one": Blocks(1, 1, apart=False),
    "filled up": Blocks(2, 3, apart=True),
    "filled up, all heads at once": Blocks(2, 3, apart=False),
    "one block": Blocks(64, 64, apart=True),
}


def options_of(name):
    options = {"scale": 0.35, **CASES[name]}
    window = options.get("local_window_size")
    return options | ({"local_window_size": (window, window)} if isinstance(window, int) else {})


def of_kernel(kernel, options):
    """Output, log-mass, and gradients of both in all that has some."""

    def both(inputs):
        query, key, value, scale, *bias = inputs
        share = kernel(query, key, value, **{**options, "scale": scale}, **({"bias": bias[0]} if bias else {}))
        return share.normalise(), share.log_mass()

    def loss(inputs):
        out, log_mass = both(inputs)
        seen = jnp.isfinite(log_mass)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(seen, jnp.cos(jnp.where(seen, log_mass, 0.0)), 0.0))

    bias = [options.pop("bias")] if "bias" in options else []
    inputs = (QUERY, KEY, VALUE, jnp.float32(options["scale"]), *bias)
    return jax.jit(lambda inputs: (both(inputs), jax.grad(loss)(inputs)))(inputs)


# All cases where blocks have to be filled up, one lane at a time, and some for the other cuts.
PAIRS = [
    *((name, "filled up") for name in CASES),
    *((name, cut) for cut in CUTS if cut != "filled up" for name in ("all", "bias over heads", "offsets by row")),
]


@pytest.mark.parametrize(("name", "cut"), PAIRS)
def test_equals_the_dense_kernel(name, cut):
    def by_blocks(*arrays, **options):
        return blockwise.partial_attention(*arrays, **options, blocks=CUTS[cut])

    found = of_kernel(by_blocks, options_of(name))
    expected = of_kernel(dense.partial_attention, options_of(name))
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_dtypes_are_summed_in_float32(dtype):
    """Values of 1 keep their sum whatever their number; 2^11 + 1 has none in float16, nor 2^8 + 1 in bfloat16."""
    query, key = jnp.zeros((1, 3, 1, 4), dtype), jnp.zeros((1, 5000, 1, 4), dtype)
    value = jnp.ones((1, 5000, 1, 2), dtype).at[:, ::5].set(0)
    share = blockwise.partial_attention(query, key, value, scale=1.0)
    np.testing.assert_allclose(share.normalise(), 0.8, rtol=1e-6)
    np.testing.assert_allclose(share.log_mass(), np.log(5000), rtol=1e-6)
    assert share.num.dtype == jnp.float32
    gradient = jax.grad(lambda v: jnp.sum(blockwise.partial_attention(query, key, v, scale=1.0).num))(value)
    assert gradient.dtype == dtype
    np.testing.assert_allclose(np.asarray(gradient, np.float32), 3 / 5000, rtol=1e-2)


def test_large_logits_are_fine():
    query, key = 1e4 * QUERY[:, :, :, :1], jnp.sign(KEY[..., :1])
    share = blockwise.partial_attention(query, key, VALUE, scale=1.0, blocks=CUTS["filled up"])
    exact = dense.partial_attention(query, key, VALUE, scale=1.0)
    np.testing.assert_allclose(share.normalise(), exact.normalise(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(share.log_mass(), exact.log_mass(), rtol=1e-6)


def test_under_vmap():
    queries = jnp.stack([QUERY, QUERY + 1])

    def one(query, offset):
        cut = {"query_offset": offset, "is_causal": True, "blocks": CUTS["filled up"]}
        return blockwise.partial_attention(query, KEY, VALUE, scale=0.3, **cut).normalise()

    offsets = jnp.array([0, 3])
    expected = jnp.stack([one(query, offset) for query, offset in zip(queries, offsets, strict=True)])
    np.testing.assert_allclose(jax.vmap(one)(queries, offsets), expected, rtol=1e-5, atol=1e-6)


def test_without_keys_or_queries():
    for query, key in ((QUERY, KEY[:, :0]), (QUERY[:, :0], KEY)):
        share = blockwise.partial_attention(query, key, VALUE[:, : key.shape[1]], scale=1.0)
        assert share.num.shape == (B, query.shape[1], N, HV)
        assert (share.den == 0).all()
        assert (share.log_scale == -jnp.inf).all()


def other_keys(kind):
    """What else there is to attend to."""
    num, den, log_scale = normal(B, T, N, HV), jnp.abs(normal(B, T, N)), normal(B, T, N)
    return {
        "a state": Partial(num, den, log_scale),
        "a state that starts as a no-op": Partial(0 * num, 0 * den, log_scale),
        "an additive memory": Partial(num, 0 * den, log_scale),
        "a memory far above": Partial(num, 0 * den, log_scale + 40),
        "a negative denominator": Partial(num, -30 * den - 30, log_scale),
        "nothing": Partial(0 * num, 0 * den, jnp.full_like(den, -jnp.inf)),
        "far above": Partial(num, den, log_scale + 1e4),
        "far below": Partial(num, den, log_scale - 1e4),
    }[kind]


OTHERS = ["a state", "a state that starts as a no-op", "an additive memory", "a memory far above"]
OTHERS += ["a negative denominator", "nothing", "far above", "far below"]


class Given:
    """A prefix whose share is given."""

    def __init__(self, share):
        self.share = share

    def partial(self, query, scale):  # noqa: ARG002
        return self.share


@pytest.mark.parametrize("kind", OTHERS)
def test_what_joins_the_blocks_counts_as_if_it_were_merged_behind_them(kind):
    """One row of a batch sees nothing of the input, and rows fill up blocks."""
    options = {"scale": 0.4, "is_causal": True, "key_value_seq_lengths": jnp.array([0, 6], jnp.int32)}
    also, weights = other_keys(kind), normal(B, T, N, HV)

    def of(kernel):
        def both(inputs):
            query, key, value, also = inputs
            return kernel(query, key, value, prefix=Given(also), **options)

        def loss(inputs):
            out, log_mass = both(inputs)
            seen = jnp.isfinite(log_mass)
            return jnp.sum(weights * out) + jnp.sum(jnp.where(seen, weights[..., 0] * log_mass, 0.0))

        return jax.jit(lambda inputs: (both(inputs), jax.grad(loss)(inputs)))((QUERY, KEY, VALUE, also))

    (out, log_mass), gradients = of(partial(blockwise.attend, blocks=CUTS["filled up"]))
    (same_out, same_log_mass), expected = of(dense.attend)
    np.testing.assert_allclose(out, same_out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_mass, same_log_mass, rtol=1e-5, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5 * max(1.0, float(jnp.abs(other).max())))


@pytest.mark.parametrize("kind", OTHERS)
def test_shares_that_are_merged_with_others_are_those_of_the_dense_kernel(kind):
    """Undivided: a row that sees nothing still has what an additive memory brings, which more keys may divide."""
    options = {"scale": 0.4, "key_value_seq_lengths": jnp.array([0, 6], jnp.int32), "also": other_keys(kind)}
    share = blockwise.partial_attention(QUERY, KEY, VALUE, blocks=CUTS["filled up"], **options)
    expected = dense.partial_attention(QUERY, KEY, VALUE, **options)
    more = Partial(jnp.ones((B, T, N, HV)), jnp.ones((B, T, N)), jnp.zeros((B, T, N)))
    one, other = merge(share, more), merge(expected, more)
    np.testing.assert_allclose(one.normalise(), other.normalise(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one.log_mass(), other.log_mass(), rtol=1e-5, atol=1e-5)


def test_a_state_that_starts_as_a_no_op_changes_no_bit():
    without, with_it = (
        blockwise.partial_attention(QUERY, KEY, VALUE, scale=0.4, also=also).normalise()
        for also in (None, other_keys("a state that starts as a no-op"))
    )
    np.testing.assert_array_equal(without, with_it)


@pytree
class Scaled:
    """A feature map with a parameter."""

    factor: jax.Array
    positive = nonnegative = True

    def size(self, width):
        return width

    def __call__(self, x):
        return jnp.exp(self.factor * jnp.tanh(x)), self.factor * x[..., 0]


def states(kind):
    features = {"taylor": feature_map("taylor", degree=2), "trained": Scaled(jnp.float32(0.7))}.get(kind, Elu())
    size, heads = features.size(H), K if kind == "of kv heads" else N
    rows = (B,) if kind == "of rows" else ()
    Z, k = normal(*rows, heads, size, HV), jnp.abs(normal(*rows, heads, size))
    log_scale, centre = normal(*rows, heads), normal(*rows, heads, H)
    if kind == "bare":
        log_scale = centre = None
    if kind == "no-op":
        Z, k = 0 * Z, 0 * k
    if kind == "negative denominators":
        k = -40 * k
    return FeaturePrefix(Z, k, features, log_scale, centre)


KINDS = ["of kv heads", "of query heads", "of rows", "bare", "no-op", "taylor", "trained", "negative denominators"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_read_head_by_head(kind):
    """Within the loop over rows and kv heads, where blocks are computed one place after another; one row sees less.

    In float64: a denominator that happens to be near zero makes rounding in float32 as large as any bound.
    """
    options = {"is_causal": True, "key_value_seq_lengths": jnp.array([0, 6], jnp.int32), "bias": normal(B, N, T, S)}

    def double(leaf):
        return leaf.astype(jnp.float64) if getattr(leaf, "dtype", None) == jnp.float32 else leaf

    given = options, normal(B, T, N, HV), (QUERY, KEY, VALUE, jnp.float32(0.4), states(kind))
    options, weights, inputs = jax.tree.map(double, given)

    def of(attend):
        def loss(inputs):
            query, key, value, scale, prefix = inputs
            out, residual = attend(query, key, value, scale=scale, prefix=prefix, **options)
            seen = jnp.isfinite(residual)
            masses = jnp.where(seen, weights[..., 0] * jnp.where(seen, residual, 0.0), 0.0)
            return jnp.sum(weights * out) + jnp.sum(masses), (out, residual)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)

    (_, found), gradients = of(partial(blockwise.attend, blocks=CUTS["filled up"]))
    (_, expected), same = of(dense.attend)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    for one, other in zip(*map(jax.tree.leaves, (gradients, same)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9 * max(1.0, float(jnp.abs(other).max())))
    if kind == "no-op":
        without = blockwise.attend(*inputs[:3], scale=inputs[3], blocks=CUTS["filled up"], **options)
        for one, other in zip(found, without, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_population_of_states_under_vmap():
    prefixes = [states("of kv heads") for _ in range(3)]
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *prefixes)

    def loss(prefix):
        out, _ = blockwise.attend(QUERY, KEY, VALUE, scale=0.4, prefix=prefix, is_causal=True, blocks=CUTS["filled up"])
        return jnp.sum(jnp.sin(out))

    found = jax.jit(jax.vmap(jax.value_and_grad(loss)))(stacked)
    for index, prefix in enumerate(prefixes):
        expected = jax.value_and_grad(loss)(prefix)
        for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(one[index], other, rtol=1e-4, atol=1e-5)


def test_a_state_of_small_numbers_is_summed_in_large_ones():
    prefix = jax.tree.map(lambda array: array.astype(jnp.bfloat16), states("of kv heads"))
    inputs = jax.tree.map(lambda array: array.astype(jnp.bfloat16), (QUERY, KEY, VALUE))

    def loss(prefix):
        return jnp.sum(blockwise.attend(*inputs, scale=0.4, prefix=prefix, blocks=CUTS["filled up"])[0])

    def exact(prefix):
        return jnp.sum(dense.attend(*inputs, scale=0.4, prefix=prefix)[0])

    for one, other in zip(*(jax.tree.leaves(jax.grad(f)(prefix)) for f in (loss, exact)), strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(*(np.asarray(each, np.float32) for each in (one, other)), rtol=2e-2, atol=2e-2)


def test_states_that_are_read_head_by_head_are_checked_too():
    state = FeaturePrefix.from_tokens(KEY[0], normal(S, K, HV), scale=0.3)
    with pytest.raises(ValueError, match=r"scale"):
        blockwise.attend(QUERY, KEY, VALUE, scale=0.4, prefix=state, blocks=CUTS["filled up"])


def test_a_state_takes_little_more_memory_than_no_prefix():
    """Its features of all queries would be as large as all queries; they are those of one head at a time."""
    length, heads, width = 4096, 8, 16
    shape = jax.ShapeDtypeStruct((1, length, heads, width), jnp.float32)
    state = FeaturePrefix(jnp.zeros((heads, width, width)), jnp.zeros((heads, width)))

    def working(prefix):
        def loss(query, prefix):
            return jnp.sum(attention(query, query, query, prefix=prefix, is_causal=True) ** 2)

        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(shape, prefix).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert working(state) - working(None) < 4 * length * heads * width


def test_long_inputs_are_cut_where_no_implementation_is_named():
    """Blocks differentiate once, in reverse; so the named one is there for the rest."""

    def loss(query, **options):
        return jnp.sum(attention(query, query, query, **options))

    short, long = jnp.ones((1, 32, 1, 4)), jnp.ones((1, 256, 1, 4))
    jax.jvp(loss, (short,), (short,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (long,), (long,))
    jax.jvp(partial(loss, implementation="xla"), (long,), (long,))


def test_a_model_has_the_attention_that_it_asks_for():
    block = BlockConfig(width=8, heads=2, mlp_width=8, implementation="xla")
    model = TextModel(TextConfig(vocabulary=5, layers=1, block=block, positions=256), rngs=nnx.Rngs(0))
    prefix = TokenPrefix(*jnp.ones((2, 1, 3, 2, 4)))

    def out(prefix):
        return model(jnp.zeros((1, 256), jnp.int32), prefixes=prefix)

    jax.jvp(out, (prefix,), (prefix,))
    with pytest.raises(ValueError, match="unknown implementation 'fast'"):
        BlockConfig(implementation="fast")
    assert model.config.replace(implementation="blockwise").block.implementation == "blockwise"


@pytest.mark.parametrize(
    "prefix",
    [
        TokenPrefix(*jnp.zeros((2, 65536, 2, 8))),
        MeasurePrefix(*(jnp.zeros((65536, 2, *rest)) for rest in ((), (8,), (8, 1), (8,), (8, 1)))),
    ],
    ids=["tokens", "clouds"],
)
def test_long_prefixes_do_not_take_all_logits_at_once(prefix):
    query = jax.ShapeDtypeStruct((1, 512, 2, 8), jnp.float32)

    def loss(prefix, query):
        return jnp.sum(attention(query, query, query, prefix=prefix) ** 2)

    program = jax.jit(jax.grad(loss)).lower(prefix, query).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2 * 512 * 65536 * 4 / 4


def compiled(length, *, gradient):
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

    def loss(query, key, value):
        return jnp.sum(attention(query, key, value, is_causal=True, implementation="blockwise"))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)) if gradient else loss).lower(shape, shape, shape).compile()


@pytest.mark.parametrize("gradient", [False, True])
def test_memory_grows_with_the_length_and_no_array_of_all_logits_is_made(gradient):
    """The compiler's own account, without a clock."""
    working = {}
    for length in (2048, 4096, 8192):
        program = compiled(length, gradient=gradient)
        working[length] = program.memory_analysis().temp_size_in_bytes
        sizes = [
            np.prod([int(n) for n in found.split(",")]) for found in re.findall(r"f32\[([\d,]+)\]", program.as_text())
        ]
        assert max(sizes) <= 1024 * 1024, max(sizes)  # a block, however long the input
    assert working[8192] - working[4096] <= 2.2 * (working[4096] - working[2048])
    assert working[8192] < 8192 * 8192 * 4 / 8


def test_blocks_that_are_hidden_are_not_computed():
    """A weight of 0 times NaN is NaN: where a block is computed, values that no query may see reach every row."""
    poisoned = VALUE.at[:, 5:].set(jnp.nan)

    def by(cut):
        return blockwise.partial_attention(QUERY, KEY, poisoned, scale=1.0, is_causal=True, blocks=cut).num

    assert jnp.isfinite(by(Blocks(1, 1, apart=False))).all()
    assert jnp.isnan(by(Blocks(64, 64, apart=False))).all()
