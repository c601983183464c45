"""The packaged text models against PyTorch's transformers."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from places import GOLDEN

from ntkprefix.models import generate, load_text_model
from ntkprefix.models.packages import WEIGHTS
from ntkprefix.models.packages import packaged as packaged_path
from ntkprefix.models.tokenizers import load_tokenizer

TEXTS = range(5)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "text_real.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module", params=["minilm", "smollm2"])
def packaged(request):
    if importlib.util.find_spec(WEIGHTS[request.param].package) is None:
        pytest.skip(f"the weights are not installed: {WEIGHTS[request.param].install}")
    return request.param, load_text_model(request.param)


@nnx.jit
def run(model, tokens, mask):
    hidden = model(tokens, mask=mask)
    return hidden if model.config.head == "none" else model.logits(hidden)


@pytest.mark.parametrize("text", TEXTS)
def test_equals_transformers(packaged, text, golden):
    name, model = packaged
    tokens, expected = golden[f"{name}/{text}/tokens"], golden[f"{name}/{text}/out"]
    # One shape, and one compilation, for all texts.
    padded = jnp.zeros((1, 96), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens, jnp.int32))
    out = run(model, padded, jnp.arange(96)[None] < len(tokens))[0, : len(tokens), :: int(golden["stride"])]
    out = out if name == "minilm" else out[-3:]
    np.testing.assert_allclose(out, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


def test_greedy_text_equals_transformers(packaged, golden):
    name, model = packaged
    if name == "minilm":
        pytest.skip("an encoder")
    tokens = golden["smollm2/0/tokens"]
    made = generate(model, jnp.asarray(tokens, jnp.int32)[None], 24).tokens[0]
    np.testing.assert_array_equal(made, golden["smollm2/greedy"][len(tokens) :])


def test_tokens_equal_transformers(packaged, golden):
    name, _ = packaged
    tokenizer = load_tokenizer(name)
    for text in TEXTS:
        words = str(golden["texts"][text])
        tokens = tokenizer.encode(words)
        assert tokens == golden[f"{name}/{text}/tokens"].tolist(), words
        if name == "smollm2":
            assert tokenizer.decode(tokens) == words


def test_the_list_of_words_is_enough(golden):
    if importlib.util.find_spec(WEIGHTS["minilm"].package) is None:
        pytest.skip("the weights are not installed")
    tokenizer = load_tokenizer(packaged_path("minilm") / "vocab.txt")
    for text in TEXTS:
        assert tokenizer.encode(str(golden["texts"][text])) == golden[f"minilm/{text}/tokens"].tolist()
