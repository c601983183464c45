"""Running out of memory, whoever says so."""

from __future__ import annotations

import os

import jax

# A computation that has begun to be dispatched is told as an internal error.
_TOLD = ("RESOURCE_EXHAUSTED", "Out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not enough: Python's and NumPy's do by their type, XLA's by its text.

    Example:
        >>> from ntkprefix.memory import out_of_memory
        >>> out_of_memory(MemoryError()), out_of_memory(ValueError("RESOURCE_EXHAUSTED"))
        (True, False)
    """
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and any(words in str(error) for words in _TOLD)
    )


def device_bytes() -> int | None:
    """Memory of a device of this process in all; None where nothing tells.

    Example:
        >>> from ntkprefix.memory import device_bytes
        >>> device_bytes() > 2**20
        True
    """
    told = jax.local_devices()[0].memory_stats()
    if told and "bytes_limit" in told:
        return int(told["bytes_limit"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no such names
        return None
