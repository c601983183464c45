"""The paper's tables on real models: `python -m experiments.tables FIELD --data-root FOLDER`.

Every method gets the same budget on every task: three step sizes, each three times the one before, and while the
smallest or the largest of them does best, up to two more beyond it. The loss on a fifth of the training rows decides,
in the mean over three seeds that are used for nothing else, and where several step sizes do equally well, the smallest
is taken; then every seed takes the same steps on all training rows. A population of step sizes and seeds trains in one
program. What is measured is kept piece by piece, so that a table which was stopped goes on, methods that are measured
anew take their places in the table that is there, and several processes may measure methods of one table at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments import RESULTS, commands
from experiments.fields import FIELDS, PROBING, Task
from ntkprefix.adapters import count, spelt
from ntkprefix.commands.jobs import Job, Watch, job_of
from ntkprefix.commands.train import Config, shown, usual_step_size
from ntkprefix.run_folder import one_at_a_time
from ntkprefix.runs import environment, progress, read_json, write_json
from ntkprefix.train import step_memory, train_population
from theory.pieces import Pieces

FieldName = Literal["vision", "language", "language-smollm2", "mathematics", "ablations"]
TABLES = RESULTS / "tables"
# A step size that does best at an end of those tried is followed so many times further.
_FURTHER = 2
# Losses that are no further apart, relatively, are equally good: where the loss is flat, noise would choose a step size
# at the edge of those that diverge with another seed.
_EQUALLY_GOOD = 0.01
# Seeds that choose step sizes, so that none of those that are told is a choice's.
_CHOOSING = (100, 101, 102)
# The middle of the step sizes that linear probing tries first.
_HEAD_STEP = 3e-3


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Which part of the tables.

    Attributes:
        field: vision, language (MiniLM and a head), language-smollm2 (the same sets, by the likelihood of the class's
            word), mathematics, or ablations.
        data_root: folder that has one folder for each data set, by its name; needed for all but the digits.
        tasks: of the field; all if none is named.
        methods: names among the field's; all if none is named.
        seeds: of the final runs.
        train_rows: of every task, in place of its own number; 0 for that.
        test_rows: likewise.
        epochs: likewise.
        out: folder of what has been measured; start again with the same one to go on.
    """

    field: Annotated[FieldName, tyro.conf.Positional]
    data_root: Path | None = None
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    train_rows: int = 0
    test_rows: int = 0
    epochs: int = 0
    out: Path = Path("runs/tables")


def main(config: TablesConfig) -> dict[str, dict[str, Any]]:
    """Measure what is not measured yet and write `experiments/results/tables/<field>/<task>.json`.

    Returns:
        What is written, by task: for every method what was tried, what was chosen, and what each seed found.

    Raises:
        ValueError: an unknown task or method, or no folder of data where one is needed.
    """
    field = FIELDS[config.field]
    tasks, methods = _named(config.tasks, field.tasks, "task"), _named(config.methods, field.methods, "method")
    for task in tasks.values():
        _folder(task, config.data_root)
    changes = {name: getattr(config, name) for name in ("train_rows", "test_rows", "epochs") if getattr(config, name)}
    where, results = environment(), {}
    pieces = Pieces(config.out, str(where["commit"]))
    with progress() as bar:
        total = bar.add_task(config.field, total=len(tasks) * len(methods))
        watch = shown(bar, "")
        for name, task in tasks.items():
            task = dataclasses.replace(task, options=task.options | changes)
            about = {
                "field": config.field,
                "task": name,
                "model": task.model,
                "options": task.options,
                "seeds": list(config.seeds),
            }
            for method in methods:
                bar.update(total, description=f"{name}, {method}")
                adapter = field.adapter(method)
                found = _measured(task, adapter, pieces, config, watch)
                row = {"method": method, "adapter": adapter, **made_by(where), **found}
                path = path_of(config.field, name)
                with one_at_a_time(path.parent):
                    rows = _with_others(row, path, about, list(field.methods))
                    results[name] = {"environment": where, **about, "rows": rows}
                    write_json(path, results[name])
                bar.advance(total)
    return results


