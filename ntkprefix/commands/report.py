"""`ntkprefix report`: runs and result files on one page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.text import Text

from ntkprefix.records import Record, read_all, sections
from ntkprefix.report import Section, Table, short, write_report

_SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to show.

    Attributes:
        runs: run folders of `ntkprefix train`, of `ntkprefix verify` and of the demonstration, and result files of
            experiments and benchmarks, any of them together.
        out: HTML file to write.
        title: of the page.

    Raises:
        ValueError: no runs, or a file that is no HTML.
    """

    runs: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...", help_behavior_hint="(required)")
    ]
    out: Path = Path("report.html")
    title: str = "Report"

    def __post_init__(self):
        if not self.runs:
            raise ValueError("report: expected run folders or result files, got none.")
        if self.out.suffix.lower() not in _SUFFIXES:
            raise ValueError(f"report: expected a file that ends in .html as out, got {str(self.out)!r}.")


def main(config: Config) -> int:
    """Read all runs, and write the page when all are what they should be.

    Returns:
        0.

    Raises:
        FileNotFoundError: there is no such run, or it has no results.
        ImportError: plotly is not installed.
        OSError: a file cannot be read, or the page not written.
        ValueError: a file is unknown or damaged.
    """
    records = read_all(config.runs)
    page = write_report(
        config.out,
        title=config.title,
        lead=f"{_counted(records)}.",
        sections=[*sections(records), _origins(records)],
        records={
            f"{record.name} ({record.file})": {
                name: record.content.get(name)
                for name in ("config", "options", "environment")
                if name in record.content
            }
            for record in records
        },
    )
    megabytes = os.path.getsize(page) / 1e6
    Console().print(Text(f"Look at {page}: {_counted(records)}, {megabytes:.1f} MB."), soft_wrap=True)
    return 0


def _counted(records: Sequence[Record]) -> str:
    counts = Counter(record.kind.name for record in records)
    told = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return f"{len(records)} {'run or result file' if len(records) == 1 else 'runs and result files'}: {told}"


def _origins(records: Sequence[Record]) -> Section:
    """Where every record was made."""
    rows = []
    for record in records:
        environment: dict[str, Any] = record.content["environment"]
        packages = environment.get("packages")
        versions = packages if isinstance(packages, dict) else {}
        cells = [
            environment.get("commit"),
            environment.get("ntkprefix"),
            environment.get("python"),
            versions.get("jax"),
            ", ".join(str(environment[name]) for name in ("device", "processor") if environment.get(name)),
            environment.get("cores"),
            str(environment.get("finished", ""))[:16].replace("T", " "),
        ]
        rows.append([short(record.name), *("" if cell is None else short(str(cell)) for cell in cells)])
    columns = ["run", "commit", "version", "Python", "JAX", "device", "cores", "finished"]
    return Section("Where these were made", table=Table(columns, rows))
