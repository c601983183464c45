"""What came, for the end of a message; and of which kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def is_int(x: Any) -> bool:
    """A Python or NumPy integer; a bool is none."""
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)


def is_integer(x: Any) -> bool:
    """An integer, or an array of integers."""
    return jnp.issubdtype(x.dtype, jnp.integer) if hasattr(x, "dtype") else is_int(x)


def is_real(x: Any) -> bool:
    """A real number, or an array of real numbers."""
    return is_integer(x) or (jnp.issubdtype(x.dtype, jnp.floating) if hasattr(x, "dtype") else isinstance(x, float))


def described(x: Any) -> str:
    """What came, for a message."""
    return f"an array of {x.dtype}" if hasattr(x, "dtype") else repr(x)


def shapes(named: Mapping[str, Any]) -> str:
    """Names with their shapes, for a message."""
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in named.items())


def printable(text: str) -> str:
    """Control characters and bytes of file names that are no text are spelt out, so that any output can show them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
