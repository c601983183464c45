"""Several processes, on one host or many, that run one program on one mesh of all their devices."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

# host:port of the first process, this process's number, and how many there are.
_PLACE = re.compile(r"(?P<address>[^\s,]+:(?P<port>\d{1,5})),(?P<number>\d+)/(?P<count>[1-9]\d*)")
# Seconds in which a process shows no sign of life, after which the others end.
_SILENCE = 30


def join(text: str) -> None:
    """Become one of several processes, if the words say so; before JAX is used for anything.

    Args:
        text: nothing for a process of its own; `auto` where JAX finds the others by itself (Slurm, Open MPI,
            Kubernetes, Cloud TPU); else where the first process listens, this one's number from 0, and how many there
            are, `10.0.0.1:1234,0/2`.

    Raises:
        ConnectionError: the others did not come.
        ValueError: words of another form, nothing tells JAX of the others, or JAX has computed something already.

    Example:
        >>> import jax
        >>> from ntkprefix.hosts import join
        >>> join("")
        >>> jax.process_count()
        1
        >>> join("10.0.0.1:1234,2/2")
        Traceback (most recent call last):
        ValueError: hosts: expected auto, or the first process's address, ... got '10.0.0.1:1234,2/2'.
    """
    if not text:
        return
    options: dict[str, Any] = {}
    if text != "auto":
        address, number, count = place_of(text)
        options = {"coordinator_address": address, "process_id": number, "num_processes": count}
        print(f"Process {number} of {count} waits for the others at {address}, for five minutes.", file=sys.stderr)
    # SIGTERM would be taken, to tell of a preemption that nothing here asks for: it ends a process, as everywhere.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**options, heartbeat_timeout_seconds=_SILENCE)
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
    if not found or int(found["number"]) >= int(found["count"]) or not 0 < int(found["port"]) < 2**16:
        raise ValueError(
            f"hosts: expected auto, or the first process's address, this one's number from 0 and their count, such as "
            f"10.0.0.1:1234,0/2, got {text!r}."
        )
    return found["address"], int(found["number"]), int(found["count"])


def first() -> bool:
    """Whether this process is the one that writes files and tells how far the work is.

    Example:
        >>> from ntkprefix.hosts import first
        >>> first()  # a process of its own is
        True
    """
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


@contextmanager
def entered_by_first(make: Callable[[], Any]) -> Iterator[None]:
    """A context that the first process enters, and leaves at the end; it fails as `by_first` does.

    Args:
        make: makes it, in the first process alone.

    Example:
        >>> import tempfile
        >>> from ntkprefix.hosts import entered_by_first
        >>> with entered_by_first(tempfile.TemporaryDirectory):
        ...     pass
    """
    with ExitStack() as stack:
        by_first(lambda: stack.enter_context(make()))
        yield


def same(settings: Mapping[str, Any]) -> None:
    """That all processes have been given the same.

    Args:
        settings: by names that all have.

    Raises:
        ValueError: they have not, in all of them; the message names what differs.

    Example:
        >>> from ntkprefix.hosts import same
        >>> same({"seed": 0})
    """
    if jax.process_count() == 1:
        return
    names = sorted(settings)
    digests = [np.frombuffer(hashlib.sha256(repr(settings[name]).encode()).digest(), np.uint8) for name in names]
    found = np.asarray(multihost_utils.process_allgather(np.stack(digests)))
    differ = (found != found[0]).any(axis=(0, 2))
    if differ.any():
        told = ", ".join(
            f"{name} ({settings[name]!r} here)" for name, other in zip(names, differ, strict=True) if other
        )
        raise ValueError(f"hosts: expected the same settings in all processes, but they differ in {told}.")


def gone(error: BaseException) -> None:
    """What an error of JAX means where there are other processes: that one of them has ended.

    Args:
        error: that JAX raised.

    Raises:
        ConnectionAbortedError: if this is one of several processes.

    Example:
        >>> from ntkprefix.hosts import gone
        >>> try:
        ...     raise RuntimeError("out of range")
        ... except RuntimeError as error:
        ...     gone(error)  # does nothing in a process of its own, so that the error goes on
        ...     raise
        Traceback (most recent call last):
        RuntimeError: out of range
    """
    if jax.distributed.is_initialized():
        raise ConnectionAbortedError(
            f"hosts: another process is gone, or the network ({str(error).partition(chr(10))[0][:200]}). Start all of "
            "them again: with the same folder they go on from what it keeps."
        ) from error


def leave(status: int) -> None:
    """End a process that has failed, if it is one of several, without waiting for the others: they may wait for it.

    Args:
        status: that the process exits with.

    Example:
        >>> from ntkprefix.hosts import leave
        >>> leave(1) is None  # a process of its own goes on, and ends as any other
        True
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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
