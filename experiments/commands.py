"""Command lines of experiments: options from a configuration, and what can go wrong told in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
