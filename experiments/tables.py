"""The paper's tables on real models: `python -m experiments.tables FIELD --data-root FOLDER`.

Every method gets the same budget: three step sizes around a middle of its own (what digits chose, for the methods in
`experiments/results/tuning.json`), of which the smallest loss on a fifth of the training rows decides; then the same
steps on all training rows with the same seeds. A population of step sizes, or of seeds, trains in one program. What is
measured is kept piece by piece, so that a table which was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments import RESULTS
from ntkprefix.adapters import count, spelt
from ntkprefix.cli import guard
from ntkprefix.commands.jobs import Job, job_of
from ntkprefix.commands.train import Config
from ntkprefix.runs import environment, progress, write_json
from ntkprefix.train import step_memory, train_population
from theory.pieces import Pieces

_PROBING = "head"


@dataclass(frozen=True)
class Method:
    """An adapter, as `spelt` reads it, and the middle of the step sizes that it tries."""

    adapter: str
    step_size: float


# Each at its usual size, and those whose size can be chosen also at that of a state of Z and k.
METHODS: dict[str, Method] = {
    "head only": Method(_PROBING, 3e-3),
    "full fine-tuning": Method("full", 3e-5),
    "LoRA, r = 8": Method("lora:rank=8", 3e-3),
    "LoRA, r = 16": Method("lora:rank=16,alpha=32", 3e-3),
    "P-Tuning v2, 10 tokens": Method("tokens:length=10,start=mean", 1e-1),
    "P-Tuning v2, 33 tokens": Method("tokens:length=33,start=mean", 1e-1),
    "NTK-Attention": Method("features", 3e-2),
    "NTK-Attention, share 0.3": Method("features:share=0.3", 1e-1),
    "NTK-Attention, rank 8": Method("features:share=0.3,rank=8", 1e-1),
    "additive memory": Method("features:normalised=False", 3e-2),
    "measure, 8 clouds": Method("measure:components=8,rank=2", 3e-2),
}


@dataclass(frozen=True)
class Task:
    """A model and a data set's folder, with what differs from the defaults of `ntkprefix train`."""

    model: str
    folder: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


_LANGUAGE = ("sst2", "agnews", "rte", "boolq", "cb", "copa", "wic", "wsc", "multirc")
_IMAGES = {"task": "images", "size": 70, "train_rows": 1000, "test_rows": 800}
_TEXTS = {"length": 64, "train_rows": 1000, "test_rows": 800}
# By the likelihood of the class's word, or of the answer. A step of SmolLM2 on two cores takes seconds.
_ANSWERS = {"length": 128, "train_rows": 512, "test_rows": 400, "epochs": 1}
FIELDS: dict[str, dict[str, Task]] = {
    "vision": {name: Task("dinov2", name, _IMAGES) for name in ("clothing", "cifar100", "tiny_imagenet20")},
    "language": {name: Task("minilm", name, {"task": name, **_TEXTS}) for name in _LANGUAGE},
    "language-smollm2": {name: Task("smollm2", name, {"task": name, **_ANSWERS}) for name in _LANGUAGE},
    "mathematics": {
        name: Task("smollm2", name, {"task": name, **_ANSWERS, "length": 192, "test_rows": 200})
        for name in ("svamp", "gsm8k", "mawps", "aqua")
    },
}


@dataclass(frozen=True, kw_only=True)
class TablesConfig:
    """Which part of the tables.

    Attributes:
        field: vision, language (MiniLM and a head), language-smollm2 (the same sets, by the likelihood of the class's
            word) or mathematics.
        data_root: folder that has one folder for each data set, by its name.
        tasks: of the field; all if none is named.
        methods: names among `METHODS`; all if none is named.
        seeds: of the final runs.
        train_rows: of every task, in place of its own number; 0 for that.
        test_rows: likewise.
        epochs: likewise.
        out: folder of what has been measured; start again with the same one to go on.
    """

    field: Annotated[Literal["vision", "language", "language-smollm2", "mathematics"], tyro.conf.Positional]
    data_root: Path
    tasks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    train_rows: int = 0
    test_rows: int = 0
    epochs: int = 0
    out: Path = Path("runs/tables")


