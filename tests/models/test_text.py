"""Text models of every architecture against PyTorch's transformers, and against themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_text import DECODERS, NAMES, golden

from ntkprefix import FeaturePrefix, TokenPrefix
from ntkprefix.models import Adaptation, Cache, LowRank, generate


@nnx.jit
def run(model, tokens, **options):
    hidden = model(tokens, **options)
    return hidden if model.config.head == "none" else model.logits(hidden)


def close(ours, theirs, atol=1e-4):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-4)


def tokens_of(name, key="tokens"):
    return jnp.asarray(golden(name)[key], jnp.int32)


@pytest.mark.parametrize("name", NAMES)
def test_equals_transformers(name, loaded):
    close(run(loaded(name), tokens_of(name)), golden(name)["out"])


@pytest.mark.parametrize("name", NAMES)
def test_padded_rows_equal_transformers(name, loaded):
    lengths = golden(name)["lengths"]
    mask = jnp.arange(11)[None] < jnp.asarray(lengths)[:, None]
    ours = run(loaded(name), tokens_of(name), mask=mask)
    for row, length in enumerate(lengths):
        close(ours[row, :length], golden(name)["padded"][row, :length])


@pytest.mark.parametrize("name", NAMES)
def test_long_texts_equal_transformers(name, loaded):
    close(run(loaded(name), tokens_of(name, "long_tokens"))[:, -5:], golden(name)["long_out"], atol=3e-4)


def test_segments_equal_transformers(loaded):
    ours = run(loaded("bert"), tokens_of("bert"), token_types=tokens_of("bert", "types"))
    close(ours, golden("bert")["typed"])


@pytest.mark.parametrize("name", DECODERS)
def test_padding_on_the_left_changes_nothing(name, loaded):
    tokens = tokens_of(name)[:1, :6]
    padded = jnp.pad(tokens, ((0, 0), (3, 0)), constant_values=7)
    mask = jnp.arange(9)[None] >= 3
    close(run(loaded(name), padded, mask=mask)[:, 3:], run(loaded(name), tokens), atol=1e-5)


def prefix_of(model, rows=None, kind="tokens"):
    block, layers = model.config.block, model.config.layers
    lead = (layers,) if rows is None else (layers, rows)
    random = jax.random.split(jax.random.key(4), 3)
    if kind == "tokens":
        shape = (*lead, 5, block.kv_heads, block.head_width)
        return TokenPrefix(jax.random.normal(random[0], shape), jax.random.normal(random[1], shape))
    shape = (*lead, block.heads, block.head_width)
    Z = jax.random.normal(random[0], (*shape, block.head_width))
    return FeaturePrefix(Z, jnp.abs(jax.random.normal(random[1], shape)), log_scale=jnp.ones(shape[:-1]))


@pytest.mark.parametrize("kind", ["none", "tokens", "features"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "chatglm", "qwen3"])
def test_decoding_equals_the_whole(name, kind, loaded):
    """Prefill in two chunks of rows of different lengths, then token by token, with the prefix outside the cache."""
    model, tokens = loaded(name), tokens_of(name)
    prefixes = None if kind == "none" else prefix_of(model, kind=kind)
    whole = run(model, tokens, prefixes=prefixes)
    if kind != "none":
        assert np.abs(whole - run(model, tokens)).max() > 1e-2
    cache = Cache.empty(model.config, 3, 16)
    lengths = jnp.array([4, 2, 3])
    extend = nnx.jit(lambda model, *inputs, **options: model.extend(*inputs, **options))
    first, cache = extend(model, tokens[:, :4], cache, lengths=lengths, prefixes=prefixes)
    for row, length in enumerate(lengths):
        close(model.logits(first[row, :length]), whole[row, :length], atol=2e-5)
    for _ in range(5):
        new = jnp.take_along_axis(tokens, cache.lengths[:, None], axis=1)
        at = cache.lengths
        hidden, cache = extend(model, new, cache, prefixes=prefixes)
        close(model.logits(hidden[:, 0]), whole[jnp.arange(3), at], atol=2e-5)
    assert cache.lengths.tolist() == [9, 7, 8]


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_text_equals_transformers(name, loaded):
    tokens = tokens_of(name)
    made = generate(loaded(name), tokens, 12, lengths=jnp.array([11, 4, 7])).tokens
    expected = golden(name)["greedy"][0, 11:]
    np.testing.assert_array_equal(made[0], expected)
    # The other rows continue their own shorter prompts.
    alone = generate(loaded(name), tokens[1:2, :4], 12).tokens
    np.testing.assert_array_equal(made[1], alone[0])


def test_generation_stops(loaded):
    model, tokens = loaded("llama"), tokens_of("llama")
    free = generate(model, tokens, 12).tokens
    stop = int(free[0, 3])
    stopped = generate(model, tokens, 12, stop=stop)
    for row in range(3):
        found = np.flatnonzero(free[row] == stop)
        length = found[0] + 1 if len(found) else 12
        assert stopped.lengths[row] == length
        np.testing.assert_array_equal(stopped.tokens[row, :length], free[row, :length])
        assert (stopped.tokens[row, length:] == stop).all()


def test_samples_follow_the_distribution(loaded):
    model, tokens = loaded("llama"), tokens_of("llama")[:1]
    logits = np.asarray(run(model, tokens)[0, -1], np.float64) / 0.7
    likely = np.exp(logits - logits.max())
    likely /= likely.sum()
    order = np.argsort(-likely)
    kept = order[: np.searchsorted(np.cumsum(likely[order]), 0.8) + 1]
    expected = np.zeros_like(likely)
    expected[kept] = likely[kept] / likely[kept].sum()
    many = jnp.repeat(tokens, 4000, axis=0)
    made = generate(model, many, 1, temperature=0.7, top_p=0.8, key=jax.random.key(1)).tokens[:, 0]
    found = np.bincount(np.asarray(made), minlength=61) / 4000
    assert set(np.flatnonzero(found)) <= set(kept)
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(expected.max() / 4000))
    cold = generate(model, tokens, 3, temperature=0.0, top_p=0.5, key=jax.random.key(1)).tokens
    np.testing.assert_array_equal(cold, generate(model, tokens, 3).tokens)


def test_low_rank_updates_equal_merged_weights(loaded):
    model, tokens = loaded("qwen2"), tokens_of("qwen2")
    block, layers = model.config.block, model.config.layers
    kernels = {"query": "attention", "value": "attention", "gate": "mlp", "down": "mlp"}
    merged, updates = nnx.clone(model), {}
    for index, (name, part) in enumerate(kernels.items()):
        kernel = getattr(getattr(merged.blocks, part), name).kernel
        down, up = jax.random.split(jax.random.key(index))
        update = LowRank(
            0.3 * jax.random.normal(down, (layers, kernel.shape[1], 2)),
            0.3 * jax.random.normal(up, (layers, 2, kernel.shape[2])),
            jnp.full(layers, 0.5),
        )
        updates[name] = update
        kernel.set_value(update.merged(kernel[...]))
    ours = run(model, tokens, adapter=Adaptation(low_rank=updates))
    close(ours, run(merged, tokens), atol=1e-5)
    assert np.abs(ours - run(model, tokens)).max() > 0.1
    assert block.kv_heads == 2


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_a_prompt_is_tokens_in_front(name, loaded):
    """A prompt made of tokens' embeddings is those tokens."""
    model, tokens = loaded(name), tokens_of(name)
    prompt = model.tokens.embedding[...][tokens[0, :3]]
    ours = run(model, tokens[:1, 3:], adapter=Adaptation(prompt=prompt))
    close(ours, run(model, tokens[:1])[:, 3:], atol=1e-5)


def test_statistics_leave_out_padding_and_what_is_hidden(loaded):
    model, tokens = loaded("llama"), tokens_of("llama")
    lengths = jnp.array([11, 4, 7])
    padded = model.attention_statistics(tokens, mask=jnp.arange(11)[None] < lengths[:, None])
    rows = [model.attention_statistics(tokens[row : row + 1, :length]) for row, length in enumerate([11, 4, 7])]
    weights = np.array([11, 4, 7]) / 22
    for name in ("log_sum_exp", "key_mean", "value_mean"):
        mean = sum(weight * getattr(row, name) for weight, row in zip(weights, rows, strict=True))
        np.testing.assert_allclose(getattr(padded, name), mean, atol=1e-5)
    harmonic = -np.log(sum(w * np.exp(-row.log_harmonic_mass) for w, row in zip(weights, rows, strict=True)))
    np.testing.assert_allclose(padded.log_harmonic_mass, harmonic, atol=1e-5)
