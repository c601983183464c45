"""Fused kernels: what is around them against the dense kernel, everywhere; they themselves on an NVIDIA GPU.

On other machines cuDNN's two functions are played by their formulas, and the kernel in Pallas by its interpreter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix import FeaturePrefix, JoinedPrefix, TokenPrefix, attention, feature_map
from ntkprefix.kernels import FUSED, IMPLEMENTATIONS, best_for, cudnn, fused

mosaic = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")
hopper = pytest.importorskip("ntkprefix.kernels.hopper")

ON_GPU = cudnn.available()
B, T, S, N, K, H = 2, 6, 8, 4, 2, 16
RNG = np.random.default_rng(0)
WIDE = jnp.float32


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), WIDE).astype(jnp.bfloat16)


def widened(tree):
    return jax.tree.map(lambda array: array.astype(WIDE), tree)


INPUTS = normal(B, T, N, H), normal(B, S, K, H), normal(B, S, K, H)
OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "local_window_size": (2, 0)},
    "lengths": {"key_value_seq_lengths": jnp.array([0, 5]), "query_seq_lengths": jnp.array([6, 3])},
    "all": {"is_causal": True, "local_window_size": (1, 5), "key_value_seq_lengths": jnp.array([3, 5])},
}


def state(heads=K, width=H):
    built = FeaturePrefix.from_tokens(normal(20, heads, width) + 0.5, normal(20, heads, width))
    return dataclasses.replace(built, log_scale=built.log_scale + 1.0)


PREFIXES = {
    "none": None,
    "a state": state(),
    "a state per query head": state(N),
    "a negative state": dataclasses.replace(state(), k=-3.0 * state().k),
    "a state that holds nothing": jax.tree.map(jnp.zeros_like, state()),
    "tokens": TokenPrefix(normal(5, K, H), normal(5, K, H)),
    "joined": JoinedPrefix((TokenPrefix(normal(5, K, H), normal(5, K, H)), state())),
}


def _logits(query, key, lengths, *, scale, is_causal, window):
    key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
    logits = jnp.einsum("btnh,bsnh->bnts", query.astype(WIDE), key.astype(WIDE)) * scale
    rows, columns = jnp.arange(query.shape[1])[:, None], jnp.arange(key.shape[1])[None]
    seen = jnp.ones((1, 1, *logits.shape[2:]), bool)
    if is_causal:
        seen = seen & (columns <= rows)[None, None]
    if window is not None:
        seen = seen & (columns >= rows - window)[None, None]
    if lengths is not None:
        queries, keys = (each[:, None, None, None] for each in lengths)
        seen = seen & (rows[None, None] < queries) & (columns[None, None] < keys)
    return jnp.where(seen, logits, -jnp.inf)


def played_forward(query, key, value, lengths, **call):
    """Softmax attention and its log-sum-exp; where no key is seen anything may come, as from the real one."""
    logits = _logits(query, key, lengths, **call)
    total = jax.nn.logsumexp(logits, axis=-1)
    total = jnp.where(jnp.isfinite(total), total, 7.0)
    value = jnp.repeat(value, query.shape[2] // value.shape[2], axis=2).astype(WIDE)
    out = jnp.einsum("bnts,bsnh->btnh", jnp.exp(logits - total[..., None]), value)
    return out.astype(query.dtype), jnp.swapaxes(total, 1, 2)


def played_backward(query, key, value, lengths, out, log_sum, d_out, **call):
    """The gradient's formula, from the output and log-sum-exp that it is given."""
    group = query.shape[2] // key.shape[2]
    weights = jnp.exp(_logits(query, key, lengths, **call) - jnp.swapaxes(log_sum, 1, 2)[..., None])
    keys, values = (jnp.repeat(array, group, axis=2).astype(WIDE) for array in (key, value))
    d_out, out = d_out.astype(WIDE), out.astype(WIDE)
    delta = jnp.swapaxes(jnp.sum(d_out * out, axis=-1), 1, 2)[..., None]
    d_logits = weights * (jnp.einsum("btnh,bsnh->bnts", d_out, values) - delta) * call["scale"]
    d_query = jnp.einsum("bnts,bsnh->btnh", d_logits, keys)
    d_key = jnp.einsum("bnts,btnh->bsnh", d_logits, query.astype(WIDE))
    d_value = jnp.einsum("bnts,btnh->bsnh", weights, d_out)
    d_key, d_value = (array.reshape(*key.shape[:3], group, -1).sum(axis=3) for array in (d_key, d_value))
    return tuple(array.astype(query.dtype) for array in (d_query, d_key, d_value))


