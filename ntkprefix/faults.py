"""Where numbers stop being finite: noted by a model's layers for the training step that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Float


class _Watch(NamedTuple):
    """What was noted, and in which trace: arrays of an inner one have no meaning outside it."""

    noted: list[Float[Array, "layers rows"]]
    trace: Any


_WATCH: ContextVar[_Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched() -> Iterator[list[Float[Array, "layers rows"]]]:
    """Layers that run within the block note the rows that leave them with numbers that are not finite.

    Yields:
        A list that gets an entry for every run through layers: 1 for a layer and row with such a number, else 0. Runs
        that a further transformation traces within the block are left out.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.faults import faulty_rows, noting, watched
        >>> def layer(x):
        ...     out = jnp.log(x)
        ...     if noting() is not None:
        ...         noting().append(faulty_rows(out)[None])
        ...     return out
        >>> with watched() as noted:
        ...     _ = layer(jnp.array([[1.0, 2.0], [3.0, -1.0]]))
        >>> noted[0].tolist()
        [[0.0, 1.0]]
    """
    noted: list[Float[Array, "layers rows"]] = []
    token = _WATCH.set(_Watch(noted, _trace()))
    try:
        yield noted
    finally:
        _WATCH.reset(token)


def noting() -> list[Float[Array, "layers rows"]] | None:
    """The list that a run through layers adds to; None where nobody watches this trace."""
    watch = _WATCH.get()
    return watch.noted if watch is not None and watch.trace == _trace() else None


def faulty_rows(x: Float[Array, "rows *rest"]) -> Float[Array, " rows"]:
    """1 for a row with a number that is not finite, else 0: devices that share out rows exchange nothing for it."""
    finite = jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))
    return 1 - finite.astype(jnp.float32)


def _trace() -> Any:
    return get_opaque_trace_state(convention="flax")
