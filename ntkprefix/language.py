"""Answers by a frozen language model under an adapter: their likelihood trains, and choices are made by it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ntkprefix._extras import extra
from ntkprefix.adapters import Adapter
from ntkprefix.models import TextModel, generate
from ntkprefix.models.adaptation import merge
from ntkprefix.texts.arrays import Answers

with extra("models", "ntkprefix.language"):
    from flax import nnx

# Rows per call outside training.
_BATCH = 16


class LanguageTask:
    r"""Negative log-likelihood of answers, `-sum_t log p(answer_t | question, answer_<t)`, which trains an adapter.

    Only the states that predict an answer's tokens meet the vocabulary: for short answers most of the cost of a small
    model's logits, and nearly all of their memory.

    Attributes:
        frozen: the model's weights, shared by all tasks of one model.
        longest: tokens of the longest answer.
    """

    def __init__(self, model: TextModel, adapter: Adapter, longest: int):
        self._graph, self.frozen = nnx.split(model)
        self._adapter, self.longest = adapter, longest

    def init(self, key: PRNGKeyArray, answers: Answers) -> PyTree:
        """Starting parameters, `{"adapter": ...}`, calibrated on a batch of training rows."""
        model = nnx.merge(self._graph, self.frozen)
        mask = np.arange(answers.tokens.shape[1])[None] < answers.lengths[:, None]
        statistics = _statistics(self._graph, self.frozen, jnp.asarray(answers.tokens), jnp.asarray(mask))
        return {"adapter": self._adapter.init(key, model, statistics)}

    def project(self, params: PyTree) -> PyTree:
        """The nearest parameters that the adapter allows."""
        return {"adapter": self._adapter.project(params["adapter"])}

    def loss(
        self,
        params: PyTree,
        frozen: PyTree,
        tokens: Int[Array, "B T"],
        starts: Int[Array, " B"],
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Sum over the batch's answers of their tokens' negative log-likelihood, in nats, and the number of tokens."""
        log_likelihood, counted = self._token_log_likelihoods(params, frozen, tokens, starts, lengths)
        return -jnp.sum(log_likelihood), jnp.sum(counted)

    def log_likelihoods(
        self, params: PyTree, answers: Answers, *, on_batch: Callable[[int], Any] | None = None
    ) -> Float[np.ndarray, " N"]:
        """Log-likelihood of every answer, summed over its tokens, in nats; `on_batch` is told how many are done."""

        def one(*rows: Array) -> Array:
            return _answer_log_likelihoods(self, params, self.frozen, *rows)

        return _by_batches(one, answers, on_batch)

    def choose(
        self,
        params: PyTree,
        answers: Answers,
        choices: Int[np.ndarray, " C"],
        *,
        on_batch: Callable[[int], Any] | None = None,
    ) -> Int[np.ndarray, " N"]:
        """Which of C first tokens of answers is the likeliest after each question; the answers' own are not read.

        Raises:
            ValueError: two choices start with the same token.
        """
        if len(set(np.asarray(choices).tolist())) < len(choices):
            raise ValueError(
                f"choose: expected answers that start with different tokens, got {np.asarray(choices).tolist()}."
            )

        def one(tokens: Array, starts: Array, lengths: Array) -> Array:  # noqa: ARG001
            return _choose(self, params, self.frozen, tokens, starts, jnp.asarray(choices))

        return _by_batches(one, answers, on_batch)

    def generate(
        self,
        params: PyTree,
        answers: Answers,
        new: int,
        *,
        stop: int | None = None,
        on_batch: Callable[[int], Any] | None = None,
    ) -> list[list[int]]:
        """Greedy answers to the questions, up to and without `stop`; the answers' own are not read."""
        adaptation = self._adapter.adapt(params["adapter"])
        model = merge(self._graph, self.frozen, adaptation)
        made = []
        for start in range(0, len(answers.starts), _BATCH):
            tokens, starts, _ = _padded(answers, start)
            found = generate(model, tokens, new, lengths=jnp.maximum(starts, 1), adapter=adaptation, stop=stop)
            for row, length in zip(np.asarray(found.tokens), np.asarray(found.lengths), strict=True):
                kept = row[:length].tolist()
                made.append(kept[:-1] if stop is not None and kept[-1] == stop else kept)
            if on_batch is not None:
                on_batch(min(start + _BATCH, len(answers.starts)))
        return made[: len(answers.starts)]

    def _hidden(self, params, frozen, tokens, places):
        adaptation = self._adapter.adapt(params["adapter"])
        model = merge(self._graph, frozen, adaptation)
        # Rows are padded on the right, which no token sees, so there is nothing to mask.
        hidden = model(tokens, adapter=adaptation)
        return model, jnp.take_along_axis(hidden, places[..., None], axis=1)

    def _token_log_likelihoods(self, params, frozen, tokens, starts, lengths):
        places = starts[:, None] + jnp.arange(self.longest)[None]
        counted = (places < lengths[:, None]).astype(jnp.float32)
        places = jnp.clip(places, 1, tokens.shape[1] - 1)
        model, hidden = self._hidden(params, frozen, tokens, places - 1)
        logits = model.logits(hidden)
        targets = jnp.take_along_axis(tokens, places, axis=1)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return counted * (chosen - jax.nn.logsumexp(logits, axis=-1)), counted


@partial(jax.jit, static_argnums=0)
def _statistics(graph, frozen, tokens, mask):
    return nnx.merge(graph, frozen).attention_statistics(tokens, mask=mask)


@partial(jax.jit, static_argnums=0)
def _answer_log_likelihoods(task, params, frozen, tokens, starts, lengths):
    return jnp.sum(task._token_log_likelihoods(params, frozen, tokens, starts, lengths)[0], axis=1)


@partial(jax.jit, static_argnums=0)
def _choose(task, params, frozen, tokens, starts, choices):
    model, hidden = task._hidden(params, frozen, tokens, jnp.maximum(starts - 1, 0)[:, None])
    return jnp.argmax(jnp.take(model.logits(hidden[:, 0]), choices, axis=1), axis=1)


def _padded(answers: Answers, start: int) -> list[Array]:
    """One batch; every one has the same shape, so that one program serves them all."""
    batch = [array[start : start + _BATCH] for array in answers]
    missing = _BATCH - len(batch[0])
    return [jnp.asarray(np.concatenate([a, np.zeros((missing, *a.shape[1:]), a.dtype)])) for a in batch]


def _by_batches(one: Callable[..., Array], answers: Answers, on_batch: Callable[[int], Any] | None) -> np.ndarray:
    found, rows = [], len(answers.starts)
    for start in range(0, rows, _BATCH):
        found.append(np.asarray(one(*_padded(answers, start))))
        if on_batch is not None:
            on_batch(min(start + _BATCH, rows))
    return np.concatenate(found)[:rows]
