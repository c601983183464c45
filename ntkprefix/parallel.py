"""Several devices as one: a mesh of them, and where weights, what trains, prefixes and batches lie on it.

The axes of a mesh are `data` (rows of a batch), `tensor` (heads, MLP width, vocabulary) and `prefix` (a prefix's
tokens). Arrays are cut once, where they are put on the mesh; what devices then have to exchange follows from that, and
XLA puts it into the program. `ntkprefix.shared_attention` has the one computation that is written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

AXES = ("data", "tensor", "prefix")

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


def mesh_of(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh from its sizes in words.

    Args:
        text: sizes by name, `data=4,tensor=2`; an axis that is not named has size 1.
        devices: that it is made of, of all processes; those of JAX if None. As many as the product of the sizes.

    Returns:
        A mesh with the axes data, tensor and prefix.

    Raises:
        ValueError: a text of another form, an unknown axis or one named twice, or sizes whose product is not the number
            of devices.

    Example:
        >>> from ntkprefix.parallel import mesh_of
        >>> dict(mesh_of("data=1").shape)
        {'data': 1, 'tensor': 1, 'prefix': 1}
    """
    sizes = sizes_of(text)
    devices = jax.devices() if devices is None else devices
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh: expected sizes whose product is the number of devices, {len(devices)}, got {text!r}, "
            f"{math.prod(sizes.values())} devices. On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 "
            "simulates 8."
        )
    # Sizes as they are asked for, whatever XLA would like for a topology: the first axis is the slowest.
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def on_mesh(mesh: Mesh | None) -> Any:
    """A context, `jax.set_mesh` where there is a mesh: what is computed within is shared out on it.

    Args:
        mesh: from `mesh_of`; the context does nothing if None.

    Example:
        >>> from ntkprefix.parallel import mesh_of, on_mesh
        >>> with on_mesh(mesh_of("data=1")):
        ...     jax.sharding.get_mesh().shape["data"]
        1
    """
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def off_mesh() -> Any:
    """A context without a mesh, whatever is set around it: what is computed within lies where its inputs do.

    Example:
        >>> from ntkprefix.parallel import mesh_of, off_mesh, on_mesh
        >>> with on_mesh(mesh_of("data=1")), off_mesh():
        ...     jax.sharding.get_mesh().empty
        True
    """
    return jax.set_mesh(Mesh(np.empty((), dtype=object), ()))


def sizes_of(text: str) -> dict[str, int]:
    """The sizes of a mesh in words, without the devices.

    Raises:
        ValueError: as for `mesh_of`, but for the number of devices.

    Example:
        >>> from ntkprefix.parallel import sizes_of
        >>> sizes_of("prefix=8,data=2")
        {'data': 2, 'tensor': 1, 'prefix': 8}
    """
    sizes = dict.fromkeys(AXES, 1)
    named = set()
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES or name in named or not (size.isascii() and size.isdigit() and int(size)):
            raise ValueError(
                f"mesh: expected sizes of {', '.join(AXES)}, each at most once and at least 1, such as "
                f"'data=4,tensor=2', got {text!r}."
            )
        named.add(name)
        sizes[name] = int(size)
    return sizes


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
    counts = {name: getattr(config.block, name) for name in ("kv_heads", "mlp_width")}
    counts["vocabulary"] = getattr(config, "vocabulary", 1)

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        for end, (axis, count) in _WEIGHTS.items():
            if path_of(path).endswith(end) and counts[count] % tensor == 0:
                return PartitionSpec(*[None] * (leaf.ndim + axis), "tensor")
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, weights)


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


def put_model(model: Any, mesh: Mesh) -> None:
    """Share the weights of a `ViT` or `TextModel` out between the devices of a mesh, in place.

    Args:
        model: whose weights `weight_specs` knows; it goes on to be called as before.
        mesh: from `mesh_of`.

    Example:
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig
        >>> from ntkprefix.parallel import mesh_of, placed, put_model
        >>> block = BlockConfig(width=8, heads=2, mlp_width=6)
        >>> model = ViT(ViTConfig(patch=4, layers=2, grid=2, block=block), rngs=nnx.Rngs(0))
        >>> put_model(model, mesh_of("tensor=1"))
        >>> next(each.spec for each in placed(nnx.state(model)) if each.path.endswith("mlp.up.kernel"))
        (None, None, 'tensor')
    """
    from flax import nnx

    weights = nnx.state(model)
    nnx.update(model, put(weights, weight_specs(weights, model.config, mesh.shape["tensor"]), mesh))


