"""What an error does to the next tokens' distribution: estimated for all heads at once, and found by trying each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from ntkprefix import Partial, TokenPrefix
from ntkprefix.compress.problem import Problem
from ntkprefix.prompts import Texts, calibrate, read_prompt
from ntkprefix.prompts.effects import effects, scores

START = 7


def log_probabilities(model, texts, prefixes):
    positions = jnp.broadcast_to(START + jnp.arange(texts.shape[1])[None], texts.shape)
    logits = np.asarray(model.logits(model(texts, prefixes=prefixes, positions=positions)), np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def off_by(what, whole):
    """What stands for the prompt, [L, M, K, ...], and is off by a little."""
    random = np.random.default_rng(0)
    wrong = jnp.asarray(0.1 * random.standard_normal(whole.keys.shape), jnp.float32)
    if what == "values":
        return TokenPrefix(whole.keys, whole.values + wrong, jnp.zeros(whole.keys.shape[:-1]))
    # Of keys and weights the prompt's part of the mass is another too.
    lighter = jnp.asarray(-0.2 * random.random(whole.keys.shape[:-1]), jnp.float32)
    return TokenPrefix(whole.keys + wrong, whole.values, lighter)


@pytest.mark.parametrize(("what", "within"), [("values", 0.2), ("keys and weights", 0.25)])
def test_effects_are_the_divergences_of_one_head_at_a_time(what, within, loaded):
    """KL in float64, head by head, against the estimate with many draws."""
    model = loaded("llama")
    tokens = jnp.asarray(golden("llama")["tokens"], jnp.int32)
    whole = read_prompt(model, tokens[:1, :START])
    texts = jnp.asarray(np.random.default_rng(1).integers(int(tokens.max()), size=(6, 5)), jnp.int32)
    asked = calibrate(model, texts, whole, start=START)
    told = []
    felt = scores(model, Texts(texts), whole, start=START, draws=400, on_texts=told.append)
    assert told == [4, 6]
    layers, _, heads, width = whole.keys.shape
    assert felt.shape == (layers, 400, 6, 5, model.config.block.heads, width)
    weighted = TokenPrefix(whole.keys, whole.values, jnp.zeros(whole.keys.shape[:-1]))
    off, said = off_by(what, whole), log_probabilities(model, texts, whole)
    found, estimated = np.zeros((2, layers, heads))
    for layer in range(layers):
        right, wrong, of_layer = jax.tree.map(lambda leaf, at=layer: leaf[at], (whole, off, asked))
        problem = Problem(right.keys, right.values, of_layer.queries, of_layer.beside, width**-0.5)
        estimated[layer] = effects(problem, jnp.asarray(felt[layer]), wrong)
        for head in range(heads):
            one = jax.tree.map(lambda a, b, at=(layer, slice(None), head): a.at[at].set(b[at]), weighted, off)
            other = log_probabilities(model, texts, one)
            found[layer, head] = (np.exp(said) * (said - other)).sum(axis=-1).mean()
    assert found.max() > 3 * found.min() > 1e-6  # heads differ, and by more than rounding
    np.testing.assert_allclose(estimated, found, rtol=within)


def test_a_prompt_that_nothing_looks_at_has_no_effect():
    """Its mass is e^-200 of what is beside it, and what stands for it does weigh something."""
    keys, values, queries = jax.random.normal(jax.random.key(0), (3, 6, 1, 4))
    beside = Partial(jnp.ones((6, 1, 4)), jnp.ones((6, 1)), jnp.full((6, 1), 200.0))
    problem = Problem(keys, values, queries, beside, 0.5)
    found = effects(problem, jnp.zeros((1, 2, 3, 1, 4)), TokenPrefix(keys, values, jnp.full((6, 1), 200.0)))
    assert found.tolist() == [0.0]


def test_a_prefix_without_errors_has_no_effect(loaded):
    model, tokens = loaded("gpt2"), jnp.asarray(golden("gpt2")["tokens"], jnp.int32)
    whole = read_prompt(model, tokens[:1, :START])
    texts = tokens[:1, START : START + 4]
    asked = calibrate(model, texts, whole, start=START)
    felt = scores(model, Texts(texts), whole, start=START)
    assert np.abs(felt).max() > 1e-3
    keys, values, of_layer = jax.tree.map(lambda leaf: leaf[0], (whole.keys, whole.values, asked))
    problem = Problem(keys, values, of_layer.queries, of_layer.beside, keys.shape[-1] ** -0.5)
    assert float(effects(problem, jnp.asarray(felt[0]), TokenPrefix(keys, values)).max()) == 0.0
    assert float(effects(problem, jnp.asarray(felt[0]), TokenPrefix(keys, 2 * values)).min()) > 0.0
