"""Decoding with adapters: token by token from a cache, it is the greedy choice of the full forward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_text import golden

from ntkprefix.adapters import FeatureAdapter, LoraAdapter, PromptAdapter, Stack, TokenAdapter
from ntkprefix.models import Cache, TextModel, generate

LENGTHS = (5, 2, 4)
ALL = ("query", "key", "value", "out", "gate", "up", "down")
ADAPTERS = {
    "LoRA": LoraAdapter(rank=3, alpha=4.0, targets=ALL),
    "prompt": PromptAdapter(length=6, deviation=1.0),
    "LoRA and a prompt": Stack([LoraAdapter(rank=2, targets=("value", "out")), PromptAdapter(length=3, deviation=1.0)]),
    "LoRA and a state": Stack([LoraAdapter(rank=2), FeatureAdapter()]),
    "all at once": Stack([LoraAdapter(rank=2), PromptAdapter(length=2, deviation=1.0), TokenAdapter(length=3)]),
}


def tokens_of(name):
    return jnp.asarray(golden(name)["tokens"], jnp.int32)


def adaptation(model, name):
    """The adapter's change, away from a start that changes nothing."""
    adapter = ADAPTERS[name]
    statistics = nnx.jit(TextModel.attention_statistics)(model, tokens_of("llama"))
    params = adapter.init(jax.random.key(0), model, statistics)
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: leaf + 0.3 * np.abs(random.standard_normal(leaf.shape)).astype("f4"), params)
    return adapter.adapt(adapter.project(params))


@nnx.jit
def next_logits(model, tokens, mask, options):
    hidden = model(tokens, mask=mask, **options)
    last = jnp.sum(mask, axis=1) - 1
    return model.logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0])


def greedy(model, tokens, lengths, new, options):
    """By the whole forward for every token; also how far ahead of the second the chosen ones were."""
    tokens, lengths = np.pad(np.asarray(tokens), ((0, 0), (0, new))), np.array(lengths)
    rows, margins = np.arange(len(lengths)), []
    for _ in range(new):
        mask = np.arange(tokens.shape[1])[None] < lengths[:, None]
        logits = np.asarray(next_logits(model, jnp.asarray(tokens), jnp.asarray(mask), options))
        best = np.sort(logits, axis=1)
        margins.append((best[:, -1] - best[:, -2]).min())
        tokens[rows, lengths] = logits.argmax(axis=1)
        lengths = lengths + 1
    return np.stack([tokens[row, length - new : length] for row, length in enumerate(lengths)]), min(margins)


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("llama", "LoRA"),
        ("gpt2", "prompt"),
        ("chatglm", "LoRA and a prompt"),
        ("qwen3", "LoRA and a state"),
        ("llama", "all at once"),
    ],
)
def test_greedy_text_equals_the_whole(name, adapter, loaded):
    model, tokens = loaded(name), tokens_of(name)[:, :5]
    change = adaptation(model, adapter)
    made = generate(model, tokens, 6, lengths=jnp.array(LENGTHS), adapter=change).tokens
    expected, margin = greedy(model, tokens, LENGTHS, 6, {"adapter": change})
    assert margin > 1e-4  # no choice hangs on rounding
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_states_of_a_prompted_text(name, loaded):
    """In two calls, the prompt with the first; the cache holds it, the states leave it out."""
    model, tokens = loaded(name), tokens_of(name)
    change = adaptation(model, "LoRA and a prompt")
    whole = nnx.jit(TextModel.__call__)(model, tokens, adapter=change)
    extend = nnx.jit(TextModel.extend)
    cache = Cache.empty(model.config, 3, 3 + 11)
    first, cache = extend(model, tokens[:, :4], cache, adapter=change)
    assert first.shape == (3, 4, model.config.block.width)
    assert cache.lengths.tolist() == [7, 7, 7]
    rest, cache = extend(model, tokens[:, 4:], cache, adapter=dataclasses.replace(change, prompt=None))
    assert cache.lengths.tolist() == [14, 14, 14]
    np.testing.assert_allclose(jnp.concatenate([first, rest], axis=1), whole, atol=2e-5, rtol=1e-4)


def test_a_prompt_of_embeddings_is_those_tokens(loaded):
    """The same text, its start given as numbers or as vectors."""
    model, tokens = loaded("gpt2"), tokens_of("gpt2")[:1]
    embedded = ADAPTERS["prompt"].adapt({"prompt": model.tokens.embedding[...][tokens[0, :3]]})
    made = generate(model, tokens[:, 3:], 5, adapter=embedded).tokens
    np.testing.assert_array_equal(made, generate(model, tokens, 5).tokens)


def test_a_top_p_of_zero_within_a_program_is_greedy(loaded):
    model, tokens = loaded("llama"), tokens_of("llama")
    program = nnx.jit(
        lambda model, top_p: generate(model, tokens, 3, temperature=1.0, top_p=top_p, key=jax.random.key(0))
    )
    np.testing.assert_array_equal(program(model, jnp.float32(0)).tokens, generate(model, tokens, 3).tokens)
