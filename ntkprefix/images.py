"""Labelled images from an installed package, a `.npz` file or a folder, all as square uint8 arrays."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8
from PIL import Image, ImageOps

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_DIGITS_TEST = 797
# The most that one array of a file, or of the result, may take.
_LARGEST_BYTES = 4 * 2**30


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
    """

    x_train: UInt8[np.ndarray, "N size size 3"]
    y_train: Int32[np.ndarray, " N"]
    x_test: UInt8[np.ndarray, "N2 size size 3"]
    y_test: Int32[np.ndarray, " N2"]
    class_names: tuple[str, ...]
    name: str
    notes: str


def load_images(source: str | Path, *, size: int, seed: int = 0, test_share: float = 0.2) -> ImageData:
    """Load images, resized on their shorter side and cropped at the centre to `size` x `size`.

    Args:
        source: "digits" (scikit-learn's handwritten digits); a `.npz` file with uint8 `x_train` and `x_test`
            [N, h, w, 3] or [N, h, w], integer `y_train` and `y_test`, perhaps `class_names`; or a folder with
            `train/<class>/` and `test/<class>/`, or `<class>/` alone, which is split here.
        size: side of the images returned, in pixels.
        seed: of the split, where one is made; it is stratified by class.
        test_share: share of a `<class>/` folder's images that become the test set.

    Returns:
        The images and labels.

    Raises:
        FileNotFoundError: there is no such file or folder.
        TypeError: arrays in a `.npz` have the wrong dtype.
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
        return _folder(path, size, seed, test_share)
    if path.suffix == ".npz" and path.is_file():
        return _npz(path, size)
    raise FileNotFoundError(f"{path}: expected 'digits', a .npz file or a folder of images, found no such thing.")


def normalise(images: UInt8[Array, "*B h w 3"]) -> Float[Array, "*B h w 3"]:
    """Subtract ImageNet's mean colour and divide by its deviation, as DINOv2 was trained.

    Call it inside the jitted step, so that images travel to the device as bytes.

    Args:
        images: [..., h, w, 3], uint8.

    Returns:
        Float32, of the same shape.

    Raises:
        TypeError: the images are not uint8.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.images import normalise
        >>> normalise(jnp.zeros((1, 1, 1, 3), jnp.uint8)).round(2)
        Array([[[[-2.12, -2.04, -1.8 ]]]], dtype=float32)
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"images: expected uint8 from 0 to 255, got {images.dtype}. Are they normalised already?")
    mean, std = (
        jnp.asarray(colour, jnp.float32).reshape((1,) * (images.ndim - 1) + (3,))
        for colour in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    return (images.astype(jnp.float32) / 255 - mean) / std


def _digits(size: int, seed: int) -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("The digits come with scikit-learn: pip install scikit-learn") from error
    grey, labels = load_digits(return_X_y=True)
    pixels = np.rint(grey.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    test = stratified(labels, _DIGITS_TEST, seed)
    images, labels = _fit_all(pixels, size, "digits"), labels.astype(np.int32)
    return ImageData(
        x_train=images[~test],
        y_train=labels[~test],
        x_test=images[test],
        y_test=labels[test],
        class_names=tuple(map(str, range(10))),
        name="digits",
        notes=f"scikit-learn's 1,797 digits of 8 x 8, stratified split with seed {seed}",
    )


def _npz(path: Path, size: int) -> ImageData:
    arrays = _read_npz(path)
    missing = [name for name in ("x_train", "y_train", "x_test", "y_test") if name not in arrays]
    if missing:
        raise ValueError(f"{path}: expected x_train, y_train, x_test and y_test; {', '.join(missing)} not found.")
    parts: dict[str, Any] = {}
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        _check_pair(path, part, images, labels)
        parts |= {f"x_{part}": _fit_all(images, size, str(path)), f"y_{part}": labels.astype(np.int32)}
    highest = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    names = tuple(map(str, np.atleast_1d(arrays.get("class_names", np.arange(highest + 1)))))
    if highest >= len(names):
        raise ValueError(f"{path}: expected labels below {len(names)}, the number of class_names, got {highest}.")
    return ImageData(**parts, class_names=names, name=path.stem, notes="the file's own split")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > _LARGEST_BYTES:
                    raise ValueError(f"{member.filename} takes {member.file_size:,} bytes, at most {_LARGEST_BYTES:,}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: expected plain arrays saved by numpy.savez ({error}). Object arrays are not read: they are "
            "pickles, which can run code."
        ) from error


def _check_pair(path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"{path}: expected x_{part} as uint8 from 0 to 255, got {images.dtype}.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"{path}: expected y_{part} as integers, got {labels.dtype}.")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)) or 0 in images.shape:
        raise ValueError(f"{path}: expected x_{part} as [N, h, w, 3] or [N, h, w], got shape {list(images.shape)}.")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: expected {len(images)} labels in y_{part}, got shape {list(labels.shape)}.")
    if labels.min() < 0:
        raise ValueError(f"{path}: expected labels from 0 in y_{part}, got {labels.min()}.")


def _folder(path: Path, size: int, seed: int, test_share: float) -> ImageData:
    if (path / "train").is_dir() and (path / "test").is_dir():
        names = _class_names(path / "train")
        unknown = set(_class_names(path / "test")) - set(names)
        if unknown:
            raise ValueError(f"{path / 'test'}: expected the classes of {path / 'train'}, got also {sorted(unknown)}.")
        train, test = (_listing(path / part, names) for part in ("train", "test"))
        notes = "the folder's own split"
    else:
        names = _class_names(path)
        files, labels = _listing(path, names)
        held = stratified(labels, round(test_share * len(files)), seed)
        train, test = ((files[chosen], labels[chosen]) for chosen in (~held, held))
        notes = f"{test_share:.0%} held out, stratified split with seed {seed}"
        _check_every_class(path, names, train[1], test[1])
    (x_train, y_train), (x_test, y_test) = ((_open_all(files, size), labels) for files, labels in (train, test))
    return ImageData(
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=tuple(names),
        name=path.resolve().name,
        notes=notes,
    )


def _class_names(folder: Path) -> list[str]:
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not names:
        raise ValueError(f"{folder}: expected one folder of images per class, found no folders.")
    return names


def _listing(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (file, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    ]
    if not pairs:
        raise ValueError(f"{folder}: expected images ({', '.join(sorted(_SUFFIXES))}) in its folders, found none.")
    files, labels = zip(*pairs, strict=True)
    return np.array(files, dtype=object), np.array(labels, dtype=np.int32)


def _check_every_class(path: Path, names: list[str], train: np.ndarray, test: np.ndarray) -> None:
    for part, labels in (("training", train), ("test", test)):
        absent = [name for label, name in enumerate(names) if label not in labels]
        if absent:
            raise ValueError(
                f"{path}: expected images of every class in the {part} part of the split, got none of {absent}. Add "
                "images, or change test_share."
            )


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which of the examples are chosen: `count` of them, each class in proportion."""
    classes, counts = np.unique(labels, return_counts=True)
    quota = counts * count / len(labels)
    chosen = np.floor(quota).astype(int)
    # Largest remainders get what rounding down left over.
    chosen[np.argsort(chosen - quota, kind="stable")[: count - chosen.sum()]] += 1
    random = np.random.default_rng(seed)
    held = np.zeros(len(labels), bool)
    for label, share in zip(classes, chosen, strict=True):
        held[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return held


def _open_all(files: Iterable[Path], size: int) -> np.ndarray:
    files = list(files)
    result = _empty(len(files), size, str(files[0].parent.parent))
    for index, file in enumerate(files):
        result[index] = _open(file, size)
    return result


def _open(file: Path, size: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow's limit on pixels warns first and fails at twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return _fit(ImageOps.exif_transpose(image), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{file}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels ({error})."
        ) from error


def _fit_all(pixels: np.ndarray, size: int, source: str) -> np.ndarray:
    result = _empty(len(pixels), size, source)
    for index, image in enumerate(pixels):
        result[index] = _fit(Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image), size)
    return result


def _empty(count: int, size: int, source: str) -> np.ndarray:
    wanted = count * size * size * 3
    if wanted > _LARGEST_BYTES:
        raise ValueError(
            f"{source}: {count:,} images of {size} x {size} take {wanted:,} bytes, at most {_LARGEST_BYTES:,} are "
            "allowed. Choose a smaller size or fewer images."
        )
    return np.empty((count, size, size, 3), np.uint8)


def _fit(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
