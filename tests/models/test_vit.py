"""What a vision transformer does with images and prefixes, on a tiny random model."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_vit import TINY, token_prefix

from ntkprefix.models import ViT, ViTConfig


def initialise(config):
    """Random parameters without compiling an initialiser for each; norms and scales are around 1."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))
    random = np.random.default_rng(0)

    def values(path, leaf):
        centre = 1.0 if "scale" in jax.tree_util.keystr(path[-2:]) else 0.0
        return jnp.asarray(centre + 0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(values, shapes))


@pytest.fixture(scope="module")
def tiny():
    return initialise(TINY)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 12, 3)), jnp.float32)


@pytest.fixture(scope="module")
def forward(tiny):
    graph, weights = nnx.split(tiny)

    @jax.jit
    def run(prefixes, images):
        return nnx.merge(graph, weights)(images, prefixes=prefixes)

    return run


def layer_prefixes(config=TINY):
    stacked = token_prefix(layers=config.layers)
    return stacked, [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(config.layers)]


def test_no_prefix_is_a_sequence_of_none(forward, images):
    np.testing.assert_array_equal(forward(None, images), forward([None] * TINY.layers, images))


def test_stacked_is_a_sequence(forward, images):
    stacked, sequence = layer_prefixes()
    np.testing.assert_array_equal(forward(stacked, images), forward(sequence, images))
    assert jnp.abs(forward(stacked, images) - forward(None, images)).max() > 1e-2


def test_each_layer_may_have_another_prefix(forward, tiny, images):
    """The mixed sequence agrees with the blocks run one by one."""
    prefixes = [token_prefix(1, tokens=2), None, token_prefix(2, tokens=7)]
    graph, weights = nnx.split(tiny.blocks)
    x = tiny._embed(images)
    for layer, prefix in enumerate(prefixes):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, i=layer: leaf[i], weights))
        x, _ = nnx.jit(block)(x, prefix=prefix)
    np.testing.assert_allclose(forward(prefixes, images), tiny.norm(x), atol=1e-5)


def test_a_prefix_per_row_of_the_batch(forward, images):
    one, other = token_prefix(1, layers=3), token_prefix(2, layers=3)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), one, other)
    out = forward(both, images)
    np.testing.assert_allclose(out[:1], forward(one, images)[:1], atol=1e-5)
    np.testing.assert_allclose(out[1:], forward(other, images)[1:], atol=1e-5)


def test_gradient_reaches_every_layers_prefix(forward, images):
    gradient = jax.grad(lambda prefix: forward(prefix, images)[..., 0].sum())(token_prefix(layers=3))
    assert (jnp.abs(gradient.keys).max(axis=(1, 2, 3)) > 1e-6).all()
    assert (jnp.abs(gradient.values).max(axis=(1, 2, 3)) > 1e-6).all()


def test_gradient_of_the_weights(tiny, images):
    gradient = nnx.grad(lambda model: model(images)[..., 0].sum())(tiny)
    assert gradient.blocks.attention.query.kernel.shape == (3, 12, 12)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_compiles_once(tiny, images, compiled):
    graph, weights = nnx.split(tiny)

    @jax.jit
    def forward(weights, prefix, images):
        return nnx.merge(graph, weights)(images, prefixes=prefix)

    forward(weights, token_prefix(1, layers=3), images)
    forward(weights, token_prefix(2, layers=3), images + 1)
    assert compiled.count("forward") == 1


def test_the_compiled_program_does_not_grow_with_depth(images):
    def lines(layers):
        config = dataclasses.replace(TINY, layers=layers)
        graph, weights = nnx.split(nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0))))
        lowered = jax.jit(lambda weights: nnx.merge(graph, weights)(images)).lower(weights)
        return lowered.as_text().count("\n")

    assert lines(2) == lines(9)


def test_rectangles(tiny):
    assert tiny(jnp.zeros((1, 4, 20, 3))).shape == (1, 1 + 5, 12)


def test_rows_and_columns_are_not_swapped(tiny):
    """A transposed image and transposed positions give the same tokens in another order."""
    image = jax.random.normal(jax.random.key(0), (1, 8, 12, 3))
    embedded = tiny._embed(image)[:, 1:].reshape(2, 3, 12)
    single = tiny._embed(jnp.zeros_like(image).at[:, 4:, 8:].set(image[:, 4:, 8:]))[:, 1:].reshape(2, 3, 12)
    np.testing.assert_allclose(embedded[1, 2], single[1, 2], atol=1e-6)
    assert jnp.abs(embedded[1, 1] - single[1, 1]).max() > 1e-3


def test_bfloat16_products_float32_tokens(images):
    exact, rounded = (
        initialise(dataclasses.replace(TINY, block=dataclasses.replace(TINY.block, dtype=dtype)))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    out = rounded(images, prefixes=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), token_prefix(layers=3)))
    assert out.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(rounded))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out, exact(images, prefixes=token_prefix(layers=3)), atol=0.1)


def test_observe_sees_each_layer(tiny, images):
    shapes = tiny.observe(images, lambda query, key, value: {"q": query, "sum": (key + value).sum()})
    assert shapes["q"].shape == (3, 2, 7, 3, 4)
    assert shapes["sum"].shape == (3,)


def test_statistics_against_numpy(tiny, images):
    statistics = tiny.attention_statistics(images)
    query, key, value = (
        np.asarray(array, np.float64) for array in tiny.observe(images, lambda query, key, value: (query, key, value))
    )
    logits = np.einsum("lbtnh,lbsnh->lbtns", query, key) / 2
    np.testing.assert_allclose(statistics.log_sum_exp, np.log(np.exp(logits).sum(-1)).mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics.key_mean, key.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(statistics.value_mean, value.mean((1, 2)), atol=1e-5)


IMAGES = (1, 8, 8, 3)
ERRORS = {
    "too few prefixes": (IMAGES, "float32", lambda: [None, None], ValueError, "one per layer, 3, got 2"),
    "prefix without layers": (IMAGES, "float32", token_prefix, ValueError, r"keys: expected a leading axis of 3"),
    "sides": ((1, 9, 8, 3), "float32", lambda: None, ValueError, "multiples of the 4-pixel patch, got 9 x 8"),
    "empty": ((1, 0, 8, 3), "float32", lambda: None, ValueError, "got 0 x 8"),
    "one image": ((8, 8, 3), "float32", lambda: None, ValueError, r"expected \[B, h, w, 3\], got shape \[8, 8, 3\]"),
    "channels first": ((1, 3, 8, 8), "float32", lambda: None, ValueError, r"expected \[B, h, w, 3\]"),
    "bytes": (IMAGES, "uint8", lambda: None, TypeError, "Apply ntkprefix.images.normalise"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case, tiny, unchecked):
    shape, dtype, prefixes, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        tiny(jnp.zeros(shape, dtype), prefixes=prefixes())


@pytest.mark.parametrize(("field", "value"), [("grid", 0), ("layers", True), ("patch", -1)])
def test_config_errors(field, value, unchecked):
    with pytest.raises(ValueError, match=re.escape(f"ViTConfig.{field}: expected a positive integer")):
        ViTConfig(**{field: value})
