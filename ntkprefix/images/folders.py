"""Image sets in a folder, with a folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ntkprefix.images import checks
from ntkprefix.images.data import ImageData, stratified
from ntkprefix.images.names import printable, some
from ntkprefix.images.pixels import SUFFIXES, open_all


def read_folder(path: Path, size: int, seed: int, test_share: float) -> ImageData:
    """Images of a folder; arguments and errors as in `load_images`."""
    if (path / "train").is_dir() and (path / "test").is_dir():
        names = _class_names(path / "train")
        unknown = set(_class_names(path / "test")) - set(names)
        if unknown:
            raise ValueError(
                f"{path / 'test'}: expected the classes of {path / 'train'}, got also {some(sorted(unknown))}."
            )
        train, test = (_listing(path / part, names) for part in ("train", "test"))
        checks.tested(path, names, train[1], test[1])
        notes = "the folder's own split"
    else:
        names = _class_names(path)
        files, labels = _listing(path, names)
        held = stratified(labels, round(test_share * len(files)), seed)
        train, test = ((files[chosen], labels[chosen]) for chosen in (~held, held))
        notes = f"{test_share:.0%} held out, stratified split with seed {seed}"
        checks.every_class(path, names, train[1], test[1])
    (x_train, y_train), (x_test, y_test) = ((open_all(files, size), labels) for files, labels in (train, test))
    return ImageData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(map(printable, names)),
        name=printable(path.resolve().name),
        notes=notes,
    )


def _class_names(folder: Path) -> list[str]:
    names = class_folders(folder)
    if not names:
        archives = [child.name for child in sorted(folder.glob("*.npz"))]
        hint = f" Give one of the files in it, {archives[0]} perhaps." if archives else ""
        raise ValueError(f"{folder}: expected one folder of images per class, found no folders.{hint}")
    checks.number_of_classes(folder, len(names))
    return names


def class_folders(folder: Path) -> list[str]:
    """Folders that are not hidden, sorted."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _listing(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (file, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    ]
    if not pairs:
        raise ValueError(
            f"{folder}: expected images ({', '.join(sorted(SUFFIXES))}) in its folders, found none. They lie in "
            "train/<class>/ and test/<class>/, or in <class>/."
        )
    files, labels = zip(*pairs, strict=True)
    return np.array(files, dtype=object), np.array(labels, dtype=np.int32)
