"""Training steps and generation of real models, beside PyTorch's with PEFT: `python -m benchmarks.models`.

Cases of one workload run in turns. `--torch PYTHON` names the interpreter of an environment with PyTorch, transformers
and PEFT; without it their cases are left out. `make bench` makes that environment. PEFT's prefix tuning takes no vision
models, so there LoRA alone is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.peers import MODELS, Peer, started
from benchmarks.steps import training_step
from benchmarks.timing import against, finished, in_rounds, ratio
from ntkprefix.adapters import spelt
from ntkprefix.classify import Classifier
from ntkprefix.language import LanguageTask
from ntkprefix.models import generate, load_dinov2, load_text_model
from ntkprefix.runs import environment, write_json
from ntkprefix.texts import Answers

STATE = "a state"
_CLASSES = 10


class Workload(NamedTuple):
    """What is timed, and with what.

    Attributes:
        what: one step of AdamW, or generation.
        model: "smollm2" or "dinov2".
        batch: rows.
        length: tokens of a row, all of which are learnt, or pixels of an image's side.
        new: tokens that are generated.
        adapters: ours, by name, as `ntkprefix.adapters.spelt` reads them; None for no adapter.
        peers: PEFT's, by name: its kind, and rank or tokens.
    """

    what: Literal["training", "generation"]
    model: str
    batch: int
    length: int
    new: int
    adapters: dict[str, str | None]
    peers: dict[str, tuple[str, int]]


_LORA, _STATE = "LoRA, r = 8", "features:share=0.1"
WORKLOADS = (
    Workload("training", "dinov2", 32, 98, 0, {STATE: _STATE, _LORA: "lora"}, {f"PEFT, {_LORA}": ("lora", 8)}),
    Workload(
        "training",
        "smollm2",
        8,
        64,
        0,
        {STATE: _STATE, _LORA: "lora", **{f"{M:,} tokens": f"tokens:length={M}" for M in (10, 100, 1000)}},
        {f"PEFT, {_LORA}": ("lora", 8), **{f"PEFT, {M:,} tokens": ("tokens", M) for M in (10, 100, 1000)}},
    ),
    Workload(
        "generation",
        "smollm2",
        1,
        32,
        64,
        {STATE: _STATE, "no prefix": None, **{f"{M:,} tokens": f"tokens:length={M}" for M in (10, 100, 1000)}},
        {
            "transformers, no prefix": ("none", 0),
            **{f"PEFT, {M:,} tokens": ("tokens", M) for M in (10, 100, 1000)},
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """What is run.

    Attributes:
        workloads: which of `WORKLOADS`, by number.
        rounds: how often each case is timed.
        torch: interpreter of an environment with PyTorch, transformers and PEFT.
    """

    workloads: tuple[int, ...] = tuple(range(len(WORKLOADS)))
    rounds: int = 5
    torch: Path | None = None


def main(config: ModelsConfig) -> dict[str, Any]:
    """Time and print every case.

    Returns:
        What is written to `benchmarks/results/models.json`.
    """
    found, version = [], None
    for workload in (WORKLOADS[number] for number in config.workloads):
        with started(config.torch, MODELS) as torch:
            version = None if torch is None else torch.version
            runs = {name: ours(workload, adapter) for name, adapter in workload.adapters.items()}
            if torch is not None:
                runs |= {name: _theirs(torch, workload, *peer) for name, peer in workload.peers.items()}
            seconds = in_rounds(list(runs.values()), config.rounds)
        rows = [{"case": name, **against(times, seconds[0])} for name, times in zip(runs, seconds, strict=True)]
        found.append(
            {**{name: getattr(workload, name) for name in ("what", "model", "batch", "length", "new")}, "rows": rows}
        )
        Console().print(_table(found[-1]))
    results = {"config": asdict(config) | {"torch": version}, "environment": environment(), "workloads": found}
    write_json(RESULTS / "models.json", results)
    return results


def _theirs(torch: Peer, workload: Workload, adapter: str, size: int) -> Callable[[], None]:
    sizes = {"model": workload.model, "adapter": adapter, "size": size, "batch": workload.batch}
    sizes |= {"length": workload.length}
    sizes |= {"classes": _CLASSES} if workload.what == "training" else {"new": workload.new}
    return torch.case(what=workload.what, **sizes)


def ours(workload: Workload, adapter: str | None) -> Callable[[], None]:
    """What runs one case of this library's once."""
    random = np.random.default_rng(0)
    if workload.model == "dinov2":
        images = random.integers(256, size=(workload.batch, workload.length, workload.length, 3)).astype(np.uint8)
        labels = random.integers(_CLASSES, size=workload.batch).astype(np.int32)
        classifier = Classifier(load_dinov2(), spelt(adapter or "head"))
        params = classifier.init(jax.random.key(0), (images,), _CLASSES)
        return training_step(classifier, params, (images, labels))
    model = load_text_model("smollm2")
    tokens = random.integers(1000, size=(workload.batch, workload.length)).astype(np.int32)
    starts, lengths = (np.full(workload.batch, each, np.int32) for each in (1, workload.length))
    task = LanguageTask(model, spelt(adapter or "features"), longest=workload.length - 1)
    params = task.init(jax.random.key(0), Answers(tokens, starts, lengths))
    if workload.what == "training":
        return training_step(task, params, (tokens, starts, lengths))
    adaptation = None if adapter is None else spelt(adapter).adapt(params["adapter"])
    return finished(partial(generate, adapter=adaptation), model, jnp.asarray(tokens), workload.new)


def _table(workload: dict[str, Any]) -> Table:
    size = f"{workload['length']} pixels" if workload["model"] == "dinov2" else f"{workload['length']} tokens"
    more = f", {workload['new']} new" if workload["new"] else ""
    title = f"{workload['what']} of {workload['model']}, {workload['batch']} rows of {size}{more}"
    table = Table(title=title, title_justify="left")
    for column in ("", "ms", f"time / {STATE} (quartiles)"):
        table.add_column(column, justify="right" if column else "left")
    for row in workload["rows"]:
        table.add_row(row["case"], f"{row['milliseconds']:g}", ratio(row["relative_time"]))
    return table


if __name__ == "__main__":
    main(tyro.cli(ModelsConfig))
