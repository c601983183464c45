"""Tensors of a Hugging Face model folder, from one or several safetensors files. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from ntkprefix import checks
from ntkprefix.runs import read_json
from ntkprefix.safetensors_file import opened

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a model folder.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and the files it names.

    Returns:
        Arrays by name, in the file's dtypes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not safetensors, the index is not one, or a tensor cannot be read; the message names it.

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
    file = weights_file(folder)
    if file.name == _SINGLE:
        return read_tensors(file)
    tensors = {}
    for name, wanted in _shards(file).items():
        tensors.update(read_tensors(folder / name, wanted))
    return tensors


def weights_file(folder: Path) -> Path:
    """The file that says which tensors a model folder has: the only one, or the index of several.

    Raises:
        FileNotFoundError: there is neither.
    """
    for name in (_SINGLE, _INDEX):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder}: expected {_SINGLE} or {_INDEX}, found neither. Pickled checkpoints (.bin, .pt) are not read: "
        "save the model again with safetensors."
    )


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks of its configuration and weights, for a message."""
    weights = [name for name in (_SINGLE, _INDEX) if (folder / name).is_file()][:1]
    needed = ["config.json", *(weights or [f"{_SINGLE} or {_INDEX}"])]
    if weights == [_INDEX]:
        needed += _shards(folder / _INDEX)
    return [name for name in needed if not (folder / name).is_file()]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that came with a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON object; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected this file beside the weights, found none. Copy it from where the weights come from."
        )
    try:
        return read_json(path)
    except ValueError as error:
        # read_json speaks to those who wrote the file themselves.
        raise ValueError(
            f"{path}: expected a JSON object ({error.__cause__ or 'found other JSON'}). Is the download complete?"
        ) from error


def _shards(index: Path) -> dict[str, list[str]]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index}: expected `weight_map`, an object of tensor names and file names.")
    shards: dict[str, list[str]] = {}
    for name, file in places.items():
        # An index may come from anywhere; it must not point outside its own folder.
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index}: expected names of .safetensors files in the same folder, got {file!r}.")
        shards.setdefault(file, []).append(name)
    return shards


def read_tensors(path: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The named tensors of one safetensors file, all if None.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, has empty tensors of huge shapes, or lacks a tensor.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: named by {_INDEX}, but there is no such file. Is the download complete?")
    try:
        # The flax framework reads bfloat16 too, which the NumPy one does not everywhere.
        with opened(path, framework="flax") as file:
            names = list(file.keys())
            _check_shapes(file, names, path)
            return {name: _tensor(file, name, names, path) for name in (names if wanted is None else wanted)}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error}). Is the download complete?") from error


def _check_shapes(file: Any, names: Collection[str], path: Path) -> None:
    try:
        checks.stored_shapes({name: file.get_slice(name).get_shape() for name in names})
    except ValueError as error:
        raise ValueError(f"{path}: {error}. Save the model again without them.") from error


def _tensor(file: Any, name: str, names: Collection[str], path: Path) -> np.ndarray:
    if name not in names:
        raise ValueError(f"{path}: expected the tensor {name!r}, which {_INDEX} places here, found none.")
    try:
        return np.asarray(file.get_tensor(name))
    except (AttributeError, TypeError, ValueError) as error:  # formats of 8 bits and fewer; sizes beyond NumPy's
        raise ValueError(
            f"{path}: the tensor {name!r} cannot be read ({error}). Save the model as float32, float16 or bfloat16."
        ) from error
