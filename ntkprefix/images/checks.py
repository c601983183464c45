"""Whether the classes of training and test belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ntkprefix.images.names import some

# ImageNet-21k has 21,841. A head has a column per class, so a label out of a damaged file would fill the memory.
_MOST_CLASSES = 30_000


def every_class(path: Path, names: list[str], train: np.ndarray, test: np.ndarray) -> None:
    """ValueError when a class is missing from a part of the split."""
    for part, labels in (("training", train), ("test", test)):
        absent = [name for label, name in enumerate(names) if label not in labels]
        if absent:
            raise ValueError(
                f"{path}: expected images of every class in the {part} part of the split, got none of "
                f"{some(absent)}. Add images, or change test_share."
            )


def tested(path: Path, names: Sequence[str], train: np.ndarray, test: np.ndarray) -> None:
    """ValueError when a class is tested that is not trained."""
    absent = [names[label] for label in np.setdiff1d(test, train)]
    if absent:
        raise ValueError(
            f"{path}: expected training images of every class that has test images, got none of {some(absent)}. Add "
            "training images, or leave out the test images of these classes."
        )


def number_of_classes(path: Path, classes: int) -> None:
    """ValueError when there are more classes than any real set has."""
    if classes > _MOST_CLASSES:
        raise ValueError(
            f"{path}: expected at most {_MOST_CLASSES:,} classes, got {classes:,}. Number them from 0 without gaps."
        )