def put(tree: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
    """A pytree's arrays on a mesh.

    Every process passes the same arrays, and keeps of them what its own devices hold.

    Args:
        tree: of arrays.
        specs: a `PartitionSpec` for every array, or one for all.
        mesh: where to.

    Returns:
        The same arrays, cut; those that lie so already are not copied.

    Example:
        >>> from ntkprefix.parallel import mesh_of, put
        >>> on = put({"keys": np.zeros((8, 4))}, PartitionSpec("prefix"), mesh_of("prefix=1"))
        >>> on["keys"].sharding.spec == PartitionSpec("prefix")
        True
    """
    if isinstance(specs, PartitionSpec):
        specs = jax.tree.map(lambda _: specs, tree)
    return jax.tree.map(lambda leaf, spec: _put(leaf, NamedSharding(mesh, spec)), tree, specs)


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if jax.process_count() == 1 or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_rest(tree: PyTree, mesh: Mesh) -> PyTree:
    """A pytree on a mesh: what lies on it already stays as it is, all else is put whole on every device.

    Args:
        tree: of arrays or numbers.
        mesh: where to.

    Returns:
        The same, as arrays on the mesh.

    Example:
        >>> from ntkprefix.parallel import mesh_of, placed, put, put_rest
        >>> mesh = mesh_of("prefix=1")
        >>> cut = put(np.zeros((8, 4)), PartitionSpec("prefix"), mesh)
        >>> [each.spec for each in placed(put_rest({"cut": cut, "rate": np.ones(3)}, mesh))]
        [('prefix',), ()]
    """

    def whole(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None)
        there = isinstance(sharding, NamedSharding) and sharding.mesh == mesh
        return (
            leaf
            if there
            else _put(leaf if hasattr(leaf, "dtype") else np.asarray(leaf), NamedSharding(mesh, PartitionSpec()))
        )

    return jax.tree.map(whole, tree)


def put_rows(batch: Sequence[np.ndarray], mesh: Mesh) -> tuple[Array, ...]:
    """The rows of a batch, shared out over `data`.

    Args:
        batch: arrays with one leading axis of rows.
        mesh: from `mesh_of`.

    Returns:
        The same arrays on the mesh.

    Raises:
        ValueError: the rows cannot be shared out evenly.

    Example:
        >>> from ntkprefix.parallel import mesh_of, placed, put_rows
        >>> tokens, labels = np.zeros((4, 6), np.int32), np.zeros(4, np.int32)
        >>> [(each.shape, each.spec) for each in placed(put_rows((tokens, labels), mesh_of("data=1")))]
        [((4, 6), ('data',)), ((4,), ('data',))]
    """
    even_rows(len(batch[0]), mesh.shape["data"])
    return put(tuple(batch), PartitionSpec("data"), mesh)


def even_rows(rows: int, data: int) -> None:
    """That so many devices can share out a batch, or a micro-batch.

    Args:
        rows: of it.
        data: how many devices there are along that axis.

    Raises:
        ValueError: it cannot, evenly.

    Example:
        >>> from ntkprefix.parallel import even_rows
        >>> even_rows(8, data=4)
        >>> even_rows(6, data=4)
        Traceback (most recent call last):
        ValueError: mesh: expected batches, and micro-batches, of a multiple of the 4 devices along data, got 6 rows.
    """
    if rows % data:
        raise ValueError(
            f"mesh: expected batches, and micro-batches, of a multiple of the {data} devices along data, got {rows} "
            "rows."
        )


def tokens_over_prefix(array: Array) -> Array:
    """An array with tokens first, shared out over the axis `prefix` of the mesh that is set, where it divides them.

    Args:
        array: [M, ...].

    Returns:
        The same on the mesh, or as it is where no mesh is set or M is no multiple of that axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.parallel import mesh_of, on_mesh, placed, tokens_over_prefix
        >>> keys = jnp.zeros((8, 2, 4))
        >>> tokens_over_prefix(keys) is keys  # no mesh is set
        True
        >>> with on_mesh(mesh_of("prefix=1")):
        ...     placed({"keys": tokens_over_prefix(keys)})[0].spec
        ('prefix',)
    """
    mesh = jax.sharding.get_mesh()
    if mesh.empty or len(array) % mesh.shape["prefix"]:
        return array
    return put(array, PartitionSpec("prefix"), mesh)


def rows_over_data(array: Array, axis: int) -> Array:
    """An array within a compiled function, with one axis over `data`, where a mesh is set that has it.

    Args:
        array: of any shape.
        axis: of rows, counted from 0.

    Returns:
        The same, and where a mesh is set a constraint on where it lies.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.parallel import mesh_of, on_mesh, rows_over_data
        >>> program = lambda: str(jax.make_jaxpr(lambda states: rows_over_data(states, axis=1))(jnp.ones((3, 4))))
        >>> "sharding_constraint" in program()  # no mesh is set
        False
        >>> with on_mesh(mesh_of("data=1")):
        ...     "sharding_constraint" in program()
        True
    """
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, "data"))


class Placed(NamedTuple):
    """Where an array lies.

    Attributes:
        path: its name.
        shape: whole.
        spec: which axes of the mesh cut which of its own; empty for an array that is whole on every device.
        bytes_per_device: of the share of one device.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.parallel import placed
        >>> each = placed({"adapter": {"keys": jnp.zeros((8, 4))}})[0]
        >>> each.path, each.shape, each.spec, each.bytes_per_device
        ('adapter.keys', (8, 4), (), 128)
    """

    path: str
    shape: tuple[int, ...]
    spec: tuple[Any, ...]
    bytes_per_device: int


def placed(tree: PyTree) -> list[Placed]:
    """How every array of a pytree is shared out, those that are whole on every device included.

    Example:
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec
        >>> from ntkprefix.parallel import mesh_of, placed, put
        >>> placed(put({"keys": jnp.zeros((8, 4))}, PartitionSpec("prefix"), mesh_of("data=1")))
        [Placed(path='keys', shape=(8, 4), spec=('prefix',), bytes_per_device=128)]
    """
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        spec = tuple(leaf.sharding.spec) if isinstance(leaf.sharding, NamedSharding) else ()
        share = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        found.append(Placed(path_of(path), leaf.shape, spec, share))
    return found


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
