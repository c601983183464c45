"""Whether the classes of training and test are classes, and belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ntkprefix.checks import MOST_CLASSES
from ntkprefix.images.names import some


def every_class(path: Path, names: list[str], train: np.ndarray, test: np.ndarray) -> None:
    """That no class is missing from a part of the split.

    Raises:
        ValueError: one is; the message names it.
    """
    for part, labels in (("training", train), ("test", test)):
        absent = [name for label, name in enumerate(names) if label not in labels]
        if absent:
            raise ValueError(
                f"{path}: expected images of every class in the {part} part of the split, got none of "
                f"{some(absent)}. Add images of it, or split the set yourself, into train/<class>/ and test/<class>/ "
                "folders (`load_images` can also hold out another share, test_share)."
            )


def tested(path: Path, names: Sequence[str], train: np.ndarray, test: np.ndarray) -> None:
    """That no class is tested that is not trained.

    Raises:
        ValueError: one is; the message names it.
    """
    absent = [names[label] for label in np.setdiff1d(test, train)]
    if absent:
        raise ValueError(
            f"{path}: expected training images of every class that has test images, got none of {some(absent)}. Add "
            "training images, or leave out the test images of these classes."
        )


def several(path: Path, names: Sequence[str], train: np.ndarray) -> None:
    """That there is more than one class to train on.

    Raises:
        ValueError: there is not; the message names the one.
    """
    found = np.unique(train)
    if len(found) < 2:
        raise ValueError(
            f"{path}: expected at least 2 classes of training images, got {some([names[label] for label in found])} "
            "alone. Add images of another class."
        )


def distinct(path: Path, folders: Iterable[Path]) -> None:
    """That no class is another one by a second name.

    Raises:
        ValueError: one is; the message names both.
    """
    known: dict[Path, Path] = {}
    for folder in folders:
        first = known.setdefault(folder.resolve(), folder)
        if first.name != folder.name:
            raise ValueError(
                f"{path}: expected a folder of its own for every class, got {some([first.name, folder.name])}, which "
                "are one folder. Remove the link."
            )


def number_of_classes(path: Path, classes: int) -> None:
    """That there are no more classes than real sets have.

    Raises:
        ValueError: there are.
    """
    if classes > MOST_CLASSES:
        raise ValueError(
            f"{path}: expected at most {MOST_CLASSES:,} classes, got {classes:,}. Number them from 0 without gaps."
        )
