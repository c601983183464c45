"""Tokens or clouds put behind one another, and taken out again."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ntkprefix._dtypes import accumulator

Listed = TypeVar("Listed")


def together(first: Listed, second: Listed, axis: int) -> Listed:
    """The second's entries behind the first's, in float32 or wider where the types differ."""

    def join(a: Array, b: Array) -> Array:
        dtype = a.dtype if a.dtype == b.dtype else accumulator(a.dtype, b.dtype)
        return jnp.concatenate([a.astype(dtype), b.astype(dtype)], axis=axis)

    return jax.tree.map(join, first, second)


def without(both: Listed, one: Listed, axis: int) -> Listed:
    """What is left of `both` without the first run of entries that are those of `one`.

    Raises:
        ValueError: there is none.
    """
    pairs = []
    for large, small in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        pairs.append(tuple(np.moveaxis(np.asarray(array), axis, 0) for array in (large, small.astype(large.dtype))))
    whole, count = (len(array) for array in pairs[0])

    def there(place: int, stop: int) -> bool:
        return all(np.array_equal(large[place : place + stop], small[:stop]) for large, small in pairs)

    # The first entry alone rules out nearly all places.
    place = next((at for at in range(whole - count + 1) if there(at, min(count, 1)) and there(at, count)), None)
    if place is None:
        raise ValueError(
            f"{type(both).__name__}: expected what is subtracted to be among the others, behind one another and the "
            "same to the last bit, found it nowhere. Keys that were turned since have to be turned alike. After a "
            "refit nothing of it is left as it was: merge again without it, and fit that."
        )

    def cut(array: Array) -> Array:
        parts = ((0, place), (place + count, array.shape[axis]))
        return jnp.concatenate([jax.lax.slice_in_dim(array, *part, axis=axis) for part in parts], axis=axis)

    return jax.tree.map(cut, both)
