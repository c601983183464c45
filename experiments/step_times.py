"""What a training step of every method takes: `python -m experiments.step_times FIELD --data-root FOLDER`.

The tables train populations, for hours, on a machine that does other things too. Here all methods take single steps in
turns, in one process, and each is compared with NTK-Attention in every round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.steps import training_step
from benchmarks.timing import in_rounds
from experiments import commands
from experiments.fields import FIELDS, OURS, PROBING
from experiments.tables import FieldName, config_of, path_of
from ntkprefix.adapters import spelt
from ntkprefix.commands.jobs import Job, job_of
from ntkprefix.commands.train import Config
from ntkprefix.runs import environment, write_json


@dataclass(frozen=True, kw_only=True)
class StepTimesConfig:
    """Which methods' steps.

    Attributes:
        field: as for `experiments.tables`; the steps are those of its first task.
        data_root: folder that has one folder for each data set; needed for all but the digits.
        rounds: how often each method has its turn.
    """

    field: Annotated[FieldName, tyro.conf.Positional]
    data_root: Path | None = None
    rounds: int = 9


def main(config: StepTimesConfig) -> dict[str, Any]:
    """Time every method that trains an adapter and write `experiments/results/tables/<field>/step_times.json`.

    Returns:
        What is written: for every method its median seconds, and quartiles of its time over that of NTK-Attention.
    """
    field = FIELDS[config.field]
    name, task = next(iter(field.tasks.items()))
    methods = [method for method in field.methods if field.methods[method] != PROBING]
    runs = []
    for method in methods:
        settings = config_of(task, field.adapter(method), config.data_root)
        runs.append(_step_of(settings, job_of(settings, spelt(settings.adapter))))
    seconds = in_rounds(runs, config.rounds)
    ours = seconds[methods.index(OURS)]
    results = {
        "environment": environment(),
        "config": {**asdict(config), "data_root": None},
        "task": name,
        "rows": [
            {
                "method": method,
                "seconds": float(f"{np.median(times):.4g}"),
                "relative_time": [round(float(q), 3) for q in np.quantile(times / ours, (0.25, 0.5, 0.75))],
            }
            for method, times in zip(methods, seconds, strict=True)
        ],
    }
    write_json(path_of(config.field, "step_times"), results)
    return results


def _step_of(config: Config, job: Job) -> Callable[[], Any]:
    """What takes one training step, and waits for it."""
    params = job.start(config, lambda *_: None).params
    factors = job.factors(params, config.head_learning_rate / config.learning_rate)
    batch = [array[: config.batch_size] for array in job.train]
    return training_step(job, params, batch, config.training(), factors)


def command(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    return commands.run("step_times", StepTimesConfig, main, arguments)


if __name__ == "__main__":
    sys.exit(command())
