"""`ntkprefix sweep`: runs of `ntkprefix train` that know nothing of one another, one command a line."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal  # noqa: F401 - by checkers of types the settings of train are read here, too

from rich.console import Console
from rich.text import Text

from ntkprefix import checks
from ntkprefix._options import default_told
from ntkprefix.adapters.files import described
from ntkprefix.adapters.spell import spelt
from ntkprefix.commands import train
from ntkprefix.given_options import spelt_out
from ntkprefix.runs import write_bytes

# In which the runs of a sweep differ.
_OWN = ("adapter", "learning_rate", "seed", "out")
# Letters of an adapter in a folder's name.
_LONGEST = 80


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    """What to run: every adapter with every step size and every seed, under the options of `ntkprefix train`.

    Attributes:
        adapters: what trains, in place of --adapter, each as it has it.
        learning_rates: step sizes, in place of --learning-rate. The adapter head has none of these, and is run once for
            all.
        seeds: of all that is random, in place of --seed.
        runs: folder in which every run gets a folder of its own.
        left: leave out the runs whose results are there.
        out: file to write the commands to.

    Raises:
        ValueError: a setting of a run out of range, or two runs that are the same.
    """

    adapters: Annotated[tuple[str, ...], default_told("one, that of --adapter")] = ()
    learning_rates: Annotated[tuple[float, ...], default_told("one, that of --learning-rate")] = ()
    seeds: Annotated[tuple[int, ...], default_told("one, that of --seed")] = ()
    runs: Path = Path("runs")
    left: bool = False
    out: Annotated[Path | None, default_told("the standard output")] = None

    def __post_init__(self):
        rates = self.learning_rates
        for several, one in (("adapters", "adapter"), ("learning_rates", "learning_rate"), ("seeds", "seed")):
            object.__setattr__(self, several, getattr(self, several) or (getattr(self, one),))
        super().__post_init__()
        for rate in self.learning_rates:  # those of a head alone are checked, too, though it has none
            checks.finite("sweep", least=0.0, learning_rates=rate)
        if rates and set(self.adapters) == {"head"}:
            raise ValueError(
                f"sweep: expected an adapter besides head for step sizes of its own, got learning_rates {rates}. "
                "A head alone has --head-learning-rate."
            )
        runs_of(self)


def main(config: Config) -> int:
    """Print or write the commands, when all of them are what they should be.

    Returns:
        0.

    Raises:
        OSError: results of a run cannot be read, or the file not written.
        ValueError: a folder has the results of another run, or a line break in its name.
    """
    runs = runs_of(config)
    chosen = [run for folder, run in runs.items() if not (config.left and train.finished(run, folder))]
    lines = "".join(f"{command(run)}\n" for run in chosen)
    if config.out is None:
        print(lines, end="")
        return 0
    write_bytes(config.out, os.fsencode(lines))
    Console().print(Text(f"Look at {config.out}: {len(chosen)} of {len(runs)} runs."), soft_wrap=True)
    return 0


def runs_of(config: Config) -> dict[Path, train.Config]:
    """The runs of a sweep by their folders: adapter by adapter, step size by step size, seed by seed.

    Raises:
        ValueError: a setting of a run out of range, or two runs that are the same.
    """
    common = {field.name: getattr(config, field.name) for field in dataclasses.fields(train.Config)}
    found: dict[Path, train.Config] = {}
    for adapter in config.adapters:
        rates = (0.0,) if adapter == "head" else config.learning_rates
        for rate, seed in itertools.product(rates, config.seeds):
            run = train.Config(**{**common, "adapter": adapter, "learning_rate": rate, "seed": seed, "out": None})
            folder = config.runs / folder_name(run)
            if folder in found:
                raise ValueError(f"sweep: expected runs that differ, got {folder.name} twice. Leave one out.")
            found[folder] = dataclasses.replace(run, out=folder)
    _check_differ(config.adapters)
    return found


def _check_differ(adapters: Sequence[str]) -> None:
    known: list[tuple[str, dict[str, Any]]] = []
    for adapter in adapters:
        content = described(spelt(adapter))
        for other, of_other in known:
            if content == of_other:
                raise ValueError(f"sweep: expected adapters that differ, got {other} and {adapter}. Leave one out.")
        known.append((adapter, content))


def folder_name(run: train.Config) -> str:
    """What a run's folder is called: by adapter, step size and seed.

    Adapters whose names are long, or have letters that a shell or file system may not take as they are, are told apart
    by a digest.

    Example:
        >>> from ntkprefix.commands import train
        >>> from ntkprefix.commands.sweep import folder_name
        >>> folder_name(train.Config(adapter="lora:rank=4", seed=1))
        'lora-rank=4_lr=0.003_seed=1'
        >>> folder_name(train.Config(adapter="lora:targets=query/value", learning_rate=0.01))
        'lora-targets=query-value-f713c4fd_lr=0.01_seed=0'
    """
    adapter = re.sub(r"[^\w.,=+]", "-", run.adapter, flags=re.ASCII)
    if len(adapter) > _LONGEST or adapter != run.adapter.replace(":", "-") or "-" in run.adapter:
        adapter = f"{adapter[:_LONGEST]}-{hashlib.sha256(run.adapter.encode()).hexdigest()[:8]}"
    rate = run.head_learning_rate if run.adapter == "head" else run.learning_rate
    return f"{adapter}_lr={rate}_seed={run.seed}"


def command(run: train.Config) -> str:
    """A run as a line for a shell: the settings that are not the usual ones, and behind them what is this run's own.

    Raises:
        ValueError: a line break in the name of a file or folder.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.commands import train
        >>> from ntkprefix.commands.sweep import command
        >>> command(train.Config(adapter="head", epochs=2, seed=1, out=Path("my runs")))
        "ntkprefix train --epochs 2 --adapter head --seed 1 --out 'my runs'"
    """
    usual = {field.name: field.default for field in dataclasses.fields(train.Config)}
    own = [name for name in _OWN if (run.adapter, name) != ("head", "learning_rate")]
    common = [name for name in usual if name not in _OWN and getattr(run, name) != usual[name]]
    settings = {name: getattr(run, name) for name in (*common, *own)}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    line = shlex.join(["ntkprefix", "train", *spelt_out(plain, "sweep")])
    if "\n" in line:
        raise ValueError(f"sweep: expected files and folders without line breaks in their names, got {line!r}.")
    return line
