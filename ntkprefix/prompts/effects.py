"""What an error of a head's output does to what the model says next: of every head, by one pass through the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ntkprefix._pytree import Leaf, pytree
from ntkprefix.compress.problem import Problem, answer
from ntkprefix.hosts import to_host
from ntkprefix.models import TextModel
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.base import PrefixShape
from ntkprefix.prompts.texts import Texts

# Texts that go through the model at once.
_BATCH = 4
# Of the mass, below which a prompt's part moves nothing.
_LEAST = 1e-30


@pytree
class _Nudged:
    """A prefix whose share's mean value is moved by `nudge`, [B, T, N, Hv], query by query."""

    seen: Leaf
    nudge: Leaf

    def shape(self) -> PrefixShape:
        return self.seen.shape()._replace(rows=self.nudge.shape[0])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        share = self.seen.partial(query, scale)
        return dataclasses.replace(share, num=share.num + self.nudge * share.den[..., None])


def scores(
    model: TextModel,
    texts: Texts,
    whole: TokenPrefix,
    *,
    start: int,
    draws: int = 2,
    seed: int = 0,
    on_texts: Callable[[int], None] = lambda _: None,
) -> Float[np.ndarray, "L S B T N Hv"]:
    r"""What the log-likelihood of the next tokens feels of each head's mean value of the prompt.

    $$ g_n(q) = \nabla_{v_n(q)} \sum_t \log p(y_t \mid prompt, text_{\le t}), \qquad y_t \sim p(\cdot \mid prompt,
       text_{\le t}), $$

    where the mean value $v_n(q)$ is the prompt's share of a query's attention, normalised by itself.

    Args:
        model: causal, with a head.
        texts: behind the prompt.
        whole: the prompt's own keys and values, [L, M, K, H].
        start: the texts' first position.
        draws: S, tokens drawn in place of each.
        seed: of these.
        on_texts: called with the number of texts done.

    Returns:
        Of every layer, [L, S, B, T, N, Hv].

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import Texts, read_prompt
        >>> from ntkprefix.prompts.effects import scores
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> whole = read_prompt(model, jnp.array([[3, 1, 4, 1, 5]]))
        >>> scores(model, Texts(jnp.array([[9, 2, 6], [5, 3, 5]])), whole, start=5).shape
        (2, 2, 2, 3, 3, 4)
    """
    graph, weights = nnx.split(model)
    count, start, found = len(texts.tokens), jnp.asarray(start), []
    firsts = range(0, count, _BATCH)
    for at, key in zip(firsts, jax.random.split(jax.random.key(seed), len(firsts)), strict=True):
        some = texts.some(slice(at, at + _BATCH))
        found.append(to_host(_scores(graph, weights, some, whole, start, key, draws=draws)))
        on_texts(min(at + _BATCH, count))
    return np.moveaxis(np.concatenate(found, axis=2), 0, 1)


@partial(jax.jit, static_argnames=("graph", "draws"))
def _scores(graph, weights, texts, whole, start, key, *, draws):
    model, tokens = nnx.merge(graph, weights), texts.tokens
    positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1])[None], tokens.shape)

    def logits(nudge: Float[Array, "L B T N Hv"]) -> Float[Array, "B T vocabulary"]:
        return model.logits(model(tokens, prefixes=_Nudged(texts.seen(whole), nudge), positions=positions))

    layers, _, _, width = whole.values.shape
    still = jnp.zeros((layers, *tokens.shape, model.config.block.heads, width), whole.values.dtype)
    said, back = jax.vjp(logits, still)

    def of_draw(key: Array) -> Float[Array, "L B T N Hv"]:
        drawn = jax.nn.one_hot(jax.random.categorical(key, said), said.shape[-1], dtype=said.dtype)
        return back(drawn - jax.nn.softmax(said))[0]

    return jax.lax.map(of_draw, jax.random.split(key, draws))


def effects(problem: Problem, felt: Float[Array, "S B T N Hv"], prefix: Any) -> Float[Array, " K"]:
    r"""The divergence that a prefix in place of one head's prompt would cause, of each head of one layer.

    $$ KL \approx \frac{1}{2 S B T} \sum_{s,b} \Big(\sum_{t,n} g_{sn}(q_{bt}) \cdot \delta_n(q_{bt})\Big)^2 $$

    to second order in the change $\delta$ of the mean value; sums over the query heads n of a kv head. The errors of
    different heads add to one another's divergences, which this leaves out.

    Args:
        problem: with the B T queries at which g was found.
        felt: g, of this layer.
        prefix: of this layer.

    Returns:
        Nats a token, [K].

    Source: the Fisher information as the divergence's second derivative, by tokens that the model draws.
    """
    exact, share = problem.exact(), answer(prefix, problem.queries, problem.scale)
    seen, out = (each if problem.beside is None else merge(each, problem.beside) for each in (exact, share))
    moved = out.normalise() - seen.normalise()
    # An output moves by the prompt's part of the mass times what its mean value moves by.
    part = jnp.exp(exact.log_mass() - seen.log_mass())
    # Where that is next to nothing so is g, and the product must stay finite.
    moved = moved / jnp.maximum(part, _LEAST)[..., None]
    draws, rows, length, heads, width = felt.shape
    products = jnp.sum(felt * moved.reshape(1, rows, length, heads, width), axis=(2, 4))
    of_heads = jnp.sum(products.reshape(draws, rows, problem.heads, -1), axis=-1)
    return jnp.mean(of_heads * of_heads, axis=(0, 1)) / (2 * length)
