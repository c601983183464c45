"""Computing blocks again for the gradient changes memory, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntkprefix import TokenPrefix
from ntkprefix.models import BlockConfig, TextConfig, TextModel, ViT, ViTConfig

LAYERS = 8
BLOCK = BlockConfig(width=32, heads=2, mlp_width=128, causal=True)
PREFIX = TokenPrefix(*jax.random.normal(jax.random.key(0), (2, LAYERS, 3, 2, 16)))


def text(block):
    return TextModel(TextConfig(vocabulary=30, layers=LAYERS, block=block, positions=64), rngs=nnx.Rngs(0))


def vision(block):
    block = dataclasses.replace(block, causal=False)
    return ViT(ViTConfig(patch=4, layers=LAYERS, grid=4, block=block), rngs=nnx.Rngs(0))


CASES = {"text": (text, jnp.arange(64)[None] % 30), "vision": (vision, jnp.ones((1, 32, 32, 3)) / 3)}


def compiled(make, x, remat):
    model = nnx.jit(lambda: make(dataclasses.replace(BLOCK, remat=remat)))()
    graph, weights = nnx.split(model)

    def loss(prefix, weights):
        return jnp.sum(nnx.merge(graph, weights)(x, prefixes=prefix) ** 2 * jnp.arange(32.0)[None, None])

    return jax.jit(jax.value_and_grad(loss)).lower(PREFIX, weights).compile(), weights


@pytest.mark.parametrize("case", CASES)
def test_same_gradients_in_less_memory(case):
    (plain, weights), (again, _) = (compiled(*CASES[case], remat) for remat in (False, True))
    (value, gradient), (same_value, same_gradient) = plain(PREFIX, weights), again(PREFIX, weights)
    np.testing.assert_allclose(value, same_value, rtol=1e-6)
    for leaf, same_leaf in zip(*map(jax.tree.leaves, (gradient, same_gradient)), strict=True):
        np.testing.assert_allclose(leaf, same_leaf, atol=1e-5 * float(jnp.max(jnp.abs(leaf))))
    memory = [program.memory_analysis().temp_size_in_bytes for program in (plain, again)]
    assert memory[1] < memory[0] / 2, memory
