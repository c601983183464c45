"""Queries such as texts behind a prompt ask, and what each sees beside the prompt."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ntkprefix._pytree import Leaf, pytree
from ntkprefix.kernels import EVERYWHERE, best
from ntkprefix.models import TextModel
from ntkprefix.partial import Partial


@pytree
class Calibration:
    """Of every layer.

    Attributes:
        queries: [L, Q, N, H], float32, turned to their positions behind the prompt.
        beside: the share of the text's own tokens, [L, Q, N, ...].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import Partial
        >>> from ntkprefix.compress import compress
        >>> from ntkprefix.prompts import Calibration
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 2, 8, 1, 4))  # of 2 layers
        >>> alone = Partial(jnp.zeros((2, 8, 1, 4)), jnp.zeros((2, 8, 1)), jnp.full((2, 8, 1), -jnp.inf))
        >>> asked = jax.tree.map(lambda leaf: leaf[1], Calibration(queries, beside=alone))  # of the second
        >>> small = compress(keys[1], values[1], method="ends", budget=4, queries=asked.queries, beside=asked.beside)
        >>> small.report.error.shape, small.report.held_out
        ((1,), 2)
    """

    queries: Leaf
    beside: Partial


def calibrate(model: TextModel, texts: Int[Array, "B T"], prefixes: Any, *, start: int) -> Calibration:
    """What texts that follow a prompt ask of every layer.

    Args:
        model: causal.
        texts: each of which follows the prompt by itself, [B, T], without padding.
        prefixes: the prompt, as for the model; every row sees all of it.
        start: the texts' first position, M for a prompt of M tokens.

    Returns:
        Q = B T queries of every layer, row by row, and the texts' own share of their attention.

    Raises:
        TypeError: as for the model.
        ValueError: as for the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import calibrate, read_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> whole = read_prompt(model, jnp.array([[3, 1, 4, 1, 5]]))
        >>> asked = calibrate(model, jnp.array([[9, 2, 6], [5, 3, 5]]), whole, start=5)
        >>> asked.queries.shape, asked.beside.den.shape
        ((2, 6, 3, 4), (2, 6, 3))
    """
    graph, weights = nnx.split(model)
    return _observe(graph, weights, jnp.asarray(texts), prefixes, jnp.asarray(start, jnp.int32))


@partial(jax.jit, static_argnames="graph")
def _observe(graph, weights, texts, prefixes, start):
    model = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(start + jnp.arange(texts.shape[1])[None], texts.shape)
    return model.observe(texts, ask, prefixes=prefixes, positions=positions)


def ask(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    **options: Any,
) -> Calibration:
    """What one layer asks of a prefix, and what it sees besides: for `model.observe`, which gives all layers'.

    Args:
        query: [B, T, N, H].
        key: of the input itself, [B, S, K, H].
        value: [B, S, K, Hv].
        options: of `attention`: what hides keys from queries.

    Returns:
        Q = B T queries, row by row, and the input's own share of their attention, without a layer axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> from ntkprefix.prompts import ask
        >>> vit = ViT(ViTConfig(block=BlockConfig(width=12, heads=3, mlp_width=24), layers=2), rngs=nnx.Rngs(0))
        >>> vit.observe(jnp.zeros((4, 28, 28, 3)), ask).queries.shape  # 4 images of 4 patches and the class token
        (2, 20, 3, 4)
    """
    kernel = EVERYWHERE[best(query.shape[1], key.shape[1])]
    share = kernel.partial_attention(query, key, value, scale=query.shape[-1] ** -0.5, **options)
    flat = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]).astype(jnp.float32), (query, share))
    return Calibration(*flat)
