"""`attention` under jit, vmap, scan, remat and grad, per row and per layer, without a second compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import HV, KEY, MASK, PREFIXES, QUERY, VALUE, B, N, T, as_oracle, clouds, normal, state, tokens

from ntkprefix import attention
from ntkprefix.kernels import EVERYWHERE


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
def test_a_traced_scale(prefix_name, compiled):
    prefix = PREFIXES[prefix_name]()
    share, weights = as_oracle(prefix), np.asarray(normal(B, T, N, HV))

    @jax.jit
    def attended(scale):
        return attention(QUERY, KEY, VALUE, prefix=prefix, scale=scale)

    def expected(scale):
        return oracle.attention(QUERY, KEY, VALUE, prefix=share, scale=scale)

    for scale in (0.2, 0.5):
        np.testing.assert_allclose(attended(scale), expected(scale), rtol=2e-5, atol=2e-6)
    assert compiled.count("attended") == 1
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
def test_second_call_does_not_compile_again(prefix_name, compiled):
    @jax.jit
    def attended(query, prefix):
        return attention(query, KEY, VALUE, prefix=prefix)

    for query in (QUERY, QUERY + 1):
        attended(query, PREFIXES[prefix_name]())
    assert compiled.count("attended") == 1


@pytest.mark.parametrize("implementation", EVERYWHERE)
@pytest.mark.parametrize("prefix_name", ["none", "tokens", "features per query head", "joined"])
def test_outside_of_jit_a_second_call_compiles_nothing(prefix_name, implementation, compiled):
    def total(query, prefix):
        return jnp.sum(attention(query, KEY, VALUE, prefix=prefix, is_causal=True, implementation=implementation))

    prefix, both = PREFIXES[prefix_name](), jax.value_and_grad(total)
    both(QUERY, prefix)
    assert compiled
    compiled.clear()
    both(QUERY, prefix)
    assert compiled == []


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


@pytest.mark.parametrize("prefix_name", PREFIXES)
def test_the_residual_and_its_gradient_equal_the_oracles(prefix_name):
    # one row sees nothing of the input: without a prefix its residual is -inf
    prefix, mask = PREFIXES[prefix_name](), MASK.at[0, :, 2].set(False)
    leaves, structure = jax.tree.flatten((QUERY, KEY, prefix))
    weights = np.asarray(normal(B, T, N))

    def expected(step, tangents):
        moved = [
            np.asarray(x, np.float64) + step * np.asarray(v, np.float64) for x, v in zip(leaves, tangents, strict=True)
        ]
        query, key, prefix = jax.tree.unflatten(structure, moved)
        return oracle.attention_and_residual(query, key, VALUE, prefix=as_oracle(prefix), mask=np.asarray(mask))[1]

    @jax.jit
    def residual(query, key, prefix):
        return attention(query, key, VALUE, prefix=prefix, mask=mask, return_residual=True)[1]

    still = expected(0, [0 * leaf for leaf in leaves])
    visible = np.isfinite(still)
    assert (~visible).any() == (prefix_name in ("none", "no tokens"))
    np.testing.assert_allclose(residual(QUERY, KEY, prefix), still, rtol=2e-6, atol=2e-6)

    def loss(query, key, prefix):
        return jnp.sum(jnp.where(visible, residual(query, key, prefix), 0.0) * jnp.asarray(weights))

    gradients = jax.tree.leaves(jax.grad(loss, argnums=(0, 1, 2))(QUERY, KEY, prefix))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Along a direction in which no two terms of the slope cancel.
    tangents = [jnp.abs(normal(*gradient.shape)) * jnp.sign(gradient) for gradient in gradients]
    slope = sum(np.vdot(np.asarray(g, np.float64), np.asarray(v)) for g, v in zip(gradients, tangents, strict=True))
    up, down = (np.where(visible, expected(step, tangents), 0) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(slope, np.vdot(weights, (up - down) / 2e-5), rtol=2e-4)
