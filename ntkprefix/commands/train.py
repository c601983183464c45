"""`ntkprefix train`: an adapter on a pretrained model, from images or texts to files."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ntkprefix import checks, hosts
from ntkprefix._options import default_told
from ntkprefix.adapters import Adapter, FeatureAdapter, HeadAdapter, count, save_adapter, spelt
from ntkprefix.commands.jobs import Job, Watch, job_of
from ntkprefix.hosts import agreed, by_first, entered_by_first, first, to_host
from ntkprefix.models.packages import check_reads
from ntkprefix.parallel import mesh_of, on_mesh, put, sizes_of
from ntkprefix.run_folder import differing, run_folder, same_run
from ntkprefix.runs import environment, progress, read_json, write_json
from ntkprefix.texts import TEMPLATES
from ntkprefix.train import Checkpoints, TrainConfig, TrainResult, train
from ntkprefix.train.config import MOST_STEPS

# Near the best of those tried in most tables of `experiments`, whose result files have the rest.
_STEP_SIZES = {"full": 3e-5, "lora": 3e-3, "measure": 3e-2}
_STEP_SIZE = 1e-1
# Of a state whose value takes whole steps, see `FeatureAdapter.steps`.
_OF_VALUES = 3e-2
_RESULTS = "results.json"
# Of checkpoints in a run's folder.
_CHECKPOINTS = "checkpoints"
# Settings that no number depends on.
_FREE = ("out", "checkpoint_every")


def usual_step_size(adapter: str) -> float:
    """A step size to start with, by the kind of adapter; of a stack, the smallest of its parts.

    Example:
        >>> from ntkprefix.commands.train import usual_step_size
        >>> usual_step_size("lora:rank=4+features:share=0.1")
        0.003
    """
    return min(map(_usual, adapter.split("+")))


def _usual(part: str) -> float:
    adapter = spelt(part)
    if isinstance(adapter, FeatureAdapter) and adapter.steps == "value":
        return _OF_VALUES
    return _STEP_SIZES.get(part.partition(":")[0], _STEP_SIZE)


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train.

    Attributes:
        model: "dinov2", "minilm" or "smollm2", whose weights packages carry; a model folder, a GGUF file, or the name
            of a model on the Hugging Face hub.
        adapter: what trains: head, full, lora, tokens, reparametrised, prompt, features or measure, with
            options (lora:rank=8,targets=query/value) and stacked (lora:rank=4+features).
        task: "images", or a text task: text, pair or prompt for rows of your own, or the name of a known set (sst2,
            boolq, svamp, ...), all of which docs/training.md has.
        data_dir: where the task's data are: images as a folder or .npz file, texts as a folder of JSON Lines files.
        out: run folder. Give that of a run that was stopped to go on with it.
        epochs: passes over the training rows.
        batch_size: rows per step.
        micro_batches: parts that a batch is computed in, one after another, to save memory.
        learning_rate: peak step size of the adapter; 0 for one that its kind does well with.
        head_learning_rate: step size of the head, before and beside the adapter.
        head_epochs: passes in which the head is trained alone, on features computed once: before the adapter, and all
            there are for the adapter head.
        warmup: share of the steps in which the step size rises.
        schedule: how the step size goes on from there.
        weight_decay: of the optimiser, AdamW.
        checkpoint_every: steps between checkpoints within a pass; 0 for as many as a twentieth of the time suffices
            for, and with --hosts for none. A run that was stopped goes on from the last.
        patience: epochs without a better loss on held-back training rows after which training stops; 0 for never.
        held_back: share of the training rows that is held back for that.
        train_rows: at most so many training rows, drawn at random; 0 for all.
        test_rows: at most so many test rows; 0 for all.
        size: side of images in pixels.
        length: tokens of a text; longer ones are cut.
        dtype: of numbers in the model's matrix products; what trains is float32 always.
        remat: compute blocks again for the gradient, to save memory.
        seed: of the random start, the order of the data and what is held back.
        mesh: how the devices share the work, such as data=4,tensor=2; docs/parallel.md has the names.
        hosts: of one of several processes that train together, each with the same settings but for this: auto under
            Slurm, Open MPI, Kubernetes or on a Cloud TPU, else where the first listens, this one's number and their
            count, such as 10.0.0.1:1234,0/2.

    Raises:
        ValueError: a setting out of range.
    """

    model: str = "dinov2"
    adapter: str = "features:share=0.3,steps=state"
    task: str = "images"
    data_dir: Annotated[Path | None, default_told("scikit-learn's handwritten digits")] = None
    out: Annotated[Path | None, default_told("runs/train-<time>")] = None
    epochs: int = 3
    batch_size: int = 16
    micro_batches: int = 1
    learning_rate: float = 0.0
    head_learning_rate: float = 1e-3
    head_epochs: int = 10
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 1e-4
    checkpoint_every: int = 0
    patience: int = 0
    held_back: float = 0.1
    train_rows: int = 0
    test_rows: int = 0
    size: int = 70
    length: int = 128
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    remat: bool = False
    seed: int = 0
    mesh: Annotated[str, default_told("one device")] = ""
    hosts: Annotated[str, default_told("one process")] = ""

    def __post_init__(self):
        try:
            spelt(self.adapter)
        except TypeError as error:
            raise ValueError(str(error)) from error
        if self.learning_rate == 0:
            object.__setattr__(self, "learning_rate", usual_step_size(self.adapter))
        checks.at_least(0, "train", train_rows=self.train_rows, test_rows=self.test_rows)
        checks.at_least(0, "train", checkpoint_every=self.checkpoint_every)
        checks.short_seed("train", self.seed)
        checks.finite("train", learning_rate=self.learning_rate, head_learning_rate=self.head_learning_rate)
        checks.at_least(1, "train", head_epochs=self.head_epochs, size=self.size, length=self.length)
        checks.at_most(MOST_STEPS, "train", epochs=self.epochs, head_epochs=self.head_epochs)
        if not 0 < self.held_back < 1:
            raise ValueError(f"train: expected held_back between 0 and 1, got {self.held_back}.")
        self._check_task()
        if self.mesh:
            sizes_of(self.mesh)
        hosts.check(self.hosts, self.mesh)
        self.training()

    def _check_task(self) -> None:
        checks.one_of("train", "task", self.task, ("images", *TEMPLATES))
        check_reads(self.model, "images" if self.task == "images" else "texts")
        if self.task != "images" and self.data_dir is None:
            raise ValueError(f"train: expected --data-dir, the folder of the rows of {self.task}, got none.")

    def training(self) -> TrainConfig:
        """How the adapter is trained."""
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        return TrainConfig(**{name: value for name, value in vars(self).items() if name in names})


