"""How weights and what trains are cut: rules by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

# Of a model's weights, by the end of their path: the axis, counted from the last, that `tensor` cuts; and the count of
# the model that has to be a multiple of it, so that heads stay whole. Query heads follow the kv heads that they read.
_WEIGHTS: dict[str, tuple[int, str]] = {
    "attention.query.kernel": (-1, "kv_heads"),
    "attention.query.bias": (-1, "kv_heads"),
    "attention.key.kernel": (-1, "kv_heads"),
    "attention.key.bias": (-1, "kv_heads"),
    "attention.value.kernel": (-1, "kv_heads"),
    "attention.value.bias": (-1, "kv_heads"),
    "attention.out.kernel": (-2, "kv_heads"),
    "mlp.gate.kernel": (-1, "mlp_width"),
    "mlp.gate.bias": (-1, "mlp_width"),
    "mlp.up.kernel": (-1, "mlp_width"),
    "mlp.up.bias": (-1, "mlp_width"),
    "mlp.down.kernel": (-2, "mlp_width"),
    "tokens.embedding": (-2, "vocabulary"),
    "head.kernel": (-1, "vocabulary"),
}

# Of adapters, by the letters of `Adapter.axes`.
_LETTERS = {"M": "prefix", "K": "tensor", "N": "tensor"}


def weight_specs(weights: PyTree, config: Any, tensor: int) -> PyTree:
    """How `tensor` devices share out a model's weights: attention heads, the MLP's width and the vocabulary.

    What does not divide is whole on every device.

    Args:
        weights: of a `ViT` or `TextModel`, from `nnx.split`, or a pytree of their names, as of `FullAdapter`.
        config: of the model.
        tensor: size of that axis.

    Returns:
        A `PartitionSpec` for every array.

    Example:
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> from ntkprefix.parallel import weight_specs
        >>> config = TextConfig(vocabulary=8, layers=2, block=BlockConfig(width=8, heads=2, mlp_width=6), positions=4)
        >>> weights = nnx.state(TextModel(config, rngs=nnx.Rngs(0)))
        >>> specs = weight_specs(weights, config, tensor=2)
        >>> specs["blocks"]["mlp"]["up"]["kernel"].get_value() == PartitionSpec(None, None, "tensor")
        True
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: weight_spec(path_of(path), leaf.ndim, config, tensor), weights
    )


def weight_spec(name: str, axes: int, config: Any, tensor: int) -> PartitionSpec:
    """How `tensor` devices share out one weight of a model, as `weight_specs` has it for all.

    Args:
        name: of the parameter, with points between its parts.
        axes: how many it has.
        config: of the model.
        tensor: size of that axis.

    Example:
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.parallel.specs import weight_spec
        >>> config = TextConfig(vocabulary=8, layers=2, block=BlockConfig(width=8, heads=2, mlp_width=6), positions=4)
        >>> weight_spec("tokens.embedding", 2, config, tensor=2) == PartitionSpec("tensor")
        True
        >>> weight_spec("tokens.embedding", 2, config, tensor=3) == PartitionSpec()
        True
    """
    counts = {name: getattr(config.block, name) for name in ("kv_heads", "mlp_width")}
    counts["vocabulary"] = getattr(config, "vocabulary", 1)
    for end, (axis, count) in _WEIGHTS.items():
        if name.endswith(end) and counts[count] % tensor == 0:
            return PartitionSpec(*[None] * (axes + axis), "tensor")
    return PartitionSpec()


def adapter_specs(params: PyTree, adapter: Any, config: Any, sizes: Mapping[str, int]) -> PyTree:
    """How an adapter's parameters are shared out: tokens over `prefix`, heads over `tensor`, by its axes' letters.

    Args:
        params: of the adapter.
        adapter: one of the library's, a stack of them, or one of your own; without `axes` all is whole everywhere.
        config: of the model.
        sizes: of the mesh, by the axes' names.

    Returns:
        A `PartitionSpec` for every array.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import TokenAdapter
        >>> from ntkprefix.models import BlockConfig, TextConfig
        >>> from ntkprefix.parallel import adapter_specs
        >>> config = TextConfig(vocabulary=8, layers=2, block=BlockConfig(width=8, heads=2, mlp_width=6), positions=4)
        >>> params = {"keys": jnp.ones((2, 64, 2, 4)), "values": jnp.ones((2, 64, 2, 4))}
        >>> sizes = {"data": 1, "tensor": 2, "prefix": 4}
        >>> specs = adapter_specs(params, TokenAdapter(length=64), config, sizes)
        >>> specs["keys"] == PartitionSpec(None, "prefix", "tensor", None)
        True
    """
    parts = getattr(adapter, "adapters", None)
    if parts is not None:
        return {str(i): adapter_specs(params[str(i)], part, config, sizes) for i, part in enumerate(parts)}
    axes = adapter.axes() if hasattr(adapter, "axes") else {}
    if axes is None:  # all of the model's weights
        return weight_specs(params, config, sizes["tensor"])

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        letters = axes.get(path_of(path), "").split()
        names = (_LETTERS.get(letter) for letter in letters)
        return PartitionSpec(
            *(name if name and size % sizes[name] == 0 else None for name, size in zip(names, leaf.shape, strict=False))
        )

    return jax.tree_util.tree_map_with_path(spec, params)


def path_of(path: tuple[Any, ...]) -> str:
    """A leaf's path as names with points between them, without the variable that Flax wraps it in.

    Args:
        path: as `jax.tree_util.tree_leaves_with_path` gives it, of at least one key.

    Returns:
        Names and numbers, such as `blocks.mlp.up.kernel`.

    Example:
        >>> from ntkprefix.parallel import path_of
        >>> leaves = jax.tree_util.tree_leaves_with_path({"adapters": [{"keys": 1.0}, {"Z": 2.0}]})
        >>> [path_of(path) for path, _ in leaves]
        ['adapters.0.keys', 'adapters.1.Z']
    """
    if isinstance(path[-1], jax.tree_util.GetAttrKey) and path[-1].name == "value":
        path = path[:-1]
    return ".".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
