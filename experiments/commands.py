"""Command lines of experiments: options from a configuration, and what can go wrong told in one line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import tyro

from ntkprefix.cli import guard


def run(name: str, config: type, main: Callable[[Any], Any], arguments: Sequence[str] | None) -> int:
    """Run an experiment's `main` from the command line.

    Args:
        name: of the experiment's module.
        config: its configuration, whose fields are the options.
        main: takes the configuration.
        arguments: options; those of the process when None.

    Returns:
        Exit status: 0, 2 when it could not run, 130 when it was interrupted.
    """

    def work() -> int:
        main(tyro.cli(config, args=arguments, prog=f"python -m experiments.{name}"))
        return 0

    return guard(name, work)


def remaking(name: str, found: Mapping[str, Any], usual: Any) -> str:
    """The command that makes results again, with every setting that is not what it is anyway.

    Args:
        name: of the experiment's module.
        found: the settings in a result file.
        usual: the experiment's configuration as it is if nothing is given.

    Returns:
        A line for a shell; the data are in FOLDER.

    Example:
        >>> from pathlib import Path
        >>> from experiments.commands import remaking
        >>> from experiments.many_shot import ManyShotConfig
        >>> remaking("many_shot", {"tasks": ["sst2"], "rows": 32}, ManyShotConfig(data_root=Path("FOLDER")))
        'python -m experiments.many_shot --data-root FOLDER --tasks sst2'
    """
    words = ["python", "-m", f"experiments.{name}", "--data-root", "FOLDER"]
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(usual).items()}
    for name, value in found.items():
        if value != settings[name]:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
