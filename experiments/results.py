"""Remake the committed result files, all or by name: `python -m experiments.results [scale] [digits] ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import theory
from experiments import RESULTS, commands, documents, scale, tables
from ntkprefix._options import default_told
from ntkprefix.runs import environment, write_bytes, write_json

PICTURES = Path(__file__).parents[1] / "docs" / "images"


def make_scale() -> None:
    """`scale.json`."""
    write_json(RESULTS / "scale.json", scale.main(scale.ScaleConfig()))


def make_digits() -> None:
    """`tables/vision/digits.json`; the other tables need data sets, and have a command of their own."""
    tables.main(tables.TablesConfig(field="vision", tasks=("digits",)))


def make_verify() -> None:
    """`verify.json`, the full ladder, and the README's pictures; pieces and all plots go to runs/verify."""
    report = theory.verify(theory.Config(out=Path("runs") / "verify"), show_progress=True)
    write_json(RESULTS / "verify.json", report.results)
    for name in ("kernel.png", "curve.png"):
        write_bytes(PICTURES / name, (report.folder / name).read_bytes())


MAKERS: dict[str, Callable[[], Any]] = {
    "scale": make_scale,
    "digits": make_digits,
    "verify": make_verify,
}


@dataclass(frozen=True)
class ResultsConfig:
    """Remake committed result files, which takes hours, and the tables made of them.

    Attributes:
        names: files to remake.
    """

    names: Annotated[tuple[Literal[*MAKERS], ...], tyro.conf.Positional, default_told("all")] = ()


def main(config: ResultsConfig) -> None:
    """Remake the files, and then all tables.

    Raises:
        OSError: a file cannot be written.
        ValueError: the code has changes that are in no commit.
    """
    if str(environment()["commit"]).endswith("-dirty"):
        raise ValueError("expected a commit that has the code, got changes to it. Commit them first.")
    for name, make in MAKERS.items():
        if name in (config.names or MAKERS):
            print(f"making {name} ...", flush=True)
            make()
    documents.main(documents.DocumentsConfig())


if __name__ == "__main__":
    sys.exit(commands.run("results", ResultsConfig, main, None))
