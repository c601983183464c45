"""Compiled programs, which a process can hold so many of and no more."""

from pathlib import Path

import jax

# Linux lets a process map 65,530 pieces of memory; a compiled program takes about three, and the compiler crashes when
# there is none left.
_MANY = 20_000
_MAPPED = Path("/proc/self/maps")


def let_go_of_many():
    """Before there are too many."""
    if _MAPPED.exists() and _MAPPED.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()
