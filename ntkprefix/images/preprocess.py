"""Images as a pretrained vision model saw them: resized, cropped, normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ntkprefix.images.pixels import IMAGENET_MEAN, IMAGENET_STD, flat, read_image

Picture = Path | str | Image.Image | UInt8[np.ndarray, "..."]

RESAMPLE = {name: Image.Resampling[name.upper()] for name in ("nearest", "lanczos", "bilinear", "bicubic", "box")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    r"""Resize the shorter side, crop the centre, and give (scale pixels - mean) / std.

    Attributes:
        shortest_edge: pixels of the shorter side, the longer in proportion and rounded down; None to leave sizes alone.
        crop: height and width of the centre that is kept, black where the image does not reach; None for all.
        resample: how pixels are interpolated; all but nearest smooth what they shrink.
        scale: of the pixels, 0 to 255.
        mean: of each colour.
        std: of each colour.

    Raises:
        ValueError: a size below 1, an unknown way to resample, a number that is not finite, a deviation of 0.

    Example:
        >>> import numpy as np
        >>> from ntkprefix.images import Preprocess
        >>> Preprocess()([np.zeros((30, 40, 3), np.uint8)]).shape
        (1, 224, 224, 3)

    Source: the defaults are those of facebook/dinov2-small, done by Pillow as transformers' BitImageProcessorPil does.
    """

    shortest_edge: int | None = 256
    crop: tuple[int, int] | None = (224, 224)
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box"] = "bicubic"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self):
        sides = {"shortest_edge": self.shortest_edge}
        if self.crop is not None:
            sides |= dict(zip(("crop's height", "crop's width"), self.crop, strict=True))
        for name, side in sides.items():
            if side is not None and (type(side) is not int or side < 1):
                raise ValueError(f"Preprocess: expected {name} to be an integer of at least 1, got {side!r}.")
        largest = max((self.shortest_edge or 0) ** 2, 0 if self.crop is None else math.prod(self.crop))
        if largest > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError(f"Preprocess: expected at most {Image.MAX_IMAGE_PIXELS:,} pixels, got {largest:,}.")
        if self.resample not in RESAMPLE:
            raise ValueError(f"Preprocess: expected resample among {', '.join(RESAMPLE)}, got {self.resample!r}.")
        if not all(map(math.isfinite, (self.scale, *self.mean, *self.std))) or 0 in self.std:
            raise ValueError(f"Preprocess: expected finite scale, mean and std, no std of 0, got {self}.")

    def __call__(
        self, images: Sequence[Picture] | UInt8[np.ndarray, "B h w C"]
    ) -> Float32[np.ndarray, "B rows columns 3"]:
        """What the model takes.

        Args:
            images: paths of image files, Pillow's images, or uint8 arrays [h, w], [h, w, 1], [h, w, 3] or [h, w, 4],
                of any sizes. Files are turned upright as their EXIF asks, and of 16 bits a colour the upper 8 are
                used; transparent parts become white.

        Returns:
            Float32, [B, rows, columns, 3].

        Raises:
            TypeError: something else.
            ValueError: no images; a file that is none; without a crop, sizes that differ; or a side that would become
                far too long.
        """
        if not len(images):
            raise ValueError("images: expected at least one, got none.")
        pixels = [self._pixels(image) for image in images]
        sizes = {each.shape[:2] for each in pixels}
        if len(sizes) > 1:
            raise ValueError(
                f"images: expected one size without a crop, got {sorted(sizes)}. Give crop=(height, width)."
            )
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        # An image at a time: float64 of a whole batch would be twice the result.
        return np.stack([((each * self.scale - mean) / std).astype(np.float32) for each in pixels])

    def _pixels(self, image: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
        if isinstance(image, (str, Path)):
            return read_image(Path(image), self._fit)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8:
                raise TypeError(
                    f"images: expected uint8 from 0 to 255, got {image.dtype}. Are they normalised already?"
                )
            if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)) or 0 in image.shape:
                raise ValueError(f"images: expected [h, w], or [h, w, C] with 1, 3 or 4 colours, got {image.shape}.")
            image = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
        if not isinstance(image, Image.Image):
            raise TypeError(f"images: expected paths, Pillow's images or uint8 arrays, got {type(image).__name__}.")
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError(f"images: expected 8 bits a colour, got Pillow's mode {image.mode}. Give the file's path.")
        return self._fit(flat(image))

    def _fit(self, image: Image.Image) -> UInt8[np.ndarray, "rows columns 3"]:
        if self.shortest_edge is not None:
            short = min(image.size)
            size = [
                self.shortest_edge if side == short else int(self.shortest_edge * side / short) for side in image.size
            ]
            if math.prod(size) > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise ValueError(
                    f"images: resizing {image.size[1]} x {image.size[0]} pixels makes {size[1]} x {size[0]}, more than "
                    f"{Image.MAX_IMAGE_PIXELS:,} in all. Cut the longer side first."
                )
            image = image.resize((size[0], size[1]), RESAMPLE[self.resample])
        if self.crop is not None:
            top, left = ((have - want) // 2 for have, want in zip(image.size[::-1], self.crop, strict=True))
            # Pillow fills what lies outside with black.
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        return np.asarray(image)