def main(config: TablesConfig) -> dict[str, Any]:
    """Measure what is not measured yet and write `experiments/results/tables_<field>.json`.

    Returns:
        What is written: for every task and method what was tried, what was chosen, and what each seed found.

    Raises:
        ValueError: an unknown task or method.
    """
    tasks, methods = _named(config.tasks, FIELDS[config.field], "task"), _named(config.methods, METHODS, "method")
    changes = {name: getattr(config, name) for name in ("train_rows", "test_rows", "epochs") if getattr(config, name)}
    tasks = {name: dataclasses.replace(task, options=task.options | changes) for name, task in tasks.items()}
    pieces, rows = Pieces(config.out, str(environment()["commit"])), []
    with progress() as bar:
        total = bar.add_task(config.field, total=len(tasks) * len(methods))
        for name, task in tasks.items():
            for method_name, method in methods.items():
                bar.update(total, description=f"{name}, {method_name}")
                tried = pieces.get("tune", _settings(task, method), partial(_tune, task, method, config.data_root, bar))
                chosen = tried["step_sizes"][int(np.argmin([_finite(loss) for loss in tried["losses"]]))]
                found = pieces.get(
                    "seeds",
                    {**_settings(task, method), "chosen": chosen, "seeds": list(config.seeds)},
                    partial(_final, task, method, chosen, config, bar),
                )
                rows.append({"task": name, "method": method_name, "tried": tried, "step_size": chosen, **found})
                bar.advance(total)
    results = {"environment": environment(), "seeds": list(config.seeds), "rows": rows}
    write_json(RESULTS / f"tables_{config.field.replace('-', '_')}.json", results)
    return results


class _Trained(NamedTuple):
    """Members of a population; None for one that diverged."""

    members: list[Any]
    job: Job
    steps: int
    seconds_per_step: float
    step_memory: int


def _tune(task: Task, method: Method, root: Path, bar: Any) -> dict[str, Any]:
    """Loss on held-back training rows for every step size; None where training diverged."""
    sizes = [method.step_size * factor for factor in (1 / 3, 1, 3)]
    options = _options(task, method, root, patience=1, held_back=0.2)
    trained = _train(options, [_step_size(method, size) for size in sizes], bar)
    losses = [None if member is None else round(trained.job.validate(member), 5) for member in trained.members]
    return {"step_sizes": sizes, "losses": losses}


def _final(task: Task, method: Method, step_size: float, config: TablesConfig, bar: Any) -> dict[str, Any]:
    """What every seed finds on the test rows."""
    options = _options(task, method, config.data_root, **_step_size(method, step_size))
    trained = _train(options, [{"seed": seed} for seed in config.seeds], bar)
    tests = [
        None if member is None else {name: round(value, 5) for name, value in trained.job.test(member, bar).items()}
        for member in trained.members
    ]
    sizes = next(member for member in trained.members if member is not None)
    adapter = count(sizes["adapter"])
    return {
        "data": trained.job.about,
        "tests": tests,
        "adapter_parameters": adapter,
        "head_parameters": count(sizes) - adapter,
        "break_even_tokens": round(adapter / trained.job.numbers_per_token, 1),
        "bytes": 4 * adapter,
        "steps": trained.steps,
        "seconds_per_step": trained.seconds_per_step,
        "step_megabytes": round(trained.step_memory / 1e6, 1),
    }


def _train(options: dict[str, Any], changes: Sequence[dict[str, Any]], bar: Any) -> _Trained:
    """One population, whose members differ as `changes` say."""
    configs = [Config(**{**options, **change}) for change in changes]
    job = job_of(configs[0], spelt(configs[0].adapter))
    starts = [job.start(config, bar) for config in configs]
    if options["adapter"] == _PROBING:
        steps = configs[0].head_epochs * (len(job.train[0]) // configs[0].batch_size)
        return _Trained(starts, job, steps, 0.0, 0)
    training = [dataclasses.replace(config.training(), patience=0) for config in configs]
    task = bar.add_task("training", total=training[0].steps(len(job.train[0])))
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
        on_step=lambda step, losses: bar.update(
            task, completed=step, description=" ".join(f"{loss:.3f}" for loss in losses)
        ),
    )
    bar.remove_task(task)
    members = [None if lost else population.member(index) for index, lost in enumerate(population.diverged)]
    steps = population.losses.shape[1]
    seconds = population.seconds / max(steps - 1, 1) / len(members)
    memory = step_memory(job.loss, starts[0], job.frozen, job.train, training[0])
    return _Trained(members, job, steps, round(seconds, 4), memory)


def _options(task: Task, method: Method, root: Path, **more: Any) -> dict[str, Any]:
    options = {"model": task.model, "adapter": method.adapter, "data_dir": root / task.folder, **task.options, **more}
    # Linear probing computes features once, so it may take as many passes as it likes.
    return options | {"head_epochs": 40} if method.adapter == _PROBING else options


def _step_size(method: Method, size: float) -> dict[str, float]:
    return {"head_learning_rate" if method.adapter == _PROBING else "learning_rate": size}


def _settings(task: Task, method: Method) -> dict[str, Any]:
    return {"task": dataclasses.asdict(task), "method": dataclasses.asdict(method)}


def _named(names: Sequence[str], known: dict[str, Any], what: str) -> dict[str, Any]:
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(f"tables: unknown {what} {sorted(unknown)[0]!r}; expected some of {', '.join(known)}.")
    return {name: known[name] for name in names or known}


def _finite(loss: float | None) -> float:
    return float("inf") if loss is None else loss


def command(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""

    def run() -> int:
        main(tyro.cli(TablesConfig, args=arguments, prog="python -m experiments.tables"))
        return 0

    return guard("tables", run)


if __name__ == "__main__":
    sys.exit(command())
