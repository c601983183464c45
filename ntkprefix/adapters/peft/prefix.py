"""PEFT's prefix tuning: one matrix of keys and values, used as they are, without rotation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from ntkprefix import checks
from ntkprefix.adapters.tokens import TokenAdapter
from ntkprefix.models.checkpoints import Source, fill
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.text import TextConfig, TextModel

# The projection and the start are training's: what PEFT saves has gone through the projection.
OPTIONS = {"num_virtual_tokens", "prefix_projection", "encoder_hidden_size", "init_weights"}
OPTIONS |= {"num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules"}
_NAME = "prompt_embeddings"


def read(
    settings: Settings, model: TextModel, tensors: Mapping[str, np.ndarray], file: Path
) -> tuple[TokenAdapter, PyTree]:
    """The adapter of `prompt_embeddings` [M, (layers, key or value, K, H)].

    Raises:
        ValueError: sizes other than the model's, or another tensor.
    """
    length = settings.count("num_virtual_tokens")
    for name, expected in _sizes(model.config).items():
        found = settings.count(name, default=expected)
        if found != expected:
            raise ValueError(f"{settings.path}: expected {name} = {expected}, as the model has, got {found}.")
    layers, heads, width = _shape(model.config)

    def make() -> nnx.Module:
        return nnx.Dict({_NAME: nnx.Param(jnp.zeros((length, layers * 2 * heads * width)))})

    filled = fill(make, {_NAME: Source(_NAME)}, tensors, file=file)[_NAME][...]
    # PEFT has the tokens in front, the adapter the layers.
    both = filled.reshape(length, layers, 2, heads, width).transpose(2, 1, 0, 3, 4)
    return TokenAdapter(length=length), {"keys": both[0], "values": both[1]}


def written(
    adapter: TokenAdapter, arrays: Mapping[str, np.ndarray], model: TextModel
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Options and tensors of the file.

    Raises:
        ValueError: arrays of another adapter or model.
    """
    layers, heads, width = _shape(model.config)
    sizes = {"L": layers, "K": heads, "H": width, "Hv": width, **adapter.sizes()}
    try:
        checks.stored_arrays("TokenAdapter", adapter.axes(), sizes, arrays)
    except ValueError as error:
        raise ValueError(f"save_peft: {error}.") from error
    both = np.stack([arrays["keys"], arrays["values"]])
    options = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": adapter.length,
        "prefix_projection": False,
        "encoder_hidden_size": heads * width,
        **_sizes(model.config),
    }
    return options, {_NAME: both.transpose(2, 1, 0, 3, 4).reshape(adapter.length, -1)}


def _shape(config: TextConfig) -> tuple[int, int, int]:
    return config.layers, config.block.kv_heads, config.block.head_width


def _sizes(config: TextConfig) -> dict[str, int]:
    """PEFT's names for the sizes that a prefix has: with grouped queries, those of keys and values."""
    layers, heads, width = _shape(config)
    sizes = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width}
    return sizes | {"num_transformer_submodules": 1}