def main(config: Config) -> int:
    """Train, test, and write the run folder: adapter, head, metrics, checkpoints and results.

    Where the folder has the results of this run already, nothing is left to do.

    Returns:
        0.

    Raises:
        OSError: data, weights or the run folder cannot be read or written, or another run has it.
        ValueError: data or weights are not what they should be, or the run folder is another run's.
        FloatingPointError: training diverged.
    """
    if config.hosts and config.out is None:
        raise ValueError("train: expected --out beside --hosts, got none: a folder that all processes see.")
    hosts.join(config.hosts)
    hosts.same(_plain(config))
    console = Console(quiet=not first())
    out = config.out or Path("runs") / f"train-{datetime.now():%Y%m%d-%H%M%S}"
    if config.data_dir is not None and config.data_dir.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"train: expected --out outside of the data in {config.data_dir}, got {out}.")
    adapter = spelt(config.adapter)
    mesh = mesh_of(config.mesh) if config.mesh else None
    with entered_by_first(lambda: run_folder(out)), on_mesh(mesh):
        if agreed(lambda: finished(config, out)):
            console.print(Text(f"Finished before: look at {out / _RESULTS}."), soft_wrap=True)
            return 0
        with console.status("Loading model and data"):
            job = job_of(config, adapter, mesh)
        console.print(Text(f"{config.model}, {config.adapter}, {job.about}"))
        with progress(disable=not first()) as bar:
            results = run(config, adapter, job, out, shown(bar, ""), mesh=mesh)
    table = Table("", "")
    for name, value in {**results["test"], **results["sizes"], **results["times"]}.items():
        if name != "right":  # of every row
            table.add_row(name.replace("_", " "), _shown(value))
    console.print(table)
    console.print(Text(f"Look at {out / _RESULTS}; the adapter is in {out / 'adapter'}."), soft_wrap=True)
    return 0


