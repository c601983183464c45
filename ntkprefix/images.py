"""Labelled images from an installed package, a `.npz` file or a folder, all as square uint8 arrays."""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8
from PIL import Image, ImageOps

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# Pillow goes by a file's content, not its name, and for some formats (EPS) it starts other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test", "class_names")
_DIGITS_TEST = 797
# The most that the arrays of a file, or of one part of the result, may take.
_LARGEST_BYTES = 4 * 2**30
# ImageNet-21k has 21,841. A head has a column per class, so a label out of a damaged file would fill the memory.
_MOST_CLASSES = 30_000
_LISTED = 10


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

    Every class of the test images must have training images. Photographs are turned upright as their EXIF data say,
    transparent parts become white, of an animation the first frame counts, and 16 bits a channel become 8. Files are
    treated as untrusted: nothing is unpickled, and what would fill the memory is refused.

    Args:
        source: "digits" (scikit-learn's handwritten digits); a `.npz` file with uint8 `x_train` and `x_test`
            [N, h, w, 3] or [N, h, w], integer `y_train` and `y_test`, perhaps `class_names`, text without repeats; a
            folder that holds one such file and no folders; or a folder with `train/<class>/` and `test/<class>/`, or
            `<class>/` alone, which is split here.
        size: side of the images returned, in pixels.
        seed: of the split, where one is made; it is stratified by class.
        test_share: share of a `<class>/` folder's images that become the test set.

    Returns:
        The images and labels.

    Raises:
        FileNotFoundError: there is no such file or folder.
        OSError: a folder cannot be read.
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
        archives = sorted(path.glob("*.npz"))
        if len(archives) == 1 and not _folders(path):
            return _npz(archives[0], size)
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
    missing = [name for name in _ARRAYS if name not in arrays and name != "class_names"]
    if missing:
        raise ValueError(f"{path}: expected x_train, y_train, x_test and y_test; {', '.join(missing)} not found.")
    for part in ("train", "test"):
        _check_pair(path, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    highest = max(int(arrays["y_train"].max()), int(arrays["y_test"].max()))
    names = _npz_names(path, arrays.get("class_names"), highest)
    y_train, y_test = (arrays[f"y_{part}"].astype(np.int32) for part in ("train", "test"))
    _check_tested(path, names, y_train, y_test)
    return ImageData(
        x_train=_fit_all(arrays["x_train"], size, str(path)),
        y_train=y_train,
        x_test=_fit_all(arrays["x_test"], size, str(path)),
        y_test=y_test,
        class_names=names,
        name=_printable(path.stem),
        notes="the file's own split",
    )


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            wanted = {name: members[name] for name in _ARRAYS if name in members}
            total = sum(member.file_size for member in wanted.values())
            if total > _LARGEST_BYTES:
                raise ValueError(f"{', '.join(wanted)} take {total:,} bytes, at most {_LARGEST_BYTES:,} are read")
            return {name: _read_member(archive, member) for name, member in wanted.items()}
    # zipfile, its decompressors and NumPy's header parser raise a dozen kinds of errors on damaged files.
    except Exception as error:
        raise ValueError(
            f"{path}: expected plain arrays saved by numpy.savez ({_said(error)}). Object arrays are "
            "not read: they are pickles, which can run code."
        ) from error


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        # Reading to the very end makes zipfile compare the checksum.
        if file.read(1):
            raise ValueError(f"{member.filename} goes on after its array")
    return array


def _npz_names(path: Path, given: np.ndarray | None, highest: int) -> tuple[str, ...]:
    _check_number_of_classes(path, highest + 1 if given is None else max(highest + 1, given.size))
    if given is None:
        return tuple(map(str, range(highest + 1)))
    if given.dtype.kind != "U":
        raise TypeError(f"{path}: expected class_names as text, got {given.dtype}.")
    if given.ndim != 1:
        raise ValueError(f"{path}: expected class_names as one list, got shape {list(given.shape)}.")
    try:
        names = tuple(map(_printable, given.tolist()))
    except (ValueError, SystemError) as error:  # four bytes that are no character
        raise ValueError(f"{path}: expected class_names as text ({error}).") from error
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: expected class_names without repeats, got {_some(repeated)} more than once.")
    if highest >= len(names):
        raise ValueError(f"{path}: expected labels below {len(names)}, the number of class_names, got {highest}.")
    return names


def _check_pair(path: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8:
        raise TypeError(f"{path}: expected x_{part} as uint8 from 0 to 255, got {images.dtype}.")
    if labels.dtype.kind not in "iu":
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
            raise ValueError(
                f"{path / 'test'}: expected the classes of {path / 'train'}, got also {_some(sorted(unknown))}."
            )
        train, test = (_listing(path / part, names) for part in ("train", "test"))
        _check_tested(path, names, train[1], test[1])
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
        class_names=tuple(map(_printable, names)),
        name=_printable(path.resolve().name),
        notes=notes,
    )


def _class_names(folder: Path) -> list[str]:
    names = _folders(folder)
    if not names:
        archives = [child.name for child in sorted(folder.glob("*.npz"))]
        hint = f" Give one of the files in it, {archives[0]} perhaps." if archives else ""
        raise ValueError(f"{folder}: expected one folder of images per class, found no folders.{hint}")
    _check_number_of_classes(folder, len(names))
    return names


def _folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _listing(folder: Path, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (file, label)
        for label, name in enumerate(names)
        if (folder / name).is_dir()
        for file in sorted((folder / name).iterdir())
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    ]
    if not pairs:
        raise ValueError(
            f"{folder}: expected images ({', '.join(sorted(_SUFFIXES))}) in its folders, found none. They lie in "
            "train/<class>/ and test/<class>/, or in <class>/."
        )
    files, labels = zip(*pairs, strict=True)
    return np.array(files, dtype=object), np.array(labels, dtype=np.int32)


def _check_every_class(path: Path, names: list[str], train: np.ndarray, test: np.ndarray) -> None:
    for part, labels in (("training", train), ("test", test)):
        absent = [name for label, name in enumerate(names) if label not in labels]
        if absent:
            raise ValueError(
                f"{path}: expected images of every class in the {part} part of the split, got none of "
                f"{_some(absent)}. Add images, or change test_share."
            )


def _check_tested(path: Path, names: Sequence[str], train: np.ndarray, test: np.ndarray) -> None:
    absent = [names[label] for label in np.setdiff1d(test, train)]
    if absent:
        raise ValueError(
            f"{path}: expected training images of every class that has test images, got none of {_some(absent)}. Add "
            "training images, or leave out the test images of these classes."
        )


def _check_number_of_classes(path: Path, classes: int) -> None:
    if classes > _MOST_CLASSES:
        raise ValueError(
            f"{path}: expected at most {_MOST_CLASSES:,} classes, got {classes:,}. Number them from 0 without gaps."
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{list(names[:_LISTED])}{more}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _printable(name: str) -> str:
    """Control characters and bytes of file names that are no text are spelt out, so that any output can show them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _open_all(files: Iterable[Path], size: int) -> np.ndarray:
    files = list(files)
    result = _empty(len(files), size, str(files[0].parent.parent))
    for index, file in enumerate(files):
        result[index] = _open(file, size)
    return result


def _open(file: Path, size: int) -> np.ndarray:
    try:
        if not file.is_file():
            raise ValueError("it is not a file, or a link to none")
        with warnings.catch_warnings():
            # Pillow's limit on pixels warns first and fails at twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                return _fit(_flat(_eight_bits(image)), size)
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        raise ValueError(
            f"{file}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels ({_said(error)})."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image turned upright, with 8 bits a channel; Pillow's own conversion clips 16 bits at 255."""
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of unknown range; save it with 8 or 16 bits a channel")
    return upright


def _flat(image: Image.Image) -> Image.Image:
    """Transparent parts on white: what colour lies hidden under them is chance."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


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
