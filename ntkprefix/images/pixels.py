"""Pixels: image files, arrays and how a model wants them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image, ImageOps

from ntkprefix.images.names import said

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
# The most that the arrays of a file, or of one part of the result, may take.
LARGEST_BYTES = 4 * 2**30
# Pillow goes by a file's content, not its name, and for some formats (EPS) it starts other programs.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        for colour in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (images.astype(jnp.float32) / 255 - mean) / std


def open_all(files: Iterable[Path], size: int) -> np.ndarray:
    """Open files into one array, [N, size, size, 3]."""
    files = list(files)
    result = _empty(len(files), size, str(files[0].parent.parent))
    for index, file in enumerate(files):
        result[index] = open_image(file, size)
    return result


def open_image(file: Path, size: int) -> np.ndarray:
    """Open one untrusted file, [size, size, 3]; ValueError naming it when it is no image."""
    return read_image(file, lambda image: _fit(image, size))


def read_image(file: Path, use: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `use` makes of an untrusted file's image, upright and RGB.

    Raises:
        ValueError: it is no image; the message names it.
    """
    try:
        if not file.is_file():
            raise ValueError("it is not a file, or a link to none")
        with warnings.catch_warnings():
            # Pillow's limit on pixels warns first and fails at twice as many.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                return use(flat(_eight_bits(image)))
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        raise ValueError(
            f"{file}: expected an image of at most {Image.MAX_IMAGE_PIXELS:,} pixels ({said(error)})."
        ) from error


def fit_all(pixels: np.ndarray, size: int, source: str) -> np.ndarray:
    """Resize and crop arrays into one, [N, size, size, 3]."""
    result = _empty(len(pixels), size, source)
    for index, image in enumerate(pixels):
        result[index] = _fit(Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image), size)
    return result


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image turned upright, with 8 bits a channel; Pillow's own conversion clips 16 bits at 255."""
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(upright) // 256).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, of unknown range; save it with 8 or 16 bits a channel")
    return upright


def flat(image: Image.Image) -> Image.Image:
    """RGB, transparent parts on white: what colour lies hidden under them is chance."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _empty(count: int, size: int, source: str) -> np.ndarray:
    wanted = count * size * size * 3
    if wanted > LARGEST_BYTES:
        raise ValueError(
            f"{source}: {count:,} images of {size} x {size} take {wanted:,} bytes, at most {LARGEST_BYTES:,} are "
            "allowed. Choose a smaller size or fewer images."
        )
    return np.empty((count, size, size, 3), np.uint8)


def _fit(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
