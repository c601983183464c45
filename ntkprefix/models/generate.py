"""Text from a causal model: one compiled program from the text's start to its last token."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ntkprefix.models import checks
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.cache import Cache
from ntkprefix.models.text import TextModel


class Generated(NamedTuple):
    """New tokens.

    Attributes:
        tokens: [B, new]; those after a stop token repeat it.
        lengths: tokens of each row up to and with its stop token, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel, generate
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4]])
        >>> likeliest = int(jnp.argmax(model.logits(model(tokens))[0, -1]))
        >>> found = generate(model, tokens, new=4, stop=likeliest)  # it comes first, and ends the row
        >>> found.lengths.tolist(), bool((found.tokens == likeliest).all())
        ([1], True)
    """

    tokens: Int[Array, "B new"]
    lengths: Int[Array, " B"]


def generate(
    model: TextModel,
    tokens: Int[Array, "B T"],
    new: int,
    *,
    lengths: Int[Array, " B"] | None = None,
    temperature: float | Float[Array, ""] = 0.0,
    top_p: float | Float[Array, ""] = 1.0,
    key: Key[Array, ""] | None = None,
    stop: int | None = None,
    start: int | Int[Array, " B"] = 0,
    prefixes: Any = None,
    adapter: Adaptation | None = None,
) -> Generated:
    """Continue texts, token by token.

    The cache has room for the text, an adapter's prompt in front of it and the new tokens; a prefix, however long,
    takes none of it. Temperature and `top_p` are arguments of the compiled program, not part of it.

    Args:
        model: causal, with a head.
        tokens: texts to continue, [B, T], padded on the right where they differ.
        new: how many tokens to make, at least 1.
        lengths: of the texts, [B], at least 1; T for all if None.
        temperature: of the softmax that tokens are drawn from; 0 takes the likeliest.
        top_p: tokens are drawn from the smallest set of likeliest ones that has this probability, above 0 up to 1.
        key: random key; needed above a temperature of 0.
        stop: token after which a row is done; when all rows are, the program ends.
        start: position of a text's first token, for all rows or [B]; M where the prefix stands for a prompt of M tokens
            that the text goes on from.
        prefixes: as for the model.
        adapter: as for the model; `weights` are to be merged into it before.

    Returns:
        The new tokens and how many of them count.

    Raises:
        TypeError: as for the model.
        ValueError: a setting out of range, a temperature without a key, or as for the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel, generate
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> generate(model, jnp.array([[3, 1, 4]]), new=5).tokens.shape
        (1, 5)

    Source: nucleus sampling, arXiv 1904.09751.
    """
    checks.tokens(tokens, None, model.config)
    _, _, prompt = checks.adaptation(prefixes, adapter)
    before = 0 if prompt is None else prompt.shape[0]
    checks.generation(tokens.shape, new, lengths, stop, before, model.config)
    checks.starting(start, before + tokens.shape[1] + new, tokens.shape[0], model.config)
    checks.drawing(temperature, top_p, key)
    if lengths is None:
        lengths = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
    graph, weights = nnx.split(model)
    numbers = (jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32))
    drawn = None if key is None else (key, *numbers)
    room = before + tokens.shape[1] + new
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), tokens.shape[:1])
    return _generate(graph, weights, tokens, lengths, drawn, start, prefixes, adapter, room=room, new=new, stop=stop)


@partial(jax.jit, static_argnames=("graph", "room", "new", "stop"))
def _generate(graph, weights, tokens, lengths, drawn, start, prefixes, adapter, *, room, new, stop):
    model = nnx.merge(graph, weights)
    batch = tokens.shape[0]
    cache = Cache.empty(model.config, batch, room, start)
    hidden, cache = model.extend(tokens, cache, lengths=lengths, prefixes=prefixes, adapter=adapter)
    # The prompt is in the cache now.
    later = None if adapter is None else dataclasses.replace(adapter, prompt=None)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    first = _choose(model.logits(last), drawn, 0)
    made = jnp.full((batch, new), 0 if stop is None else stop, jnp.int32).at[:, 0].set(first)
    done = jnp.zeros(batch, bool) if stop is None else first == stop

    def unfinished(carry):
        index, _, _, _, done = carry
        return (index < new) & ~jnp.all(done)

    def one(carry):
        index, token, cache, made, done = carry
        hidden, cache = model.extend(token[:, None], cache, prefixes=prefixes, adapter=later)
        token = _choose(model.logits(hidden[:, 0]), drawn, index)
        if stop is not None:
            token = jnp.where(done, stop, token)
            done = done | (token == stop)
        return index + 1, token, cache, made.at[:, index].set(token), done

    carry = (jnp.asarray(1), first, cache, made, done)
    _, _, _, made, _ = jax.lax.while_loop(unfinished, one, carry)
    if stop is None:
        return Generated(made, jnp.full(batch, new))
    stopped = made == stop
    return Generated(made, jnp.where(stopped.any(axis=1), jnp.argmax(stopped, axis=1) + 1, new))


def _choose(logits: Float[Array, "B vocabulary"], drawn: Any, index: Any) -> Int[Array, " B"]:
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if drawn is None:
        return likeliest
    key, temperature, top_p = drawn
    cold = temperature == 0
    scaled = logits / jnp.where(cold, 1.0, temperature)
    descending = -jnp.sort(-scaled, axis=-1)
    probabilities = jax.nn.softmax(descending, axis=-1)
    # A token stays while those before it have less than top_p; the likeliest always, even for a traced top_p of 0.
    kept = (jnp.cumsum(probabilities, axis=-1) - probabilities < top_p).at[:, 0].set(True)
    least = jnp.min(jnp.where(kept, descending, jnp.inf), axis=-1, keepdims=True)
    scaled = jnp.where(scaled >= least, scaled, -jnp.inf)
    sampled = jax.random.categorical(jax.random.fold_in(key, index), scaled, axis=-1).astype(jnp.int32)
    return jnp.where(cold, likeliest, sampled)
