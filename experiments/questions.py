"""Questions on a document: what follows it, and words that stand in it and nowhere else."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ntkprefix.models import TextModel
from ntkprefix.models.tokenizers import Tokenizer

# Letters that a word has at least to be asked for.
_LETTERS = 6


class Questions(NamedTuple):
    """Rows of tokens, [B, T], and which of them are asked for."""

    tokens: Int[np.ndarray, "B T"]
    asked: Bool[np.ndarray, "B T"]


def following(after: Int[np.ndarray, " T"]) -> Questions:
    """All of a text but its first token."""
    return Questions(after[None], np.arange(len(after))[None] > 0)


def own_words(
    tokenizer: Tokenizer, document: Int[np.ndarray, " M"], other: str, *, questions: int, cue: int
) -> Questions:
    """Words that stand once in a document and never in another one, behind what is in front of them.

    Args:
        tokenizer: of the model that is asked.
        document: its tokens, [M].
        other: the text of the other one.
        questions: B, how many words, spread evenly over those that there are.
        cue: tokens in front of each.

    Returns:
        A row for every word: its cue, the word, and zeros that are not asked for.

    Raises:
        ValueError: fewer words than that.
    """
    pieces = [tokenizer.decode([token]) for token in document]
    text = "".join(pieces)
    found = []
    for first in range(cue, len(document)):
        if not pieces[first].startswith(" "):
            continue
        last = first + 1
        while last < len(document) and pieces[last][:1].isalpha():
            last += 1
        word = "".join(pieces[first:last]).strip()
        if len(word) >= _LETTERS and word.isalpha() and text.count(word) == 1 and word not in other:
            found.append((first, last))
    if len(found) < questions:
        raise ValueError(f"own_words: expected {questions} words of a document's own, got {len(found)}.")
    chosen = [found[at] for at in np.round(np.linspace(0, len(found) - 1, questions)).astype(int)]
    longest = cue + max(last - first for first, last in chosen)
    tokens, asked = np.zeros((len(chosen), longest), np.int32), np.zeros((len(chosen), longest), bool)
    for row, (first, last) in enumerate(chosen):
        length = cue + last - first
        tokens[row, :length] = document[first - cue : last]
        asked[row, cue:length] = True
    return Questions(tokens, asked)


def answers(
    model: TextModel, questions: Questions, prefixes: Any, start: int
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """Of every row: the log-likelihood of what is asked for, and whether all of it is the likeliest there is.

    Args:
        model: causal.
        questions: rows, each by itself.
        prefixes: what they come after, as for the model.
        start: position of a row's first token.
    """
    graph, weights = nnx.split(model)
    return _answers(graph, weights, *map(jnp.asarray, questions), prefixes, jnp.asarray(start))


@partial(jax.jit, static_argnames="graph")
def _answers(graph, weights, tokens, asked, prefixes, start):
    model = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1] - 1)[None], (tokens.shape[0], tokens.shape[1] - 1))
    hidden = model(tokens[:, :-1], prefixes=prefixes, positions=positions)

    def of_row(row):
        hidden, wanted, asked = row
        logits = jax.nn.log_softmax(model.logits(hidden))
        said = jnp.take_along_axis(logits, wanted[:, None], axis=1)[:, 0]
        likeliest = jnp.argmax(logits, axis=1) == wanted
        return jnp.sum(jnp.where(asked, said, 0.0)), jnp.all(likeliest | ~asked)

    return jax.lax.map(of_row, (hidden, tokens[:, 1:], asked[:, 1:]))
