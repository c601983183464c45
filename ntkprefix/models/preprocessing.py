"""How a checkpoint's images are prepared: `preprocessor_config.json`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ntkprefix.images.preprocess import RESAMPLE, Preprocess
from ntkprefix.models.families.settings import Settings, read_settings
from ntkprefix.models.hub import locate_texts

_FILE = "preprocessor_config.json"
_KINDS = ("BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil")


def load_preprocess(place: str | Path | None = None, *, revision: str | None = None) -> Preprocess:
    """How a model's images are prepared, out of the `preprocessor_config.json` beside it.

    Args:
        place: what `load_dinov2` takes, or that file itself.
        revision: of a hub's model: a branch, a tag or a commit.

    Returns:
        The preprocessing; DINOv2's own where there is no such file.

    Raises:
        FileNotFoundError: nothing is there, or a hub's model cannot be fetched or has no such file.
        ImportError: a hub's name is given, and the package huggingface_hub is not installed.
        ValueError: the file is damaged, or asks for what `Preprocess` does not do; the message names it.

    Example:
        >>> from ntkprefix.models import load_preprocess
        >>> load_preprocess().shortest_edge
        256
    """
    if place is None:
        return Preprocess()
    path = locate_texts(place, (_FILE,), revision=revision)
    file = path / _FILE if path.is_dir() else path
    if not file.is_file() or file.suffix != ".json":
        return Preprocess()
    return read_settings(file, _read)


def _read(settings: Settings) -> Preprocess:
    settings.choice("image_processor_type", known=dict.fromkeys(_KINDS), default=_KINDS[0])
    settings.fixed(do_convert_rgb=True, do_pad=False)
    edge, crop, mean, std = None, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if settings.flag("do_resize", default=True):
        size = _sides(settings, "size", "shortest_edge")
        size.fixed(longest_edge=None, height=None, width=None, max_height=None, max_width=None)
        edge = size.count("shortest_edge")
    if settings.flag("do_center_crop", default=True):
        sides = _sides(settings, "crop_size", "height", "width")
        crop = (sides.count("height"), sides.count("width"))
    if settings.flag("do_normalize", default=True):
        mean, std = _colours(settings, "image_mean"), _colours(settings, "image_std")
    rescaled = settings.flag("do_rescale", default=True)
    return Preprocess(
        shortest_edge=edge,
        crop=crop,
        resample=_resample(settings),
        scale=settings.number("rescale_factor", default=1 / 255) if rescaled else 1.0,
        mean=mean,
        std=std,
    )


def _sides(settings: Settings, name: str, *keys: str) -> Settings:
    """Sizes as an object of keys, or as older files have them, one number for all."""
    value = settings.content.get(name)
    return Settings(value if isinstance(value, dict) else dict.fromkeys(keys, value), settings.path)


def _colours(settings: Settings, name: str) -> tuple[float, float, float]:
    value = settings.content.get(name)
    if not isinstance(value, list) or len(value) != 3 or not all(type(part) in (int, float) for part in value):
        raise ValueError(f"{settings.path}: expected {name} to be a list of three numbers, got {value!r}.")
    red, green, blue = value
    return red, green, blue


def _resample(settings: Settings):
    value = settings.content.get("resample", Image.Resampling.BICUBIC)
    names = {int(number): name for name, number in RESAMPLE.items()}
    if type(value) not in (int, Image.Resampling) or int(value) not in names:
        raise ValueError(f"{settings.path}: expected resample to be a number from 0 to 4, got {value!r}.")
    return names[int(value)]
