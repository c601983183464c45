"""What tells data and models from others: a few letters that stand for all of their numbers."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

_LETTERS = 16


def of_data(arrays: PyTree) -> str:
    """A fingerprint of NumPy arrays, from all of their bytes.

    Example:
        >>> import numpy as np
        >>> from ntkprefix.fingerprints import of_data
        >>> of_data([np.arange(3)]) == of_data([np.array([0, 2, 1])])
        False
    """
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:_LETTERS]


def of_model(config: Any, weights: PyTree) -> str:
    """A fingerprint of a model, from its configuration and the sum of each weight array's bits.

    Sums are of integers modulo 2^32: the same on every kind of device, however many share the arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.fingerprints import of_model
        >>> of_model("linear", {"w": jnp.ones(3)}) == of_model("linear", {"w": jnp.ones(3).at[0].add(1e-6)})
        False
    """
    leaves = jax.tree.leaves(weights)
    told = [f"{leaf.dtype}{leaf.shape}{int(total)}" for leaf, total in zip(leaves, _sums(leaves), strict=True)]
    return hashlib.sha256(f"{config!r} {told}".encode()).hexdigest()[:_LETTERS]


@jax.jit
def _sums(arrays: list[Array]) -> list[Array]:
    return [jnp.sum(array.view(f"uint{8 * array.dtype.itemsize}"), dtype=jnp.uint32) for array in arrays]
