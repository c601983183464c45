"""A model's own keys and values of a text or of images: the prefix that putting them in front would be."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ntkprefix.models import TextModel, ViT
from ntkprefix.prefixes import TokenPrefix


def own_tokens(model: TextModel | ViT, rows: Array) -> TokenPrefix:
    """Keys and values that every layer computes of one text, or of one image: a prefix to start from, or to compress.

    Keys of a model that turns them (RoPE) are turned to the text's own positions, 0 to M - 1; an input behind the
    prefix has positions from 0 too, unless it is given others.

    Args:
        model: the pretrained model.
        rows: one row: tokens [1, M], or a normalised image [1, h, w, 3].

    Returns:
        Keys [L, M, K, H] and values [L, M, K, Hv], float32.

    Raises:
        TypeError: as for the model.
        ValueError: more than one row, or as for the model.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import own_tokens
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> own_tokens(model, jnp.array([[3, 1, 4, 1, 5]])).keys.shape
        (2, 5, 3, 4)

    Source: initialisation from text (arXiv 2101.00190, section 7.4, "real words").
    """
    if rows.shape[0] != 1:
        raise ValueError(f"own_tokens: expected one row, got {rows.shape[0]}.")

    def keep(query: Array, key: Array, value: Array, **_: Any) -> tuple[Array, Array]:  # noqa: ARG001
        return key[0].astype(jnp.float32), value[0].astype(jnp.float32)

    return TokenPrefix(*model.observe(rows, keep))
