"""Packed tokens against the same, filled up to the longest head."""

from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from ntkprefix import Partial, TokenPrefix
from ntkprefix.models import generate
from ntkprefix.prompts import PackedTokens, batch_prompts, load_prompt, packed, save_prompt
from ntkprefix.prompts.algebra import JoinedPrompt
from ntkprefix.prompts.precision import rounded

START = 400
# The module, whose name in its package is the function's.
of_packed = import_module("ntkprefix.prompts.packed")


def of_several_sizes(config, longest):
    """Heads of 1 token and of the longest, and between; the tokens that weigh nothing are where they may be."""
    random = np.random.default_rng(0)
    block = config.block
    shape = (config.layers, longest, block.kv_heads)
    counts = random.integers(1, longest + 1, size=(config.layers, block.kv_heads))
    counts.flat[0], counts.flat[-1] = longest, 1
    weights = random.standard_normal(shape)
    weights[np.arange(longest)[None, :, None] >= counts[:, None]] = -np.inf
    keys, values = random.standard_normal((2, *shape, block.head_width))
    # Not only behind the others.
    order = random.permutation(longest)
    return TokenPrefix(*(jnp.asarray(array[:, order], jnp.float32) for array in (keys, values, weights))), counts


@pytest.mark.parametrize("longest", [3, 128, 129, 256, 600])
def test_packed_tokens_are_the_same_to_every_text(longest, loaded):
    model, texts = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)
    prefixes, counts = of_several_sizes(model.config, longest)
    small = packed(prefixes)
    assert isinstance(small, PackedTokens)
    assert small.keys.shape[0] == counts.sum()
    assert small.longest == longest
    positions = jnp.broadcast_to(START + jnp.arange(texts.shape[1]), texts.shape)
    one, other = (model(texts, prefixes=each, positions=positions) for each in (prefixes, small))
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert np.abs(one - model(texts, positions=positions)).max() > 1e-2
    options = {"start": START, "temperature": 1.0, "key": jax.random.key(0)}
    one, other = (generate(model, texts, 5, prefixes=each, **options) for each in (prefixes, small))
    np.testing.assert_array_equal(one.tokens, other.tokens)


