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
from ntkprefix.hosts import to_host
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

    Example:
        >>> import jax, numpy as np
        >>> from flax import nnx
        >>> from ntkprefix.adapters import FeatureAdapter
        >>> from ntkprefix.language import LanguageTask
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> from ntkprefix.texts import Answers
        >>> from ntkprefix.train import TrainConfig, train
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> config = TextConfig(vocabulary=20, layers=2, block=block, positions=16, head="tied")
        >>> task = LanguageTask(TextModel(config, rngs=nnx.Rngs(0)), FeatureAdapter(), longest=2)
        >>> tokens = np.random.default_rng(0).integers(20, size=(16, 8)).astype(np.int32)
        >>> answers = Answers(tokens, starts=np.full(16, 6, np.int32), lengths=np.full(16, 8, np.int32))
        >>> start = task.init(jax.random.key(0), answers)
        >>> result = train(task.loss, start, task.frozen, answers, TrainConfig(epochs=1))
        >>> task.log_likelihoods(result.params, answers).shape
        (16,)
    """

    def __init__(self, model: TextModel, adapter: Adapter, longest: int):
        self._graph, self.frozen = nnx.split(model)
        self._adapter, self.longest = adapter, longest

    def init(self, key: PRNGKeyArray, answers: Answers) -> PyTree:
        """Starting parameters.

        Args:
            key: random key of the adapter.
            answers: a batch of training rows, on which the adapter calibrates.

        Returns:
            `{"adapter": ...}`.
        """
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
        """What `train` minimises: a sum over the answers' tokens and their number, whose quotient is the mean.

        Args:
            params: from `init` or from training.
            frozen: `self.frozen`; an argument, so that it is no constant of the compiled program.
            tokens: questions and answers, [B, T].
            starts: where each answer starts, [B].
            lengths: tokens of question and answer, [B].

        Returns:
            Negative log-likelihood of the answers' tokens, summed over the batch, in nats; and how many they are.
        """
        log_likelihood, counted = self._token_log_likelihoods(params, frozen, tokens, starts, lengths)
        return -jnp.sum(log_likelihood), jnp.sum(counted)

    def log_likelihoods(
        self, params: PyTree, answers: Answers, *, on_batch: Callable[[int], Any] | None = None
    ) -> Float[np.ndarray, " N"]:
        """Log-likelihood of every answer.

        Args:
            params: from `init` or from training.
            answers: N rows.
            on_batch: told after every batch how many rows are done.

        Returns:
            Sums over each answer's tokens, in nats, [N].
        """

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

        Args:
            params: from `init` or from training.
            answers: N rows.
            choices: first tokens, [C].
            on_batch: as in `log_likelihoods`.

        Returns:
            Index of the likeliest choice, [N].

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
        """Greedy answers to the questions; the answers' own are not read.

        Args:
            params: from `init` or from training.
            answers: N rows.
            new: most tokens of an answer.
            stop: token at which an answer ends, itself left out; None for none.
            on_batch: as in `log_likelihoods`.

        Returns:
            Tokens of every answer.
        """
        adaptation = self._adapter.adapt(params["adapter"])
        model = merge(self._graph, self.frozen, adaptation)
        made = []
        for start in range(0, len(answers.starts), _BATCH):
            tokens, starts, _ = _padded(answers, start)
            found = generate(model, tokens, new, lengths=jnp.maximum(starts, 1), adapter=adaptation, stop=stop)
            for row, length in zip(*to_host((found.tokens, found.lengths)), strict=True):
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
        found.append(to_host(one(*_padded(answers, start))))
        if on_batch is not None:
            on_batch(min(start + _BATCH, rows))
    return np.concatenate(found)[:rows]
