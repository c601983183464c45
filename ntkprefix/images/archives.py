"""Image sets in a `.npz` file."""

from __future__ import annotations

import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from ntkprefix.checks.describe import printable
from ntkprefix.images import checks
from ntkprefix.images.data import ImageData
from ntkprefix.images.names import said, some
from ntkprefix.images.pixels import LARGEST_BYTES, fit_all

_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


def read_npz(path: Path, size: int) -> ImageData:
    """Images of a `.npz` file; arguments as in `load_images`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or lacks arrays; they have the wrong dtype, do not fit each other, or are no images
            and classes.
    """
    arrays = _arrays(path)
    missing = [name for name in _ARRAYS if name not in arrays and name != "class_names"]
    if missing:
        raise ValueError(f"{path}: expected x_train, y_train, x_test and y_test; {', '.join(missing)} not found.")
    for part in ("train", "test"):
        _pair(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    highest = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    names = _names(path, arrays.get("class_names"), highest)
    y_train, y_test = (arrays[f"y_{part}"].astype(np.int32) for part in ("train", "test"))
    checks.several(path, names, y_train)
    checks.tested(path, names, y_train, y_test)
    if "class_names" not in arrays:
        # Numbers that no image has are no classes; those that are keep theirs as names.
        used = np.unique(y_train)
        names = tuple(names[label] for label in used)
        y_train, y_test = (np.searchsorted(used, labels).astype(np.int32) for labels in (y_train, y_test))
    return ImageData(
        x_train=fit_all(arrays["x_train"], size, str(path)),
        y_train=y_train,
        x_test=fit_all(arrays["x_test"], size, str(path)),
        y_test=y_test,
        class_names=names,
        name=printable(path.stem),
        notes="the file's own split",
    )


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            wanted = {name: members[name] for name in _ARRAYS if name in members}
            total = sum(member.file_size for member in wanted.values())
            if total > LARGEST_BYTES:
                raise ValueError(f"{', '.join(wanted)} take {total:,} bytes, at most {LARGEST_BYTES:,} are read")
            return {name: _read_member(archive, member) for name, member in wanted.items()}
    # zipfile, its decompressors and NumPy's header parser raise a dozen kinds of errors on damaged files.
    except Exception as error:
        raise ValueError(
            f"{path}: expected plain arrays saved by numpy.savez ({said(error)}). Object arrays are "
            "not read: they are pickles, which can run code."
        ) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # Reading to the very end makes zipfile compare the checksum.
        if file.read(1):
            raise ValueError(f"{member.filename} goes on after its array")
    return array


def _names(path: Path, given: np.ndarray | None, highest: int) -> tuple[str, ...]:
    checks.number_of_classes(path, highest + 1 if given is None else max(highest + 1, given.size))
    if given is None:
        return tuple(map(str, range(highest + 1)))
    if given.dtype.kind != "U":
        raise ValueError(f"{path}: expected class_names as text, got {given.dtype}.")
    if given.ndim != 1:
        raise ValueError(f"{path}: expected class_names as one list, got shape {list(given.shape)}.")
    try:
        names = tuple(map(printable, given.tolist()))
    except (ValueError, SystemError) as error:  # four bytes that are no character
        raise ValueError(f"{path}: expected class_names as text ({error}).") from error
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: expected class_names without repeats, got {some(repeated)} more than once.")
    if highest >= len(names):
        raise ValueError(f"{path}: expected labels below {len(names)}, the number of class_names, got {highest}.")
    return names


def _pair(path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: expected x_{part} as uint8 from 0 to 255, got {images.dtype}.")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected y_{part} as integers, got {labels.dtype}.")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ValueError(f"{path}: expected x_{part} as [N, h, w, 3] or [N, h, w], got shape {list(images.shape)}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: expected {len(images)} labels in y_{part}, got shape {list(labels.shape)}.")
    if labels.min() < 0:
        raise ValueError(f"{path}: expected labels from 0 in y_{part}, got {labels.min()}.")