@pytest.mark.parametrize("dtype", ["float16", "int8", "int4"])
def test_fewer_bits_are_those_of_a_file(dtype, loaded, tmp_path):
    """What a file gives back, filled up and in float32, and the same in the file's bits, are the same to every text."""
    model, texts = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)
    prefixes, counts = of_several_sizes(model.config, 200)
    stored = load_prompt(save_prompt(tmp_path / "p", prefixes, START, dtype=dtype))
    assert stored.dtype == dtype
    small = packed(stored.prefixes, dtype)
    width, bits = model.config.block.head_width, {"float16": 16, "int8": 8, "int4": 4}[dtype]
    for rows in (small.keys, small.values):
        assert rows.shape == (counts.sum(), width)
        beside = {"float16": 0, "int8": 2, "int4": 4}[dtype]
        assert sum(leaf.nbytes for leaf in jax.tree.leaves(rows)) == counts.sum() * (width * bits // 8 + beside)
    firsts = 2 * counts.size * width * 2 if dtype == "int4" else 0
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(small.firsts)) == firsts
    positions = jnp.broadcast_to(START + jnp.arange(texts.shape[1]), texts.shape)
    one, other = (model(texts, prefixes=each, positions=positions) for each in (stored.prefixes, small))
    np.testing.assert_allclose(one, other, atol=2e-5)
    if dtype == "int4":
        assert np.abs(one - model(texts, prefixes=prefixes, positions=positions)).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_rows_with_prompts_of_their_own_are_packed_too(dtype, loaded):
    model, texts = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)
    texts = jnp.concatenate([texts, texts[:, ::-1]])[:3]
    prompts = [
        JoinedPrompt(rounded(of_several_sizes(model.config, longest)[0], dtype), 400) for longest in (300, 7, 150)
    ]
    batch, starts = batch_prompts(prompts)
    small = packed(batch, dtype)
    counts = [np.sum(~np.isneginf(prompt.prefixes.log_weights)) for prompt in prompts]
    assert small.keys.shape[0] == sum(counts)
    positions = starts[:, None] + jnp.arange(texts.shape[1])[None]
    one, other = (model(texts, prefixes=each, positions=positions) for each in (batch, small))
    np.testing.assert_allclose(one, other, atol=2e-5)
    for row, prompt in enumerate(prompts):
        alone = model(texts[row : row + 1], prefixes=prompt.prefixes, positions=positions[row : row + 1])
        np.testing.assert_allclose(other[row : row + 1], alone, atol=2e-5)
    options = {"start": starts, "temperature": 1.0, "key": jax.random.key(0)}
    one, other = (generate(model, texts, 5, prefixes=each, **options) for each in (batch, small))
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_tokens_without_weights_are_packed_too(loaded):
    model, texts = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)
    prefixes, _ = of_several_sizes(model.config, 200)
    plain = TokenPrefix(prefixes.keys, prefixes.values)
    positions = jnp.broadcast_to(START + jnp.arange(texts.shape[1]), texts.shape)
    one, other = (model(texts, prefixes=each, positions=positions) for each in (plain, PackedTokens.of(plain)))
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_where_one_head_is_long_the_others_are_not_read_on(dtype, monkeypatch):
    random, heads, group, width = np.random.default_rng(0), 3, 2, 4
    lengths = np.array([[5, 600, 9], [130, 1, 20]])  # of two rows, whose longest heads are others
    keys, values = jnp.asarray(random.standard_normal((2, 1, 2, 600, heads, width)), jnp.float32)
    weights = np.where(np.arange(600)[None, None, :, None] < lengths[None, :, None], 0.5, -np.inf).astype(np.float32)
    rows = rounded(TokenPrefix(keys, values, jnp.asarray(weights)), dtype)
    query = jnp.asarray(random.standard_normal((2, 3, heads * group, width)), jnp.float32)
    read, real = [], of_packed.as_turned

    def as_turned(of):
        jax.debug.callback(partial(read.append, of.shape))
        return real(of)

    monkeypatch.setattr(of_packed, "as_turned", as_turned)
    first = jax.tree.map(lambda leaf: leaf[:, 0], rows)  # of all layers, for one row
    cases = ((packed(rows, dtype), rows, query, (2,)), (packed(first, dtype), first, query[:1], ()))
    for small, filled, asked, many in cases:
        read.clear()
        share = jax.jit(lambda small, query: small.layer(0).partial(query, 0.3))(small, asked)
        jax.effects_barrier()
        wanted = jax.tree.map(lambda leaf: leaf[0], filled).partial(asked, 0.3)
        np.testing.assert_allclose(share.normalise(), wanted.normalise(), atol=1e-5)
        np.testing.assert_allclose(share.log_mass(), wanted.log_mass(), atol=1e-5)
        blocks = [(128, heads), (128, 1), (256, 1), (88, 1)]
        assert sorted(read) == sorted([(*many, *block, width) for block in blocks] * 2)


def test_gradients_go_through_packed_tokens(loaded):
    model = loaded("llama")
    prefixes, _ = of_several_sizes(model.config, 200)
    small, block = packed(prefixes), model.config.block
    query = jax.random.normal(jax.random.key(0), (2, 3, block.heads, block.head_width))

    def size(query, prefix):
        share: Partial = prefix.partial(query, 0.3)
        return jnp.sum(share.normalise() ** 2) + jnp.sum(share.log_mass())

    for layer in range(model.config.layers):
        filled = jax.tree.map(lambda leaf, at=layer: leaf[at], prefixes)
        np.testing.assert_allclose(
            jax.grad(size)(query, small.layer(layer)), jax.grad(size)(query, filled), rtol=1e-4, atol=1e-5
        )


def test_what_is_not_filled_up_stays_as_it_is(loaded, unchecked):
    config = loaded("llama").config
    prefixes, _ = of_several_sizes(config, 5)
    whole = TokenPrefix(prefixes.keys, prefixes.values, jnp.zeros(prefixes.keys.shape[:3]))
    rows = batch_prompts([JoinedPrompt(whole, 9)] * 2).prefixes
    for each in (None, whole, TokenPrefix(whole.keys, whole.values), rows):
        assert packed(each) is each
    with pytest.raises(ValueError, match="expected arrays with a leading axis of layers"):
        PackedTokens.of(TokenPrefix(*jnp.ones((2, 5, 1, 4))))
    with pytest.raises(ValueError, match="unknown dtype 'int2'"):
        packed(whole, "int2")
    with pytest.raises(TypeError, match="expected tokens of every layer, got list"):
        PackedTokens.of([whole])


def test_another_number_of_layers_is_refused(loaded):
    model = loaded("llama")
    prefixes, _ = of_several_sizes(model.config, 5)
    few = packed(jax.tree.map(lambda leaf: leaf[:1], prefixes))
    with pytest.raises(ValueError, match=f"expected one per layer, {model.config.layers}, got 1"):
        model(jnp.ones((1, 2), jnp.int32), prefixes=few)
