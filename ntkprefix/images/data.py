"""The labelled image set that every source gives, and how one is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageData:
    """A labelled image set.

    Attributes:
        x_train: [N, size, size, 3].
        y_train: class numbers, [N].
        x_test: [N', size, size, 3].
        y_test: [N'].
        class_names: in the order of the class numbers.
        name: of the set.
        notes: where the split between training and test comes from.

    Example:
        >>> import numpy as np
        >>> from ntkprefix.images import ImageData
        >>> black_and_white = np.repeat(np.array([0, 255], np.uint8), 2 * 2 * 3).reshape(2, 2, 2, 3)
        >>> data = ImageData(
        ...     x_train=np.tile(black_and_white, (4, 1, 1, 1)),
        ...     y_train=np.tile(np.arange(2, dtype=np.int32), 4),
        ...     x_test=black_and_white,
        ...     y_test=np.arange(2, dtype=np.int32),
        ...     class_names=("black", "white"),
        ...     name="squares",
        ...     notes="made up",
        ... )
        >>> data.x_train.shape, [data.class_names[label] for label in data.y_test]
        ((8, 2, 2, 3), ['black', 'white'])
    """

    x_train: UInt8[np.ndarray, "N size size 3"]
    y_train: Int32[np.ndarray, " N"]
    x_test: UInt8[np.ndarray, "N2 size size 3"]
    y_test: Int32[np.ndarray, " N2"]
    class_names: tuple[str, ...]
    name: str
    notes: str


def stratified(labels: Int[np.ndarray, " N"], count: int, seed: int) -> Bool[np.ndarray, " N"]:
    """Choose examples at random, each class in proportion to its size.

    A class's share is rounded down; what is left over goes to the classes that lost most by it, one each.

    Args:
        labels: class numbers, [N].
        count: how many to choose, 0 to N.
        seed: of the choice within the classes.

    Returns:
        True for the chosen, [N]; it keeps the order of the examples.

    Raises:
        ValueError: fewer than `count` examples, or a negative `count`.

    Example:
        >>> import numpy as np
        >>> from ntkprefix.images import stratified
        >>> labels = np.array([0, 1, 0, 1, 0, 0, 0, 1, 0])
        >>> chosen = stratified(labels, 3, seed=0)
        >>> sorted(labels[chosen].tolist())
        [0, 0, 1]
    """
    if not 0 <= count <= len(labels):
        raise ValueError(f"stratified: expected a count from 0 to {len(labels)}, the number of labels, got {count}.")
    classes, sizes = np.unique(labels, return_counts=True)
    shares, lost = np.divmod(sizes * count, max(len(labels), 1))
    shares[np.argsort(-lost, kind="stable")[: count - shares.sum()]] += 1
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label, share in zip(classes, shares, strict=True):
        chosen[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return chosen
