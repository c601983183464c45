"""Where labelled images come from: an installed package, a file or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ntkprefix.images.archives import read_npz
from ntkprefix.images.data import ImageData, stratified
from ntkprefix.images.folders import class_folders, read_folder
from ntkprefix.images.pixels import fit_all

_DIGITS_TEST = 797


def load_images(source: str | Path, *, size: int, seed: int = 0, test_share: float = 0.2) -> ImageData:
    """Load images, resized on their shorter side and cropped at the centre to `size` x `size`.

    There must be at least two classes, and training images of every class that has test images. Photographs are turned
    upright as their EXIF data say, transparent parts become white, of an animation the first frame counts, and 16 bits
    a channel become 8. Files are treated as untrusted: nothing is unpickled, and what would fill the memory is refused.

    Args:
        source: "digits" (scikit-learn's handwritten digits); a `.npz` file with uint8 `x_train` and `x_test`
            [N, h, w, 3] or [N, h, w], integer `y_train` and `y_test`, perhaps `class_names`, text without repeats
            (without it the numbers that occur are the classes and their names, counted anew from 0); a folder that
            holds one such file and no folders; or a folder with `train/<class>/` and `test/<class>/` (or `val`, or
            `validation`, in any case of letters; the first of the three that has classes), or `<class>/` alone, which
            is split here. Hidden folders and `__MACOSX` are passed over. A class may be a link to a folder elsewhere,
            but not to another class of the set.
        size: side of the images returned, in pixels.
        seed: of the split, where one is made; it is stratified by class.
        test_share: share of a `<class>/` folder's images that become the test set.

    Returns:
        The images and labels.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ImportError: "digits" without scikit-learn.
        OSError: a folder cannot be read.
        ValueError: a size or share out of range, or a file that is not what is described above; the message names it.

    Example:
        >>> from ntkprefix.images import load_images
        >>> data = load_images("digits", size=14)
        >>> data.x_train.shape, data.x_test.shape, len(data.class_names)
        ((1000, 14, 14, 3), (797, 14, 14, 3), 10)
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size: expected a positive number of pixels, got {size!r}.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share: expected a number between 0 and 1, got {test_share!r}.")
    if source == "digits":
        return _digits(size, seed)
    path = Path(source)
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1 and not class_folders(path):
            return read_npz(archives[0], size)
        return read_folder(path, size, seed, test_share)
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path, size)
    found = "something else" if path.exists() else "nothing there. Is the path right?"
    raise FileNotFoundError(f"{path}: expected 'digits', a .npz file or a folder of images, found {found}")


def _digits(size: int, seed: int) -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install scikit-learn") from error
    grey, labels = load_digits(return_X_y=True)
    pixels = np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    test = stratified(labels, _DIGITS_TEST, seed)
    images, labels = fit_all(pixels, size, "digits"), labels.astype(np.int32)
    return ImageData(
        x_train=images[~test],
        y_train=labels[~test],
        x_test=images[test],
        y_test=labels[test],
        class_names=tuple(map(str, range(10))),
        name="digits",
        notes=f"scikit-learn's 1,797 digits of 8 x 8, stratified split with seed {seed}",
    )