@pytest.fixture
def played(monkeypatch):
    """cuDNN, or its formulas where there is none."""
    if not ON_GPU:
        monkeypatch.setattr(cudnn, "available", lambda: True)
        monkeypatch.setattr(cudnn, "forward", played_forward)
        monkeypatch.setattr(cudnn, "backward", played_backward)


def found_by(implementation, inputs, prefix, with_residual=False, **options):
    """Output, log-sum-exp and gradients of a function of them."""

    def loss(query, key, value, prefix):
        out, log_sum = attention(
            query, key, value, prefix=prefix, implementation=implementation, return_residual=True, **options
        )
        loss = jnp.sum(jnp.sin(out.astype(WIDE)))
        if with_residual:
            loss = loss + jnp.sum(jnp.where(jnp.isfinite(log_sum), jnp.cos(log_sum), 0.0))
        return loss, (out, log_sum)

    # Not compiled as a whole: the interpreter calls back into Python, which waits for ever within a larger program.
    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(*inputs, prefix)


def assert_close(found, expected, tolerance=0.02):
    """By the largest of each array's numbers; sums of rounded outputs' errors may be larger than theirs."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        one, other = np.asarray(one.astype(WIDE)), np.asarray(other)
        seen = np.isfinite(other)
        np.testing.assert_array_equal(one[~seen], other[~seen])
        np.testing.assert_allclose(one[seen], other[seen], atol=tolerance * (1 + np.abs(other[seen]).max(initial=0.0)))


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    ("options", "prefix"),
    [*(("all", prefix) for prefix in PREFIXES), *((options, "a state") for options in OPTIONS), ("lengths", "none")],
)
def test_cudnn_equals_the_dense_kernel(options, prefix):
    options, prefix = OPTIONS[options], PREFIXES[prefix]
    found = found_by("cudnn", INPUTS, prefix, **options)
    assert_close(found, found_by("xla", widened(INPUTS), widened(prefix), **options))


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("options", ["plain", "all", "lengths"])
def test_gradients_of_the_residual_are_taken_too(options):
    options, prefix = OPTIONS[options], PREFIXES["a state"]
    found = found_by("cudnn", INPUTS, prefix, with_residual=True, **options)
    assert_close(found, found_by("xla", widened(INPUTS), widened(prefix), with_residual=True, **options))


def by_interpreter(monkeypatch):
    if jax.__version_info__ < (0, 10, 2):
        pytest.skip("Pallas's interpreter of this release of JAX does not run the kernel")
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    monkeypatch.setitem(IMPLEMENTATIONS, "pallas", fused.Fused("pallas", InterpretGPUParams()))


HOPPER = [  # causal, T, S, N, K, prefix's heads, H
    pytest.param(True, 256, 256, 2, 1, 1, 64, id="causal, two tiles, grouped"),
    pytest.param(True, 128, 128, 1, 1, 0, 64, id="no prefix"),
    pytest.param(False, 128, 384, 2, 2, 2, 128, id="all keys, one tile, wide", marks=pytest.mark.slow),
    pytest.param(True, 128, 128, 2, 1, 2, 64, id="a state per query head", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("causal", "length", "size", "heads", "kv_heads", "states", "width"), HOPPER)
def test_pallas_equals_the_dense_kernel(monkeypatch, causal, length, size, heads, kv_heads, states, width):
    if not ON_GPU:
        by_interpreter(monkeypatch)
    inputs = normal(1, length, heads, width), *(normal(1, size, kv_heads, width) for _ in range(2))
    prefix = state(states, width) if states else None
    found = found_by("pallas", inputs, prefix, is_causal=causal)
    assert_close(found, found_by("xla", widened(inputs), widened(prefix), is_causal=causal), tolerance=0.03)


@pytest.mark.slow
def test_pallas_under_vmap():
    if ON_GPU:
        pytest.skip("what the interpreter plays is what the GPU runs")
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    inputs = tuple(normal(2, 1, 128, 1, 64) for _ in range(3))
    states = jax.tree.map(lambda *arrays: jnp.stack(arrays), state(1, 64), state(1, 64))

    def one(query, key, value, prefix):
        return hopper.forward(query, key, value, prefix, scale=0.125, is_causal=True, interpret=InterpretGPUParams())

    together = jax.vmap(one)(*inputs, states)
    for place in (0, 1):
        alone = one(*jax.tree.map(lambda array, at=place: array[at], (*inputs, states)))
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(found[place].astype(WIDE), expected.astype(WIDE))


@pytest.mark.parametrize("prefix", ["a negative state", "a state that holds nothing"])
def test_pallas_takes_states_without_a_positive_denominator(monkeypatch, prefix):
    if not ON_GPU:
        by_interpreter(monkeypatch)
    inputs = tuple(normal(1, 128, 1, 64) for _ in range(3))
    prefix = {
        "a negative state": dataclasses.replace(state(1, 64), k=-3.0 * state(1, 64).k),
        "a state that holds nothing": jax.tree.map(jnp.zeros_like, state(1, 64)),
    }[prefix]
    found = found_by("pallas", inputs, prefix)
    assert_close(found, found_by("xla", widened(inputs), widened(prefix)), tolerance=0.03)


def test_pallas_compiles_for_hopper_as_far_as_can_be_seen_without_one():
    """JAX turns it into the GPU compiler's input on any machine: layouts of registers and memory are checked there."""
    query = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
    for prefix in (None, jax.eval_shape(lambda: state(4, 64))):
        lowered = (
            jax.jit(lambda *inputs: hopper.forward(*inputs, scale=0.125, is_causal=True))
            .trace(query, query, query, prefix)
            .lower(lowering_platforms=("cuda",))
        )
        assert "mosaic_gpu" in lowered.as_text()


