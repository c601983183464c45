"""A long computation in parts, each kept in a file as soon as it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import save

from ntkprefix.fingerprints import of_data
from ntkprefix.hosts import agreed, by_first, to_host
from ntkprefix.run_folder import run_folder
from ntkprefix.runs import environment, write_bytes
from ntkprefix.safetensors_file import opened

# Of a computation, its folder's name.
_NAME = re.compile("[0-9a-f]{16}")
# Of `environment()`, what results depend on.
_MADE_BY = ("ntkprefix", "commit", "packages", "python", "device", "platform", "processor")


@contextmanager
def parts_folder(folder: str | Path) -> Iterator[Path]:
    """A folder of parts that are of use until a result is written: they are removed then.

    If the block does not get to its end, they stay for the run that goes on from there.

    Args:
        folder: made if it is not there.

    Yields:
        The folder, for `Parts.of`.

    Raises:
        BlockingIOError: another run has it.
        OSError: it cannot be made, nothing can be written there, it is a link, or it holds anything but parts.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix.parts import Parts, parts_folder
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with parts_folder(f"{place}/manual.parts") as folder:
        ...         Parts.of(folder, chunk=512).put("first", jnp.arange(3))
        ...     folder.exists()
        False
    """
    folder = Path(folder)
    if os.path.islink(folder):  # names that are too long are none
        raise OSError(
            f"{folder}: expected a folder of parts of a run, or none, but it is a link. Choose another --out."
        )
    with run_folder(folder):
        foreign = [path.name for path in folder.iterdir() if not _NAME.fullmatch(path.name)]
        if foreign:
            raise OSError(
                f"{folder}: expected parts of a run alone, which are removed at its end, but it holds {foreign[0]!r}. "
                "Move that away, or choose another --out."
            )
        try:
            yield folder
        except BaseException:
            if not any(folder.iterdir()):
                folder.rmdir()
            raise
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name):
                shutil.rmtree(path)
        if not any(folder.iterdir()):
            folder.rmdir()


@dataclass(frozen=True)
class Parts:
    """Where the finished parts of one computation are kept, so that a run that was stopped goes on from them.

    A part is a pytree of arrays, and its file has these and their fingerprint: what pytree it is comes from the
    program that reads it, and never from the file.

    Attributes:
        folder: made when something is written to it; nothing is kept if None.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix.parts import Parts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parts = Parts.of(folder, numbers=3)
        ...     first = parts("squares", lambda: jnp.arange(3) ** 2)  # computed, and kept
        ...     again = parts("squares", lambda: jnp.zeros(3, int))  # read: the function says what kind of arrays it is
        >>> again.tolist()
        [0, 1, 4]
    """

    folder: Path | None = None

    @classmethod
    def of(cls, folder: str | Path | None, **what: Any) -> Parts:
        """The parts of a computation in a folder that may have those of others.

        Args:
            folder: theirs together; nothing is kept if None.
            what: all that the computation's results depend on, beside the code, its packages and the machine: another
                computation has others.
        """
        if folder is None:
            return cls()
        where = environment()
        made_by = {name: where[name] for name in _MADE_BY}
        text = json.dumps({"made_by": made_by, "what": what}, sort_keys=True, default=repr)
        return cls(Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16])

    def __call__(self, name: str, make: Callable[[], PyTree]) -> Any:
        """A part from its file, or made and then kept.

        Args:
            name: of the part, and of its file.
            make: gives the part; JAX must be able to trace it, which is how it is known what the file should have.

        Raises:
            OSError: the file cannot be written.
            ValueError: the file is damaged; the message names it.
        """
        if self.folder is None:
            return make()
        if agreed(self._file(name).exists):
            return self._read(name, jax.eval_shape(make))
        part = make()
        self.put(name, part)
        return part

    def find(self, name: str, like: PyTree) -> Any:
        """A part if it has been kept.

        Args:
            name: of the part.
            like: a pytree of the part's structure, shapes and types.

        Raises:
            ValueError: as for a call.
        """
        if self.folder is None or not agreed(self._file(name).exists):
            return None
        return self._read(name, like)

    def put(self, name: str, part: PyTree) -> None:
        """Keep a part.

        Raises:
            OSError: as for a call.
        """
        if self.folder is not None:
            arrays = {str(index): _host(leaf) for index, leaf in enumerate(jax.tree.leaves(part))}
            by_first(lambda: write_bytes(self._file(name), save(arrays, {"digest": of_data(arrays)})))

    def beside(self, name: str) -> Path | None:
        """A folder for parts that are kept by other means; None where nothing is kept."""
        return None if self.folder is None else self.folder / name

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"

    def _read(self, name: str, like: PyTree) -> Any:
        path, (leaves, tree) = self._file(name), jax.tree.flatten(like)
        try:
            with opened(path) as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
                digest = (file.metadata() or {}).get("digest")
            _check(arrays, {str(index): leaf for index, leaf in enumerate(leaves)})
            if digest != of_data(arrays):
                raise ValueError("it is not what was written: it is damaged")
        except (SafetensorError, AttributeError, TypeError, ValueError, OSError) as error:
            raise ValueError(
                f"{path}: expected a finished part of this computation, but {error}. Delete it: it is made again."
            ) from error
        return jax.tree.unflatten(tree, [jnp.asarray(arrays[str(i)], leaf.dtype) for i, leaf in enumerate(leaves)])


def _host(leaf: Any) -> np.ndarray:
    """Safetensors' side of numpy has no bfloat16, which float32 holds exactly."""
    array = np.asarray(to_host(leaf))
    return np.asarray(array, np.float32 if array.dtype == jnp.bfloat16 else None, order="C")


def _check(arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> None:
    if arrays.keys() != like.keys():
        raise ValueError(f"it has {len(arrays)} arrays in place of {len(like)}")
    for name, leaf in like.items():
        stored = np.float32 if leaf.dtype == jnp.bfloat16 else leaf.dtype
        if (arrays[name].shape, arrays[name].dtype) != (leaf.shape, stored):
            raise ValueError(
                f"its array {name} is {arrays[name].dtype} {list(arrays[name].shape)} in place of "
                f"{np.dtype(stored)} {list(leaf.shape)}"
            )
