"""A mesh of devices, and whether one is set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

AXES = ("data", "tensor", "prefix")


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
