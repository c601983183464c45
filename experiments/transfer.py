"""What was chosen on digits, on other images: `python -m experiments.transfer FOLDER_OR_NPZ ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import RESULTS, summary, vision
from ntkprefix.cli import guard
from ntkprefix.images import load_images
from ntkprefix.models import load_dinov2
from ntkprefix.runs import write_json


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What to run.

    Attributes:
        sets: image sets, each a folder or a `.npz` file (see `ntkprefix.images.load_images`).
        seeds: as in `VisionConfig`.
        out: the result file.
    """

    sets: Annotated[tuple[Path, ...], tyro.conf.Positional]
    seeds: tuple[int, ...] = (0,)
    out: Path = RESULTS / "vision_transfer.json"


def main(config: TransferConfig) -> dict[str, Any]:
    """Every method on every set, from the start and with the step size that digits chose for it.

    Returns:
        For every set, by name, what `vision.compare` returns and a summary.
    """
    model, results = load_dinov2(), {}
    for path in config.sets:
        settings = vision.VisionConfig(data=path.name, seeds=config.seeds)
        # With its folder named, a folder called "digits" is not mistaken for the data set of that name.
        data = replace(load_images(os.path.join(os.curdir, path), size=settings.size), name=path.stem)
        compared = vision.compare(settings, data, model)
        results[path.stem] = {**compared, "summary": summary.by_method(compared)}
    write_json(config.out, results)
    return results


def command(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""

    def run() -> int:
        main(tyro.cli(TransferConfig, args=arguments, prog="python -m experiments.transfer"))
        return 0

    return guard("transfer", run)


if __name__ == "__main__":
    sys.exit(command())
