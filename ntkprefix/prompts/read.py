"""A long prompt's keys and values, a chunk at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from ntkprefix import checks
from ntkprefix.models import Cache, TextModel
from ntkprefix.parts import Parts
from ntkprefix.prefixes import TokenPrefix


def read_prompt(
    model: TextModel,
    tokens: Int[Array, "1 M"],
    *,
    chunk: int = 512,
    start: int = 0,
    prefixes: Any = None,
    on_chunk: Callable[[int], None] | None = None,
    parts: Parts | None = None,
) -> TokenPrefix:
    """Keys and values that every layer computes of a prompt: what a cache would hold of it.

    What is computed at a time is one chunk; beside it there are the keys and values themselves.

    Args:
        model: causal.
        tokens: the prompt, [1, M].
        chunk: tokens that are read at a time.
        start: the position of its first token: keys of a model that turns them are turned to M positions from there.
        prefixes: what the prompt itself comes after, as for the model.
        on_chunk: called after every chunk with the number of tokens read so far.
        parts: where chunks that have been read are kept, and those of a call that was stopped are found.

    Returns:
        Keys [L, M, K, H] and values [L, M, K, Hv], float32.

    Raises:
        TypeError: as for the model.
        ValueError: another number of rows than one, no tokens, a chunk below 1, a damaged part, or as for the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> from ntkprefix.prompts import read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> read_prompt(model, jnp.array([[3, 1, 4, 1, 5]]), chunk=2).keys.shape
        (2, 5, 3, 4)
    """
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] < 1:
        raise ValueError(f"read_prompt: expected one prompt of at least one token, got shape {list(tokens.shape)}.")
    checks.at_least(1, "read_prompt", chunk=chunk)
    length = tokens.shape[1]
    chunk = min(chunk, length)
    # Room for whole chunks: what the last one is filled up with comes behind the prompt, and is cut off.
    room = -(-length // chunk) * chunk
    cache = Cache.empty(model.config, 1, room, start)
    graph, weights = nnx.split(model)
    padded = jnp.pad(jnp.asarray(tokens), ((0, 0), (0, room - length)))
    parts = parts or Parts()
    like = jax.eval_shape(partial(_chunk, chunk=chunk), cache, 0)
    for first in range(0, length, chunk):
        found = parts.find(f"read-{first}", like)
        if found is not None:
            cache = _write(cache, found)
        else:
            cache = _read(graph, weights, padded[:, first : first + chunk], cache, prefixes)
            if parts.folder is not None:
                parts.put(f"read-{first}", _chunk(cache, first, chunk=chunk))
        if on_chunk is not None:
            jax.block_until_ready(cache.lengths)
            on_chunk(min(first + chunk, length))
    return TokenPrefix(*(array[:, 0, :length].astype(jnp.float32) for array in (cache.keys, cache.values)))


@partial(jax.jit, static_argnames="graph", donate_argnames="cache")
def _read(graph, weights, tokens, cache, prefixes):
    return nnx.merge(graph, weights).extend(tokens, cache, prefixes=prefixes)[1]


@partial(jax.jit, static_argnames="chunk")
def _chunk(cache, first, *, chunk):
    """Keys and values of the tokens from `first` on, [L, 1, chunk, K, ...]."""
    return tuple(jax.lax.dynamic_slice_in_dim(array, first, chunk, axis=2) for array in (cache.keys, cache.values))


@partial(jax.jit, donate_argnames="cache")
def _write(cache, found):
    """The cache after a chunk that has been read before."""
    first = cache.lengths[0]
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(array, part, first, axis=2)
        for array, part in zip((cache.keys, cache.values), found, strict=True)
    )
    return dataclasses.replace(cache, keys=keys, values=values, lengths=cache.lengths + found[0].shape[2])
