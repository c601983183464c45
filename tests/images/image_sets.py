"""Small image sets for the tests."""

import numpy as np
from PIL import Image


def picture(colour, height=12, width=10):
    return Image.fromarray(np.full((height, width, 3), colour, np.uint8))


def arrays(**changes):
    random = np.random.default_rng(0)
    content = {
        "x_train": random.integers(0, 256, (6, 10, 8, 3), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": random.integers(0, 256, (3, 10, 8, 3), np.uint8),
        "y_test": np.array([2, 1, 0]),
        "class_names": np.array(["a", "b", "c"]),
    }
    return {name: array for name, array in (content | changes).items() if array is not None}


def npz(folder, **changes):
    path = folder / "set.npz"
    np.savez(path, **arrays(**changes))
    return path


def classes(folder, counts):
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(40 * label + index).save(folder / name / f"{index}.png")
    return folder
