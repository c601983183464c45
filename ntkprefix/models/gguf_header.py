"""Whether the header of a GGUF file fits the file.

The package that reads the format believes every count: an array of 2^60 numbers in a file of one kilobyte would keep it
busy, and memory growing, for ever.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

# Bytes of each type of value; strings and arrays have lengths of their own.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# The reader makes several Python objects of every element. A vocabulary of 256,000 has three lists of that length.
_MOST_ELEMENTS = 2_000_000
_MOST_AXES = 4


def check_header(path: Path) -> None:
    """Refuse a header that is cut off, or counts more than there can be.

    Raises:
        ValueError: it is; the message says what is wrong, not with which file.

    Source: github.com/ggml-org/ggml, docs/gguf.md.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(content)
        if content[:4] != b"GGUF":
            raise ValueError(f"it starts with {content[:4]!r}, not with 'GGUF'")
        walk.skip(4)
        version, tensors, keys = walk.number("I"), walk.number("Q"), walk.number("Q")
        if version not in (2, 3):
            raise ValueError(f"expected version 2 or 3, little-endian, got {version}")
        for _ in range(keys):
            walk.string()
            walk.value(walk.number("I"))
        for _ in range(tensors):
            walk.string()
            axes = walk.number("I")
            if axes > _MOST_AXES:
                raise ValueError(f"expected tensors of at most {_MOST_AXES} axes, got {axes:,}")
            walk.skip(8 * axes + 4 + 8)


class _Walk:
    """A place in the file, which moves on and never beyond the end."""

    def __init__(self, content: mmap.mmap):
        self._content, self._place, self._elements = content, 0, 0

    def skip(self, count: int) -> None:
        if count > len(self._content) - self._place:
            raise ValueError(f"it ends within its header, after {len(self._content):,} bytes")
        self._place += count

    def number(self, code: str) -> int:
        before = self._place
        self.skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self._content, before)[0]

    def string(self) -> None:
        self.skip(self.number("Q"))

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            self._array(self.number("I"), self.number("Q"))
        elif kind in _BYTES:
            self.skip(_BYTES[kind])
        else:
            raise ValueError(f"expected a type of value from 0 to 12, got {kind}")

    def _array(self, kind: int, count: int) -> None:
        if kind == _ARRAY:
            raise ValueError("expected no arrays of arrays, got one")
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise ValueError(f"expected arrays of at most {_MOST_ELEMENTS:,} elements in all, got {self._elements:,}")
        if kind in _BYTES:
            self.skip(count * _BYTES[kind])
        else:
            for _ in range(count):
                self.value(kind)