def _with_others(row: dict[str, Any], path: Path, about: dict[str, Any], order: list[str]) -> list[dict[str, Any]]:
    """A table with a row anew: the other methods' are those that a file has of the same task, with what made them."""
    there = read_json(path) if path.exists() else {}
    if {name: there.get(name) for name in about} != json.loads(json.dumps(about)):
        return [row]
    others = [
        {**made_by(there["environment"]), **other}
        for other in there["rows"]
        if other["method"] in order and other["method"] != row["method"] and _chosen_alike(other, row)
    ]
    return sorted([row, *others], key=lambda each: order.index(each["method"]))


def _chosen_alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the same seeds chose the step sizes of two rows; the first tables had one, and do not say so."""
    return row["tried"].get("seeds") == other["tried"].get("seeds")


def made_by(where: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of each row, since rows of one table may be made on other days and machines."""
    on_cpu = where["platform"] == "cpu"
    machine = f"{where['processor']}, {where['cores']} cores" if on_cpu else where["device"]
    return {"commit": where["commit"], "machine": machine}


def path_of(field: str, task: str) -> Path:
    """The result file of one task."""
    return TABLES / field / f"{task}.json"


def _measured(task, adapter, pieces, config, watch) -> dict[str, Any]:
    """What was tried, what was chosen, and what each seed found: read, or measured."""
    settings = {"task": dataclasses.asdict(task), "adapter": adapter}
    middle = _HEAD_STEP if adapter == PROBING else usual_step_size(adapter)
    # One job for all that is measured, so that what it compiles serves them all; none where nothing is.
    job = cache(lambda: job_of(config_of(task, adapter, config.data_root), spelt(adapter)))
    tried = pieces.get(
        "tune",
        settings | {"middle": middle, "seeds": list(_CHOOSING)},
        lambda: _tune(job(), task, adapter, middle, config.data_root, watch),
    )
    chosen = tried["step_sizes"][_chosen(tried["losses"])]
    found = pieces.get(
        "seeds",
        settings | {"chosen": chosen, "seeds": list(config.seeds)},
        lambda: _final(job(), task, adapter, chosen, config, watch),
    )
    return {"tried": tried, "step_size": chosen, **found}


class _Trained(NamedTuple):
    """Members of a population; None for one that diverged."""

    members: list[Any]
    start: Any
    job: Job
    steps: int


def _tune(job: Job, task: Task, adapter: str, middle: float, root: Path | None, watch: Watch) -> dict[str, Any]:
    """Loss on held-back training rows for every step size, smallest first; None where a seed's training diverged."""
    starts: dict[Any, Any] = {}

    def losses_of(sizes: Sequence[float]) -> list[float | None]:
        configs = [
            config_of(task, adapter, root, size, seed=seed, patience=1, held_back=0.2)
            for size in sizes
            for seed in _CHOOSING
        ]
        trained = _train(job, configs, starts, watch)
        found = [math.inf if member is None else trained.job.validate(member) for member in trained.members]
        means = np.reshape(found, (len(sizes), len(_CHOOSING))).mean(axis=1)
        return [round(float(loss), 5) if np.isfinite(loss) else None for loss in means]

    sizes = [middle / 3, middle, middle * 3]
    losses = losses_of(sizes)
    for _ in range(_FURTHER):
        best = _best(losses)
        if best == 0:
            sizes = [sizes[0] / 3, *sizes]
            losses = [*losses_of(sizes[:1]), *losses]
        elif best == len(sizes) - 1:
            sizes = [*sizes, sizes[-1] * 3]
            losses = [*losses, *losses_of(sizes[-1:])]
    return {"step_sizes": sizes, "losses": losses, "seeds": list(_CHOOSING)}


def _best(losses: Sequence[float | None]) -> int:
    return int(np.argmin(_finite(losses)))


