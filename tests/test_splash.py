"""Splash attention with a prefix: its kernels as Pallas's interpreter plays them, and as they are handed to a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import KEY, OPTIONS, PREFIXES, QUERY, VALUE, B, T, as_oracle, normal, state

from ntkprefix import attention
from ntkprefix.kernels import IMPLEMENTATIONS, fused, splash

# A window wider than a causal one, and lengths of both, of which one row has none.
LENGTHS = {"key_value_seq_lengths": jnp.array([3, 0]), "query_seq_lengths": jnp.array([5, 4])}
CASES = {
    "causal": ("causal", "joined"),
    "lengths": (LENGTHS, "features per kv head"),
    "window": ("causal window", "tokens per row"),
    "plain": ("plain", "none"),
    "scale": ("scale", "measure"),
    "lengths, no prefix": (LENGTHS, "none"),
}
SLOW = ("plain", "scale", "lengths, no prefix")


@pytest.fixture
def played(monkeypatch):
    if jax.default_backend() != "tpu":
        monkeypatch.setitem(IMPLEMENTATIONS, "splash", fused.Fused("splash", interpret=True))


def found_by(implementation, prefix, options, with_residual=False):
    @jax.jit
    def loss(query, key, value, prefix):
        out, log_sum = attention(
            query, key, value, prefix=prefix, implementation=implementation, return_residual=True, **options
        )
        loss = jnp.sum(jnp.sin(out))
        if with_residual:
            loss = loss + jnp.sum(jnp.where(jnp.isfinite(log_sum), jnp.cos(log_sum), 0.0))
        return loss, (out, log_sum)

    return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(QUERY, KEY, VALUE, prefix)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_equals_the_oracle_and_the_dense_kernel_s_gradients(case):
    name, prefix = CASES[case]
    options, prefix = OPTIONS[name] if isinstance(name, str) else name, PREFIXES[prefix]()
    found = found_by("splash", prefix, options)
    renamed = {"key_value_seq_lengths": "kv_len", "local_window_size": "window"}
    if "query_seq_lengths" not in options:
        given = {renamed.get(k, k): np.asarray(v) if isinstance(v, jax.Array) else v for k, v in options.items()}
        expected = oracle.attention(QUERY, KEY, VALUE, prefix=as_oracle(prefix), **given)
        np.testing.assert_allclose(found[0][1][0], expected, rtol=2e-5, atol=2e-6)
    for one, other in zip(*map(jax.tree.leaves, (found, found_by("xla", prefix, options))), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("played")
def test_gradients_of_the_residual_are_taken_too():
    prefix = state()
    both = (found_by(name, prefix, OPTIONS["causal"], with_residual=True) for name in ("splash", "xla"))
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_both_kernels_are_translated_for_a_tpu(dtype):
    """JAX turns them into the TPU compiler's input on any machine; whether that compiler takes it is not seen."""
    query, key = (jax.ShapeDtypeStruct((2, length, heads, 64), dtype) for length, heads in ((384, 4), (300, 2)))
    log_sum = jax.ShapeDtypeStruct(query.shape[:-1], jnp.float32)
    call = {"scale": 0.125, "is_causal": True, "window": None, "interpret": False}
    forward = jax.jit(lambda *inputs: splash.forward(*inputs, None, **call)).trace(query, key, key)
    backward = jax.jit(lambda query, key, value, *saved: splash.backward(query, key, value, None, *saved, **call))
    for traced, calls in ((forward, 1), (backward.trace(query, key, key, query, log_sum, query), 2)):
        assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") >= calls


REFUSED = {
    "mask": {"mask": jnp.ones((1, 1, T, KEY.shape[1]), bool)},
    "bias": {"bias": normal(1, 1, T, KEY.shape[1])},
    "query_offset": {"query_offset": 3, "is_causal": True},
    "a window without causality": {"local_window_size": (2, 1)},
}


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("what", REFUSED)
def test_what_it_has_nothing_for_is_said(what):
    with pytest.raises(ValueError, match=f"implementation 'splash' has nothing for .*{what}.*; use 'blockwise'"):
        attention(QUERY, KEY, VALUE, implementation="splash", **REFUSED[what])
    with pytest.raises(ValueError, match="has nothing for no queries or no keys"):
        attention(QUERY, KEY[:, :0], VALUE[:, :0], implementation="splash")


def test_jax_has_the_private_function_that_is_called():
    """Another release may rename it or change what it takes: then `exists` says no, and this test says why."""
    out = jax.eval_shape(
        lambda *inputs: splash.backward(
            *inputs[:3], None, *inputs[3:], scale=0.1, is_causal=True, window=2, interpret=False
        ),
        *(QUERY, KEY, VALUE, jnp.zeros((B, T, QUERY.shape[2], VALUE.shape[3])), jnp.zeros(QUERY.shape[:3])),
        jnp.zeros((B, T, QUERY.shape[2], VALUE.shape[3])),
    )
    assert [array.shape for array in out] == [array.shape for array in (QUERY, KEY, VALUE)]