REFUSED = {
    "cudnn": {
        "mask": {"mask": jnp.ones((1, 1, T, S), bool)},
        "bias": {"bias": jnp.zeros((1, 1, T, S), jnp.bfloat16)},
        "query_offset": {"query_offset": 3, "is_causal": True},
        "a window without causality": {"local_window_size": (2, 1)},
        "a scale that is traced": {"scale": jnp.float32(0.2)},
    },
    "pallas": {"multiples of 128": {}, "width 16": {}},
}


@pytest.mark.usefixtures("played", "unchecked")
@pytest.mark.parametrize(("name", "what"), [(name, what) for name in REFUSED for what in REFUSED[name]])
def test_what_they_have_nothing_for_is_said(monkeypatch, name, what):
    monkeypatch.setattr(cudnn, "is_hopper", lambda: True)
    options = REFUSED[name][what]
    inputs = INPUTS
    if what == "multiples of 128":
        inputs = tuple(normal(1, 100, 2, 64) for _ in range(3))

    def call(scale):
        return attention(*inputs, implementation=name, **{**options, **({} if scale is None else {"scale": scale})})

    with pytest.raises(ValueError, match=f"implementation '{name}' has nothing for .*{what}.*; use 'blockwise'"):
        jax.jit(call)(options.get("scale"))


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_a_gpu_they_are_refused_and_not_chosen():
    for name in FUSED:
        with pytest.raises(ValueError, match="a CPU"):
            attention(*INPUTS, implementation=name)
    assert best_for(*INPUTS, scale=0.1, prefix=None) == "xla"


@pytest.mark.usefixtures("played")
def test_the_best_is_a_fused_one_where_it_has_everything(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cudnn, "is_hopper", lambda: False)
    call = {"scale": 0.1, "prefix": None}
    assert best_for(*INPUTS, **call) == "cudnn"
    assert best_for(*INPUTS, **call, is_causal=True, query_offset=2) == "xla"
    assert best_for(*widened(INPUTS), **call) == "xla"
    monkeypatch.setattr(cudnn, "is_hopper", lambda: True)
    wide = tuple(normal(1, 128, 1, 64) for _ in range(3))
    assert best_for(*wide, **call) == "cudnn"
    assert best_for(*wide, **call | {"prefix": state(1, 64)}) == "pallas"
    taylor = FeaturePrefix.from_tokens(
        *(normal(5, 1, 64) for _ in range(2)), feature_map=feature_map("taylor", degree=1)
    )
    assert best_for(*wide, **call | {"prefix": taylor}) == "cudnn"


def test_jax_has_the_private_functions_that_are_called():
    """Another release may rename or drop them: then `available` says no, and this test says why."""
    private = cudnn._cudnn
    assert private is not None
    for name in ("_dot_product_attention_fwd_p_wrapper", "_dot_product_attention_bwd_p_wrapper"):
        assert callable(getattr(private, name).bind)
    assert {"NO_MASK", "CAUSAL", "PADDING", "PADDING_CAUSAL"} <= set(private.MaskType.__members__)
    arguments = jax.make_jaxpr(lambda *inputs: cudnn.forward(*inputs, None, scale=0.1, is_causal=True, window=2))
    out, log_sum = arguments(*INPUTS).out_avals
    assert (out.shape, log_sum.shape, log_sum.dtype) == ((B, T, N, H), (B, T, N), jnp.float32)
    given = INPUTS[0], jnp.zeros((B, T, N)), INPUTS[0]
    gradients = jax.make_jaxpr(
        lambda *inputs: cudnn.backward(*inputs[:3], None, *inputs[3:], scale=0.1, is_causal=True, window=2)
    )(*INPUTS, *given)
    assert [array.shape for array in gradients.out_avals] == [array.shape for array in INPUTS]
