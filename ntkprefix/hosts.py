"""Several processes, on one host or many, that run one program on one mesh of all their devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

# host:port of the first process, this process's number, and how many there are.
_PLACE = re.compile(r"(?P<address>[^\s,]+:\d+),(?P<number>\d+)/(?P<count>[1-9]\d*)")


def join(text: str) -> None:
    """Become one of several processes, if the words say so; before JAX is used for anything.

    Args:
        text: nothing for a process of its own; `auto` where JAX finds the others by itself (Slurm, Open MPI,
            Kubernetes, Cloud TPU); else where the first process listens, this one's number from 0, and how many there
            are, `10.0.0.1:1234,0/2`.

    Raises:
        ConnectionError: the others did not come.
        ValueError: words of another form, nothing tells JAX of the others, or JAX has computed something already.
    """
    if not text:
        return
    options: dict[str, Any] = {}
    if text != "auto":
        options["coordinator_address"], options["process_id"], options["num_processes"] = place_of(text)
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        raise ValueError(
            f"hosts: expected auto where Slurm, Open MPI, Kubernetes or Cloud TPU start the processes ({error}). "
            "Elsewhere give each the address of the first, its number and their count: 10.0.0.1:1234,0/2."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(f"hosts: the processes of {text!r} did not meet ({error}). Start all of them.") from error
    except RuntimeError as error:
        raise ValueError(
            f"hosts: expected to meet the other processes before JAX computes anything ({error}). Random features "
            "(favor) are drawn when they are named: choose others."
        ) from error


def check(text: str, mesh: str) -> None:
    """That the words are such as `join` takes, and that there is a mesh for the devices of all processes.

    Raises:
        ValueError: they are not, or there is none.

    Example:
        >>> from ntkprefix.hosts import check
        >>> check("10.0.0.1:1234,0/2", mesh="data=8")
    """
    if text not in ("", "auto"):
        place_of(text)
    if text and not mesh:
        raise ValueError(
            "hosts: expected --mesh beside --hosts, got none: the processes share the devices of them all."
        )


def place_of(text: str) -> tuple[str, int, int]:
    """Address of the first process, number of this one, and how many there are.

    Raises:
        ValueError: words of another form, or a number that is not below the count.

    Example:
        >>> from ntkprefix.hosts import place_of
        >>> place_of("10.0.0.1:1234,0/2")
        ('10.0.0.1:1234', 0, 2)
    """
    found = _PLACE.fullmatch(text)
    if not found or int(found["number"]) >= int(found["count"]):
        raise ValueError(
            f"hosts: expected auto, or the first process's address, this one's number from 0 and their count, such as "
            f"10.0.0.1:1234,0/2, got {text!r}."
        )
    return found["address"], int(found["number"]), int(found["count"])


def first() -> bool:
    """Whether this process is the one that writes files and tells how far the work is."""
    return jax.process_index() == 0


def by_first(do: Callable[[], Any]) -> Any:
    """Have the first process do something that the others wait for, such as writing a file that they read.

    Args:
        do: called in the first process alone.

    Returns:
        What it returned, None in the others.

    Raises:
        ConnectionAbortedError: in the others, where it failed in the first, which raises what it raised.

    Example:
        >>> from ntkprefix.hosts import by_first
        >>> by_first(lambda: "done")
        'done'
    """
    if jax.process_count() == 1:
        return do()
    done, failure = None, None
    if first():
        try:
            done = do()
        except BaseException as error:  # the others have to hear of it, whatever it is
            failure = error
    failed = multihost_utils.broadcast_one_to_all(np.asarray(failure is not None))
    if failure is not None:
        raise failure
    if failed:
        raise ConnectionAbortedError("hosts: the first process failed, and says why.")
    return done


def agreed(found: Callable[[], bool]) -> bool:
    """What the first process finds, in all of them; it fails as `by_first` does.

    Example:
        >>> from ntkprefix.hosts import agreed
        >>> agreed(lambda: True)
        True
    """
    answer = by_first(found)
    if jax.process_count() == 1:
        return bool(answer)
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(bool(answer))))


def to_host(tree: PyTree) -> PyTree:
    """JAX's arrays as NumPy's, whole in every process, wherever they lie on a mesh; all processes have to call it.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.hosts import to_host
        >>> to_host({"scale": jnp.ones(2)})
        {'scale': array([1., 1.], dtype=float32)}
    """
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return leaf
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)