def _chosen(losses: Sequence[float | None]) -> int:
    """The smallest step size that is as good as the best."""
    found = _finite(losses)
    return int(np.argmax(found <= (1 + _EQUALLY_GOOD) * found.min()))


def _finite(losses: Sequence[float | None]) -> np.ndarray:
    return np.array([np.inf if loss is None else loss for loss in losses])


def _final(job: Job, task: Task, adapter: str, step_size: float, config: TablesConfig, watch: Watch) -> dict[str, Any]:
    """What every seed finds on the test rows."""
    configs = [config_of(task, adapter, config.data_root, step_size, seed=seed) for seed in config.seeds]
    trained = _train(job, configs, {}, watch)
    tests = [
        None if member is None else {name: _rounded(value) for name, value in trained.job.test(member, watch).items()}
        for member in trained.members
    ]
    trains, data = count(trained.start["adapter"]), trained.job.train
    memory = 0 if adapter == PROBING else step_memory(job.loss, trained.start, job.frozen, data, configs[0].training())
    return {
        "data": trained.job.about,
        "tests": tests,
        "adapter_parameters": trains,
        "head_parameters": count(trained.start) - trains,
        "break_even_tokens": round(trains / trained.job.numbers_per_token, 1),
        "bytes": 4 * trains,
        "steps": trained.steps,
        "step_megabytes": round(memory / 1e6, 1),
    }


def _train(job: Job, configs: Sequence[Config], made: dict[Any, Any], watch: Watch) -> _Trained:
    """One population, whose members differ in step size and seed, from starts that are made already or join those."""
    job = job.divided(configs[0])
    starts = []
    for config in configs:
        start = (config.seed, config.head_learning_rate)  # step sizes of the adapter share one
        if start not in made:
            made[start] = job.start(config, watch).params
        starts.append(made[start])
    if configs[0].adapter == PROBING:
        steps = configs[0].head_epochs * (len(job.train[0]) // configs[0].batch_size)
        return _Trained(starts, starts[0], job, steps)
    training = [dataclasses.replace(config.training(), patience=0) for config in configs]
    steps = training[0].steps(len(job.train[0]))
    population = train_population(
        job.loss,
        starts,
        job.frozen,
        job.train,
        training,
        factors=[
            job.factors(start, config.head_learning_rate / config.learning_rate)
            for config, start in zip(configs, starts, strict=True)
        ],
        project=job.project,
        on_step=lambda step, losses: watch(" ".join(f"{loss:.3f}" for loss in losses), step, steps),
    )
    members = [None if lost else population.member(index) for index, lost in enumerate(population.diverged)]
    return _Trained(members, starts[0], job, steps)


def config_of(task: Task, adapter: str, root: Path | None, step_size: float = 0.0, **more: Any) -> Config:
    """Of `ntkprefix train`: an adapter on a task, with its usual step size where none is given."""
    own = options_of(adapter, step_size)
    return Config(model=task.model, data_dir=_folder(task, root), **{**task.options, **own, **more})


def _folder(task: Task, root: Path | None) -> Path | None:
    if task.folder == "digits":
        return None
    if root is None:
        raise ValueError("tables: expected --data-root, the folder of the data sets, got none.")
    return root / task.folder


def options_of(adapter: str, step_size: float) -> dict[str, Any]:
    """Of `ntkprefix train`: an adapter with its step size, which of linear probing is the head's."""
    if adapter == PROBING:
        # Features are computed once, so it may take as many passes as it likes.
        return {"adapter": adapter, "head_learning_rate": step_size, "head_epochs": 40}
    return {"adapter": adapter, "learning_rate": step_size}


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


def _named(names: Sequence[str], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"tables: unknown {what} {sorted(unknown)[0]!r}; expected some of {', '.join(known)}.")
    return {name: known[name] for name in names or known}


def command(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    return commands.run("tables", TablesConfig, main, arguments)


if __name__ == "__main__":
    sys.exit(command())
