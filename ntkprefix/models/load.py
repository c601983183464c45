"""Text models from Hugging Face folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntkprefix.models.checkpoints import NameMap, fill
from ntkprefix.models.families import TEXT
from ntkprefix.models.families.settings import read_settings
from ntkprefix.models.safetensors_folder import read_folder, weights_file
from ntkprefix.models.text import TextConfig, TextModel


def load_text_model(path: str | Path, *, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> TextModel:
    """A pretrained text transformer.

    Args:
        path: a folder with `config.json` and safetensors, as `save_pretrained` writes it. Its `model_type` may be bert,
            chatglm, glm, gpt2, llama, mistral, qwen2 or qwen3.
        dtype: of the matrix products.
        param_dtype: of the parameters.

    Returns:
        The model.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a file is damaged, the architecture or a variant of it is unknown, or the tensors do not fit the
            configuration.

    Example:
        >>> from ntkprefix.models import load_text_model
        >>> model = load_text_model("SmolLM2-135M")  # doctest: +SKIP
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: expected a model folder, found {'a file' if path.exists() else 'nothing'}.")
    family = read_settings(path / "config.json", lambda settings: settings.choice("model_type", known=TEXT))
    config = read_settings(path / "config.json", family.read_config).replace(dtype=dtype, param_dtype=param_dtype)
    tensors = rooted(read_folder(path), family.ROOT, family.ANCHOR)
    ignored = [*family.IGNORED, *(["lm_head\\.weight"] if config.head == "tied" else [])]
    return make(config, family.names(config), tensors, file=weights_file(path), ignored=ignored)


def make(
    config: TextConfig, names: NameMap, tensors: Mapping[str, np.ndarray], *, file: Path, ignored: list[str]
) -> TextModel:
    """The model of a configuration, with its parameters from tensors.

    Raises:
        ValueError: the tensors are not those of the configuration.
    """
    check_layers(config, names, tensors, file)
    return fill(lambda: TextModel(config, rngs=nnx.Rngs(0)), names, tensors, file=file, ignored=ignored)


def rooted(tensors: Mapping[str, np.ndarray], root: str, anchor: str) -> dict[str, np.ndarray]:
    """Tensors named as those of the whole model, where a file has those of its body alone."""
    if anchor not in tensors:
        return dict(tensors)
    return {root + name: tensor for name, tensor in tensors.items()}


def check_layers(config: TextConfig, names: NameMap, tensors: Mapping[str, Any], file: Path) -> None:
    """Refuse another number of layers than the file has, before names and shapes of a million are made.

    Raises:
        ValueError: they differ.
    """
    layered = names["blocks.attention_norm.scale"].name
    pattern = re.escape(layered).replace(re.escape("{layer}"), r"(\d+)")
    found = len({match[1] for match in map(re.compile(pattern).fullmatch, tensors) if match})
    if found != config.layers:
        raise ValueError(f"{file}: expected {config.layers:,} layers, as the configuration says, found {found:,}.")
