"""Arrays to where they belong on a mesh, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ntkprefix.parallel.mesh import even_rows
from ntkprefix.parallel.specs import path_of, weight_spec, weight_specs


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


def weights_onto(mesh: Mesh | None, config: Any) -> Callable[[str, np.ndarray], Array]:
    """How a model's weights get from a file to a mesh: cut on the host, none of them ever whole on a device.

    Args:
        mesh: where to; all of them to the usual device if None.
        config: of the model.

    Returns:
        A function of a parameter's name, with points between its parts, and its numbers; it gives them as `put_model`
        would have put them.

    Example:
        >>> from ntkprefix.models import BlockConfig, ViTConfig
        >>> from ntkprefix.parallel import mesh_of, weights_onto
        >>> config = ViTConfig(patch=4, layers=2, grid=2, block=BlockConfig(width=8, heads=2, mlp_width=6))
        >>> put = weights_onto(mesh_of("tensor=1"), config)
        >>> kernel = put("blocks.mlp.up.kernel", np.zeros((2, 8, 6), np.float32))
        >>> kernel.sharding.spec == PartitionSpec(None, None, "tensor")
        True
    """
    if mesh is None:
        return lambda _, weight: jnp.asarray(weight)

    def put_weight(name: str, weight: np.ndarray) -> Array:
        return _put(weight, NamedSharding(mesh, weight_spec(name, weight.ndim, config, mesh.shape["tensor"])))

    return put_weight


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


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if jax.process_count() == 1 or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
