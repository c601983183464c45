"""Answers of a language model: likelihoods against plain NumPy, choices, training, generation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ntkprefix.adapters import FeatureAdapter, HeadAdapter, LoraAdapter
from ntkprefix.language import LanguageTask
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.texts import Answers
from ntkprefix.train import TrainConfig, train

VOCABULARY, LENGTH = 17, 9
RNG = np.random.default_rng(0)
# Twenty rows: more than a batch, and no multiple of one.
TOKENS = RNG.integers(1, VOCABULARY, (20, LENGTH)).astype(np.int32)
STARTS = RNG.integers(1, 6, 20).astype(np.int32)
LENGTHS = (STARTS + RNG.integers(1, 4, 20)).astype(np.int32)
ROWS = Answers(np.where(np.arange(LENGTH) < LENGTHS[:, None], TOKENS, 0), STARTS, LENGTHS)


@pytest.fixture(scope="module")
def model():
    block = BlockConfig(width=12, heads=3, mlp_width=16, causal=True)
    config = TextConfig(vocabulary=VOCABULARY, layers=2, block=block, positions=16)
    return nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def logits_of(model):
    """Logits at every token of a row that is alone, by one program for each length."""
    graph, weights = nnx.split(model)

    @jax.jit
    def run(weights, tokens):
        model = nnx.merge(graph, weights)
        return model.logits(model(tokens))[0]

    return lambda tokens: np.asarray(run(weights, jnp.asarray(tokens)[None]))


@pytest.fixture(scope="module")
def plain(model):
    task = LanguageTask(model, HeadAdapter(), longest=3)
    return task, task.init(jax.random.key(0), ROWS)


def expected(logits_of):
    """Log-likelihood of every answer's tokens, from logits of each row alone, in float64."""
    rows = []
    for tokens, start, length in zip(*ROWS, strict=True):
        logits = logits_of(tokens[:length]).astype(float)
        log_softmax = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        rows.append([log_softmax[place - 1, tokens[place]] for place in range(start, length)])
    return rows


def test_likelihoods_are_those_of_the_answers_tokens_alone(logits_of, plain):
    task, params = plain
    wanted = expected(logits_of)
    done = []
    found = task.log_likelihoods(params, ROWS, on_batch=done.append)
    np.testing.assert_allclose(found, [sum(row) for row in wanted], rtol=1e-5)
    assert done == [16, 20]
    total, counted = task.loss(params, task.frozen, *map(jnp.asarray, ROWS))
    np.testing.assert_allclose(total, -sum(map(sum, wanted)), rtol=1e-5)
    assert counted == sum(map(len, wanted))


def test_only_answers_train(plain):
    """Another question's tail or padding may change the loss; tokens after an answer may not."""
    task, params = plain
    noise = np.where(np.arange(LENGTH) < LENGTHS[:, None], ROWS.tokens, 5)
    first, second = (task.loss(params, task.frozen, *map(jnp.asarray, (t, *ROWS[1:]))) for t in (ROWS.tokens, noise))
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)


def test_a_no_op_starts_at_the_models_own_likelihoods(model, plain):
    task = LanguageTask(model, FeatureAdapter(), longest=3)
    params = task.init(jax.random.key(0), ROWS)
    np.testing.assert_array_equal(task.log_likelihoods(params, ROWS), plain[0].log_likelihoods(plain[1], ROWS))


def test_choices_are_the_likeliest_first_tokens(logits_of, plain):
    task, params = plain
    choices = np.array([3, 11, 7])
    wanted = []
    for tokens, start, _ in zip(*ROWS, strict=True):
        wanted.append(np.argmax(logits_of(tokens[:start])[-1, choices]))
    np.testing.assert_array_equal(task.choose(params, ROWS, choices), wanted)
    with pytest.raises(ValueError, match=r"start with different tokens, got \[3, 3\]"):
        task.choose(params, ROWS, np.array([3, 3]))


def test_generation_is_the_greedy_continuation_of_the_question(logits_of, plain):
    task, params = plain
    made = task.generate(params, ROWS, 3)
    for row, tokens, start in zip(made, ROWS.tokens, ROWS.starts, strict=True):
        text = tokens[:start].tolist()
        for _ in range(3):
            text.append(int(np.argmax(logits_of(text)[-1])))
        assert row == text[start:]
    stop = made[0][1]
    cut = task.generate(params, ROWS, 3, stop=stop)
    assert cut[0] == made[0][:1] if made[0][0] != stop else cut[0] == []


@pytest.mark.parametrize("adapter", [FeatureAdapter(), LoraAdapter(rank=2)], ids=lambda kind: type(kind).__name__)
def test_training_makes_answers_likelier(model, adapter):
    task = LanguageTask(model, adapter, longest=3)
    params = task.init(jax.random.key(0), ROWS)
    before = task.log_likelihoods(params, ROWS)
    config = TrainConfig(epochs=40, batch_size=10, micro_batches=2, learning_rate=0.03)
    result = train(task.loss, params, task.frozen, ROWS, config, project=task.project)
    assert task.log_likelihoods(result.params, ROWS).mean() > before.mean() + 1
    assert result.losses[-4:].mean() < result.losses[:4].mean() - 0.2
