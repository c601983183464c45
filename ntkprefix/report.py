"""A run as one self-contained HTML page: tables, pictures and where they came from, with nothing to fetch."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from ntkprefix.runs import write_bytes


@dataclass(frozen=True)
class Table:
    """A table of cells that are already text; "pass", "fail" and "failed" are coloured."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """A PNG file and the sentence under it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with text, a table, notes on it and figures, in this order, each of which may be absent."""

    title: str
    text: str = ""
    table: Table | None = None
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = field(default_factory=tuple)


def write_report(
    path: str | Path, *, title: str, lead: str, sections: Sequence[Section], records: Mapping[str, Any]
) -> Path:
    """Write the page, whole or not at all.

    All text is escaped, and the page forbids itself scripts and anything to fetch: names may come from anywhere.

    Args:
        path: HTML file to write.
        title: of the page.
        lead: what the reader should know first, in a sentence or two.
        sections: in order.
        records: JSON-ready configuration, versions and so on, folded away at the end.

    Returns:
        The path written.

    Raises:
        OSError: a figure cannot be read, or the page not written.

    Example:
        >>> import tempfile, pathlib
        >>> from ntkprefix.report import Section, Table, write_report
        >>> table = Table(["method", "accuracy"], [["head only", "0.9"]])
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> page = write_report(
        ...     folder / "report.html", title="A run", lead="", sections=[Section("Result", table=table)], records={}
        ... )
        >>> "head only" in page.read_text()
        True
    """
    template = resources.files("ntkprefix").joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    shown = [
        {
            "title": section.title,
            "text": section.text,
            "table": section.table,
            "notes": section.notes,
            "figures": [
                {"data": base64.b64encode(Path(figure.path).read_bytes()).decode(), "caption": figure.caption}
                for figure in section.figures
            ],
        }
        for section in sections
    ]
    page = environment.from_string(template).render(
        title=title,
        lead=lead,
        sections=shown,
        records={name: json.dumps(content, indent=1) for name, content in records.items()},
    )
    # File names need not be text.
    write_bytes(path, page.encode(errors="backslashreplace"))
    return Path(path)
