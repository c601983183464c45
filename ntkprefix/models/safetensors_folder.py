"""Tensors of a Hugging Face model folder, from one or several safetensors files. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ntkprefix.runs import read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and the files it names.

    Returns:
        Arrays by name, in the file's dtypes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not safetensors, or the index is not one; the message names it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from safetensors.numpy import save_file
        >>> from ntkprefix.models.safetensors_folder import read_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file({"weight": np.ones((2, 3))}, Path(folder) / "model.safetensors")
        ...     read_folder(Path(folder))["weight"].shape
        (2, 3)
    """
    if (folder / _SINGLE).is_file():
        return _read(folder / _SINGLE, None)
    if not (folder / _INDEX).is_file():
        raise FileNotFoundError(
            f"{folder}: expected {_SINGLE} or {_INDEX}, found neither. Pickled checkpoints (.bin, .pt) are not read: "
            "save the model again with safetensors."
        )
    tensors = {}
    for name, wanted in _shards(folder / _INDEX).items():
        tensors.update(_read(folder / name, wanted))
    return tensors


def _shards(index: Path) -> dict[str, list[str]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index}: expected `weight_map`, an object of tensor names and file names.")
    shards: dict[str, list[str]] = {}
    for name, file in places.items():
        # An index may come from anywhere; it must not point outside its own folder.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index}: expected names of .safetensors files in the same folder, got {file!r}.")
        shards.setdefault(file, []).append(name)
    return shards


def _read(path: Path, wanted: Iterable[str] | None) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: named by {_INDEX}, but there is no such file. Is the download complete?")
    try:
        # The flax framework reads bfloat16 too, which the NumPy one does not everywhere.
        with safe_open(path, framework="flax") as file:
            return {name: np.asarray(file.get_tensor(name)) for name in wanted or file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}). Is the download complete?") from error
