"""Choose every method's step size by the same rule: the best of one list, on a part of the training digits held back.

The test images play no part in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from experiments.vision import METHODS, VisionConfig, fit, training
from ntkprefix.images import ImageData, load_images
from ntkprefix.models import load_dinov2
from ntkprefix.runs import environment, progress


@dataclass(frozen=True, kw_only=True)
class StepSizesConfig:
    """The list, and how much of the training images is held back."""

    step_sizes: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2)
    held_back: int = 200
    vision: VisionConfig = field(default_factory=VisionConfig)


def main(config: StepSizesConfig) -> dict[str, Any]:
    """Train each method with each step size.

    Returns:
        Every accuracy and final loss on the held-back images, and the step size chosen for each method.
    """
    vision = config.vision
    data = held_back(load_images(vision.data, size=vision.size), config.held_back)
    model = load_dinov2()
    runs = []
    with progress() as bar:
        task = bar.add_task("step sizes", total=len(METHODS) * len(config.step_sizes))
        for method, adapter in METHODS.items():
            for step_size in config.step_sizes:
                bar.update(task, description=f"{method} at {step_size:g}")
                runs.append(
                    {"method": method, "step_size": step_size, **_try(model, adapter, data, vision, method, step_size)}
                )
                bar.advance(task)
    return {
        "config": {"step_sizes": config.step_sizes, "held_back": config.held_back, "vision": vision.__dict__},
        "environment": environment(),
        "runs": runs,
        "chosen": {method: _best(runs, method) for method in METHODS},
    }


def held_back(data: ImageData, rows: int) -> ImageData:
    """The training images alone, the last `rows` of them as test images, in the order in which they were written."""
    return replace(
        data,
        x_train=data.x_train[:-rows],
        y_train=data.y_train[:-rows],
        x_test=data.x_train[-rows:],
        y_test=data.y_train[-rows:],
    )


def _try(
    model: Any, adapter: Any, data: ImageData, vision: VisionConfig, method: str, step_size: float
) -> dict[str, Any]:
    try:
        run = fit(model, adapter, data, training(vision, method, step_size, seed=0))
    except FloatingPointError as error:
        return {"accuracy": None, "failure": str(error)}
    return {"accuracy": run["accuracy"], "final_loss": run["losses"][-1], "seconds": run["seconds"]}


def _best(runs: list[dict[str, Any]], method: str) -> float:
    tried = [run for run in runs if run["method"] == method and run["accuracy"] is not None]
    return max(tried, key=lambda run: (run["accuracy"], -run["final_loss"]))["step_size"]
