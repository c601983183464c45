"""Safetensors files, opened so that what may not be read is told as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open


@contextmanager
def opened(path: Path, *, framework: str = "numpy") -> Iterator[Any]:
    """A safetensors file, of which only what is asked for is read.

    Args:
        path: of the file.
        framework: whose arrays it gives: `numpy`, or `flax`, which has bfloat16 too.

    Yields:
        The file, as `safetensors.safe_open` gives it.

    Raises:
        OSError: it cannot be read; `safe_open` says of every such file that there is none.
        safetensors.SafetensorError: it is no whole safetensors file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> from ntkprefix.safetensors_file import opened
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.safetensors"
        ...     save_file({"x": np.ones(2)}, path)
        ...     with opened(path) as file:
        ...         file.get_tensor("x").tolist()
        [1.0, 1.0]
    """
    with path.open("rb"):
        pass
    with safe_open(path, framework=framework) as file:
        yield file
