"""Text models from Hugging Face folders and GGUF files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ntkprefix.models.checkpoints import NameMap, fill
from ntkprefix.models.families import TEXT
from ntkprefix.models.families.settings import Settings, make_from, read_settings
from ntkprefix.models.gguf_file import read_gguf
from ntkprefix.models.hub import locate_model
from ntkprefix.models.packages import check_reads
from ntkprefix.models.safetensors_folder import read_folder, weights_file
from ntkprefix.models.text import TextConfig, TextModel
from ntkprefix.parallel import weights_onto


def load_text_model(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> TextModel:
    """A pretrained text transformer.

    Args:
        path: a folder with `config.json` and safetensors, as `save_pretrained` writes it, whose `model_type` may be
            bert, chatglm, glm, gpt2, llama, mistral, qwen2 or qwen3; the name of such a model on the Hugging Face hub,
            "HuggingFaceTB/SmolLM2-135M", which is fetched unless the hub's cache has it; a GGUF file of a llama, qwen2
            or qwen3; or "minilm" or "smollm2" for the weights that a package carries.
        revision: of a hub's model: a branch, a tag or a commit.
        dtype: of the matrix products.
        param_dtype: of the parameters.
        remat: see `BlockConfig`.
        implementation: likewise.
        mesh: of the devices that share the weights out (`ntkprefix.parallel.mesh_of`): none of them ever holds more
            than its part. One device has all of them if None.

    Returns:
        The model.

    Raises:
        FileNotFoundError: nothing is there, the package of the weights is not installed, or a hub's model cannot be
            fetched or has no safetensors.
        ImportError: a GGUF file or a hub's name is given, and the package gguf or huggingface_hub is not installed.
        ValueError: a file is damaged, the architecture or a variant of it is unknown, or the tensors do not fit the
            configuration.

    Example:
        >>> from ntkprefix.models import load_text_model
        >>> load_text_model("smollm2").config.layers  # doctest: +SKIP
        30
    """
    check_reads(str(path), "texts")
    path = locate_model(path, revision=revision)
    if path.is_dir():
        source = path / "config.json"
        family = read_settings(source, _family)
        config = read_settings(source, family.read_config)
        tensors, file = rooted(read_folder(path), family.ROOT, family.ANCHOR), weights_file(path)
    else:
        content = read_gguf(path)
        settings = Settings(content.config, path)
        family = _family(settings)
        config, tensors, file = make_from(settings, family.read_config), content.tensors, path
    config = config.replace(dtype=dtype, param_dtype=param_dtype, remat=remat, implementation=implementation)
    names = family.names(config)
    check_layers(config, names, tensors, file)
    ignored = [*family.IGNORED, *([r"lm_head\.weight"] if config.head == "tied" else [])]
    put = weights_onto(mesh, config)
    return fill(lambda: TextModel(config, rngs=nnx.Rngs(0)), names, tensors, file=file, ignored=ignored, put=put)


def _family(settings: Settings) -> Any:
    return settings.choice("model_type", known=TEXT)


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
