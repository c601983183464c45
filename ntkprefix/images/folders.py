"""Image sets in a folder, with a folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ntkprefix.checks.describe import printable
from ntkprefix.images import checks
from ntkprefix.images.data import ImageData, stratified
from ntkprefix.images.names import some
from ntkprefix.images.pixels import SUFFIXES, open_all

# What the folder of test images is called, in the order of preference.
_TEST = ("test", "val", "validation")


def read_folder(path: Path, size: int, seed: int, test_share: float) -> ImageData:
    """Images of a folder; arguments as in `load_images`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what `load_images` expects; the message names the folder or file.
    """
    parts = _own_split(path)
    if parts:
        names, tested = (_class_names(part) for part in parts)
        unknown = set(tested) - set(names)
        if unknown:
            raise ValueError(f"{parts[1]}: expected the classes of {parts[0]}, got also {some(sorted(unknown))}.")
        checks.distinct(path, [parts[0] / name for name in names] + [parts[1] / name for name in tested])
        train, test = (_listing(part, names) for part in parts)
        checks.several(path, names, train[1])
        checks.tested(path, names, train[1], test[1])
        notes = f"the folder's own split, {parts[0].name} and {parts[1].name}"
    else:
        names = _class_names(path)
        checks.distinct(path, [path / name for name in names])
        files, labels = _listing(path, names)
        checks.several(path, names, labels)
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


def _own_split(path: Path) -> list[Path]:
    """The folders of training and test images, of which there can be several; none when the split is made here."""
    # "train" itself comes before "Train", should there be both.
    folders = sorted(class_folders(path), key=lambda name: (name != name.lower(), name))
    train = [path / name for name in folders if name.lower() == "train"]
    test = [path / name for part in _TEST for name in folders if name.lower() == part]
    if not (train and test):
        return []
    # ImageNet's test folder has images without classes, beside a val folder that has them.
    return [train[0], next((folder for folder in test if class_folders(folder)), test[0])]


def _class_names(folder: Path) -> list[str]:
    names = class_folders(folder)
    if not names:
        archives = [child.name for child in sorted(folder.glob("*.npz"))]
        hint = f" Give one of the files in it, {archives[0]} perhaps." if archives else ""
        raise ValueError(f"{folder}: expected one folder of images per class, found no folders.{hint}")
    checks.number_of_classes(folder, len(names))
    return names


def class_folders(folder: Path) -> list[str]:
    """Folders that are not hidden, sorted; `__MACOSX` holds what macOS puts beside the files that it packs."""
    folders = (child.name for child in folder.iterdir() if child.is_dir())
    return sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")


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
            "train/<class>/ and test/<class>/ (or val/<class>/), or in <class>/."
        )
    files, labels = zip(*pairs, strict=True)
    return np.array(files, dtype=object), np.array(labels, dtype=np.int32)
