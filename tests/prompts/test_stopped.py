"""A compression that was stopped goes on from what it had done, to the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from ntkprefix.prompts import compress_prompt
from ntkprefix.train import TrainConfig


class StoppedError(Exception):
    pass


def stop_at(moment):
    """A call back that ends the call where it is told of this."""
    told = []

    def tell(what, done, _):
        told.append((what, done))
        if told[-1] == moment:
            raise StoppedError

    return tell, told


# Of two layers; chunks of 5 tokens.
CASES = {
    "even": {"budget": "2 tokens", "method": "matching"},
    "by need, of several sizes": {"budget": "3 tokens", "share": "need"},
    "by effect, in 8 bits": {"budget": "3 tokens", "share": "effect", "dtype": "int8"},
    "texts, and training": {
        "budget": "2 tokens",
        "method": "kmeans",
        "distil": TrainConfig(epochs=6, batch_size=4, learning_rate=0.01),
    },
}


@pytest.fixture(scope="module")
def compressed(loaded):
    model, tokens = loaded("llama"), jnp.asarray(golden("llama")["tokens"], jnp.int32)
    prompt = tokens[:1]
    own = jnp.tile(tokens, (4, 1))[:, :6]

    def compressed(case, folder=None, on_step=None):
        options = {"texts": own} if "texts" in case else {}
        return compress_prompt(model, prompt, chunk=5, folder=folder, on_step=on_step, **options, **CASES[case])

    return compressed


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("case", CASES)
def test_goes_on_to_the_same_numbers(case, compressed, tmp_path):
    tell, told = stop_at(None)
    whole = compressed(case, on_step=tell)
    kept = {}
    for step in np.unique(np.linspace(0, len(told) - 1, 5).astype(int)):
        with pytest.raises(StoppedError):
            compressed(case, tmp_path, stop_at(told[step])[0])
        # What was there is there, as it was.
        assert files(tmp_path).items() >= kept.items()
        kept = files(tmp_path)
    assert len(kept) >= 4
    again = compressed(case, tmp_path)
    assert files(tmp_path) == kept
    assert jax.tree.structure(again) == jax.tree.structure(whole)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_calls_have_parts_of_their_own(compressed, tmp_path):
    compressed("even", tmp_path)
    (one,) = tmp_path.iterdir()
    before = files(one)
    compressed("by need, of several sizes", tmp_path)
    assert files(one) == before
    assert len(list(tmp_path.iterdir())) == 2
    # One number that is another is found, and its file named.
    layer = one / "layer-0.safetensors"
    layer.write_bytes(layer.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"layer-0.safetensors: .* it is damaged. Delete it"):
        compressed("even", tmp_path)


def test_what_is_wrong_is_known_before_anything_is_read(loaded):
    tell, told = stop_at(None)
    tokens = jnp.asarray(golden("llama")["tokens"], jnp.int32)[:1]
    for options, said in (({"budget": "900x"}, "room for a token"), ({"budget": 2, "method": "best"}, "'best'")):
        with pytest.raises(ValueError, match=said):
            compress_prompt(loaded("llama"), tokens, on_step=tell, **options)
    assert told == []
