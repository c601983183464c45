"""Choose every method's start and step size by one rule: the smallest loss on training images held back.

Every method tries the same list of step sizes with each of its starts, of which P-Tuning v2 has two. The test images
play no part in it. The loss tells apart what accuracy does not: of 200 held-back digits several settings have all but
three or four right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.vision import METHODS, VisionConfig, fit, head_start, shuffled, subset, training
from ntkprefix.images import ImageData, load_images, stratified
from ntkprefix.models import load_dinov2
from ntkprefix.runs import environment, progress
from ntkprefix.train import TrainConfig
from theory.pieces import Pieces


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is tried.

    Attributes:
        step_sizes: for every method and start.
        held_back: training images that are not trained on but tested on.
        vision: the runs.
        out: run folder; start again with the same one, at the same commit, to go on with a run that was stopped.
    """

    step_sizes: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    held_back: int = 200
    vision: VisionConfig = field(default_factory=VisionConfig)
    out: Path = Path("runs/tuning")


def main(config: TuningConfig) -> dict[str, Any]:
    """Train each method from each of its starts with each step size.

    Returns:
        Every accuracy and loss on the held-back images, and what was chosen for each method.
    """
    vision, where = config.vision, environment()
    data = held_back(subset(load_images(vision.data, size=vision.size), vision), config.held_back)
    model, pieces = load_dinov2(), Pieces(config.out, str(where["commit"]))
    tries = [
        (method, start, step_size)
        for method, starts in METHODS.items()
        for start in starts
        for step_size in config.step_sizes
    ]
    runs = []
    with progress() as bar:
        task = bar.add_task("tuning", total=len(tries))
        for method, start, step_size in tries:
            bar.update(task, description=f"{method}, {start}, {step_size:g}")
            this = {"method": method, "start": start, "step_size": step_size}
            settings = {**this, "held_back": config.held_back, "vision": asdict(vision)}
            schedule = training(vision, method, step_size, seed=0)
            measure = partial(_try, model, METHODS[method][start], data, schedule, head_start(vision, seed=0))
            runs.append({**this, **pieces.get("try", settings, measure)})
            bar.advance(task)
    return {
        "config": {"step_sizes": config.step_sizes, "held_back": config.held_back, "vision": asdict(vision)},
        "environment": environment(),
        "runs": runs,
        "chosen": {method: best([run for run in runs if run["method"] == method]) for method in METHODS},
    }


def held_back(data: ImageData, rows: int) -> ImageData:
    """The training images alone, `rows` of them, each class in proportion, as test images."""
    held = stratified(data.y_train, rows, seed=1)
    split = replace(
        data,
        x_train=data.x_train[~held],
        y_train=data.y_train[~held],
        x_test=data.x_train[held],
        y_test=data.y_train[held],
    )
    return shuffled(split, np.random.default_rng(1))


def best(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Start and step size of the run with the smallest loss on the held-back images, of those that finished.

    Example:
        >>> from experiments.tuning import best
        >>> good = {"start": "zero", "step_size": 0.1, "loss": 0.3}
        >>> best([good, {"start": "mean", "step_size": 0.2, "loss": None}])
        {'start': 'zero', 'step_size': 0.1}
    """
    winner = min((run for run in runs if run["loss"] is not None), key=lambda run: run["loss"])
    return {"start": winner["start"], "step_size": winner["step_size"]}


def _try(model: Any, adapter: Any, data: ImageData, config: TrainConfig, head: TrainConfig) -> dict[str, Any]:
    try:
        run = fit(model, adapter, data, config, head=head)
    except FloatingPointError as error:
        return {"loss": None, "accuracy": None, "failure": str(error)}
    return {"loss": run["held_out_loss"], "accuracy": run["accuracy"], "seconds": run["seconds"]}
