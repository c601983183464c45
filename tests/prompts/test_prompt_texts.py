"""Texts behind a prompt: what the model says, pieces of the prompt, and what each of them sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from ntkprefix import TokenPrefix
from ntkprefix.prompts import Texts, calibrate, compress_prompt, continued, read_prompt, repeated
from ntkprefix.prompts.effects import scores
from ntkprefix.prompts.sizes import judging
from ntkprefix.prompts.texts import texts_behind, without_last


def text_of(name):
    return jnp.asarray(golden(name)["tokens"], jnp.int32)[:1]


def test_pieces_of_the_prompt_cover_it():
    pieces = repeated(np.arange(1000), rows=5, length=100, seed=3)
    assert sorted(pieces[:, 0].tolist()) == [0, 225, 450, 675, 900]
    np.testing.assert_array_equal(pieces, pieces[:, :1] + np.arange(100))
    assert repeated(np.arange(7), rows=5, length=100).shape == (1, 7)


def test_continuations_are_drawn_as_the_model_says(loaded):
    model, tokens = loaded("llama"), text_of("llama")
    texts = continued(model, read_prompt(model, tokens), int(tokens[0, -1]), rows=2000, length=1, seed=1)
    said = jax.nn.softmax(model.logits(model(tokens)[0, -1]))
    found = np.bincount(np.asarray(texts[:, 0]), minlength=len(said)) / 2000
    assert np.abs(found - said).max() < 4 * np.sqrt(0.25 / 2000)
    assert np.corrcoef(found, said)[0, 1] > 0.5


@pytest.mark.parametrize("length", [3, 50])
def test_texts_of_both_kinds_are_mixed(length, loaded, unchecked):
    model, tokens = loaded("llama"), text_of("llama")
    whole, count = read_prompt(model, tokens), tokens.shape[1]
    short = min(length, count // 2)  # pieces leave as much of the prompt as they take

    def behind(kind, length):
        options = {"start": count - 1, "rows": 4, "length": length, "seed": 3}
        return texts_behind(model, kind, tokens, without_last(whole), **options)

    said, pieces, both = behind("continue", short), behind("apart", length), behind("both", length)
    assert said.apart is None
    rows = [np.concatenate([texts.tokens, texts.apart[:, None]], axis=1).tolist() for texts in (pieces, both)]
    assert sorted(rows[1]) == sorted([*([*row, count] for row in said.tokens.tolist()), *rows[0]])
    flags = np.asarray(both.apart) == count
    assert flags.sum() == 4
    assert flags[:4].any()
    assert not flags[:4].all()
    for tokens_of_piece, first in zip(pieces.tokens, pieces.apart, strict=True):
        np.testing.assert_array_equal(tokens_of_piece, tokens[0, first : first + short])
    np.testing.assert_array_equal(sorted(both.taught(count).tokens.tolist()), sorted(said.tokens.tolist()))
    taught = pieces.taught(count)  # where none sees all of it, all are repeated
    assert taught.apart is None
    np.testing.assert_array_equal(taught.tokens, pieces.tokens)
    with pytest.raises(ValueError, match="unknown kind of texts 'neither'; expected one of apart, both, continue"):
        compress_prompt(model, tokens, method="ends", budget=2, texts="neither")


@pytest.mark.parametrize("weighted", [False, True])
def test_a_piece_is_read_behind_all_but_itself(weighted, loaded):
    """Against the prompt with the piece cut out, of the queries, of what they see beside it, and of what is felt."""
    model, tokens = loaded("llama"), text_of("llama")
    whole, count = read_prompt(model, tokens), tokens.shape[1]
    if weighted:
        weights = 0.3 * np.random.default_rng(0).standard_normal(whole.keys.shape[:-1])
        whole = TokenPrefix(whole.keys, whole.values, jnp.asarray(weights, jnp.float32))
    texts = Texts(jnp.stack([tokens[0, first : first + 2] for first in (1, 3, 0)]), jnp.array([1, 3, count]))
    asked = calibrate(model, texts.tokens, texts.seen(whole), start=count)
    full = calibrate(model, texts.tokens, whole, start=count)
    for row, first in enumerate(texts.apart.tolist()):
        kept = np.r_[:first, first + 2 : count] if first < count else np.arange(count)
        rest = jax.tree.map(lambda leaf, at=kept: leaf[:, at], whole)
        expected = calibrate(model, texts.tokens[row : row + 1], rest, start=count)
        for one, other in zip(jax.tree.leaves(asked), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one[:, 2 * row : 2 * row + 2], other, atol=3e-5)
        differs = np.abs(asked.queries - full.queries)[:, 2 * row : 2 * row + 2].max()
        assert (differs > 1e-2) == (first < count)
        alone = scores(model, texts.some(slice(row, row + 1)), whole, start=count)
        np.testing.assert_allclose(alone, scores(model, Texts(texts.tokens[row][None]), rest, start=count), atol=1e-5)
        assert np.abs(alone).max() > 1e-3


def test_sizes_are_judged_on_the_later_half():
    texts = Texts(jnp.arange(24).reshape(8, 3), jnp.arange(8))
    found = judging(texts)  # 6 of 8 are fitted to
    np.testing.assert_array_equal(found.tokens, texts.tokens[3:6])
    np.testing.assert_array_equal(found.apart, [3, 4, 5])
    few = judging(Texts(jnp.arange(8).reshape(2, 4)))  # the first, and half of the second
    np.testing.assert_array_equal(few.tokens, [np.arange(4)])
    alone = judging(Texts(jnp.arange(8)[None]))
    np.testing.assert_array_equal(alone.tokens, [np.arange(6)])