def run(
    config: Config,
    adapter: Adapter,
    job: Job,
    out: Path,
    watch: Watch,
    *,
    resumable: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Train one job and write what came of it.

    Args:
        config: how to train.
        adapter: what trains, as the configuration spells it.
        job: model and data.
        out: run folder.
        watch: told how far the work is.
        resumable: keep settings and checkpoints, and go on from those that are there.
        mesh: on which the job's weights lie.

    Returns:
        What is written to `results.json`. Its `seconds` are all that training took, features, head and compilation
        included, since the run was last started; its `seconds_per_step` are of steps alone, all of them.

    Raises:
        OSError: the run folder cannot be written.
        ValueError: `head` on a language model, or the folder of a run with other settings, data or weights.
        FloatingPointError: training diverged.
    """
    settings = _plain(config)
    by_first(lambda: out.mkdir(parents=True, exist_ok=True))
    if resumable:
        decisive = {name: value for name, value in settings.items() if name not in _FREE}
        decisive |= job.fingerprints()
        hosts.same(decisive)
        by_first(lambda: same_run(out, decisive, goes_on_from=_CHECKPOINTS))
    began = time.perf_counter()
    if isinstance(adapter, HeadAdapter):
        result = _probe(config, job, out, watch)
    else:
        checkpoints = Checkpoints(out / _CHECKPOINTS, config.checkpoint_every) if resumable else None
        result = _train(config, job, out, watch, checkpoints, mesh)
    seconds, params = time.perf_counter() - began, result.params
    found = job.test(params, watch)
    results = {
        "config": settings,
        "environment": environment(),
        "data": job.about,
        "test": found,
        "sizes": {
            "adapter_parameters": count(params["adapter"]),
            "head_parameters": count(params) - count(params["adapter"]),
            "break_even_tokens": round(count(params["adapter"]) / job.numbers_per_token, 1),
        },
        "times": {
            "steps": len(result.losses),
            "seconds": round(seconds, 2),
            "seconds_per_step": round(result.seconds / max(len(result.losses) - 1, 1), 4),
        },
        "validation": result.validation.tolist(),
    }
    params = to_host(params)

    def write() -> None:
        save_adapter(out / "adapter", adapter, params["adapter"])
        job.save(params, out)
        write_json(out / _RESULTS, results)

    by_first(write)
    return results


def finished(config: Config, out: Path) -> bool:
    """Whether a run's results, which it writes last, are in its folder.

    Args:
        config: of the run.
        out: run folder, which need not be there.

    Raises:
        OSError: the results cannot be read.
        ValueError: they are those of another run, or none; the message names the file and what differs.
    """
    path = out / _RESULTS
    if not path.exists():
        return False
    found, wanted = read_json(path).get("config"), _plain(config)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected results of ntkprefix train, got something else. Choose another folder.")
    names = [name for name in wanted if name not in _FREE]
    others = differing(*({name: settings.get(name) for name in names} for settings in (found, wanted)))
    if others:
        raise ValueError(
            f"{path}: expected results of this run, but {others}. Choose another folder, or delete this one to start "
            "afresh."
        )
    return True


def _plain(config: Config) -> dict[str, Any]:
    """Settings as JSON has them."""
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in vars(config).items()}
    del plain["hosts"]  # each process has its own
    return plain


def shown(bar: Progress, title: str) -> Watch:
    """What shows the stages of a run as one line of a progress bar."""
    task = bar.add_task(title, total=None)
    return lambda stage, done, total: bar.update(
        task, completed=done, total=total, description=f"{title} {stage:<14}".strip()
    )


def _probe(config: Config, job: Job, out: Path, watch: Watch) -> TrainResult:
    """The head alone, on features computed once."""
    params, probing = job.start(config, watch, _metrics(out))
    assert probing is not None
    return probing._replace(params=params)


def _train(
    config: Config, job: Job, out: Path, watch: Watch, checkpoints: Checkpoints | None, mesh: Mesh | None
) -> TrainResult:
    """The adapter, behind a head that is trained alone."""
    training = config.training()
    # Where there is a checkpoint, its numbers take the place of the start's.
    kept = checkpoints is not None and agreed(lambda: checkpoints.newest() is not None)
    start = job.start(config, watch, probing=not kept).params
    if mesh is not None:
        start = {**start, "adapter": put(start["adapter"], job.specs(start["adapter"], mesh), mesh)}
    steps = training.steps(len(job.train[0]))
    return train(
        job.loss,
        start,
        job.frozen,
        job.train,
        training,
        factors=job.factors(start, config.head_learning_rate / config.learning_rate),
        project=job.project,
        validate=job.validate if config.patience else None,
        checkpoints=checkpoints,
        metrics=_metrics(out),
        on_step=lambda step, loss: watch(f"loss {loss:8.4f}", step, steps),
        mesh=mesh,
    )


def _metrics(out: Path) -> Path | None:
    """Where steps are told, by one process for all."""
    return out / "metrics.jsonl" if first() else None


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
