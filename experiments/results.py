"""Remake the committed result files, all or by name: `python -m experiments.results [scale] [digits] ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import theory
from experiments import RESULTS, documents, scale, tables
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


def main(names: list[str]) -> None:
    """Remake the named files, all if none is named, and then the tables made of them."""
    unknown = set(names) - set(MAKERS)
    if unknown:
        sys.exit(f"experiments.results: expected {', '.join(MAKERS)}; got {', '.join(sorted(unknown))}.")
    if str(environment()["commit"]).endswith("-dirty"):
        sys.exit("experiments.results: expected a commit that has the code, got changes to it. Commit them first.")
    for name, make in MAKERS.items():
        if not names or name in names:
            print(f"making {name} ...", flush=True)
            make()
    documents.main()


if __name__ == "__main__":
    main(sys.argv[1:])
