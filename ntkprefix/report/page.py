"""Tables and plots as one self-contained HTML page, with nothing to fetch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ntkprefix._extras import extra
from ntkprefix.report.plots import Plot, figure, picks, scales
from ntkprefix.runs import write_bytes

# Rows from which on a table is folded.
_LONG = 40


@dataclass(frozen=True)
class Table:
    """A table of cells that are already text; a verdict's status is coloured.

    Attributes:
        columns: their names.
        rows: of cells.
        caption: what it is, in a few words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, a table, notes on it and plots, in this order, each of which may be absent."""

    title: str
    text: str = ""
    table: Table | None = None
    notes: Sequence[str] = ()
    plots: Sequence[Plot] = field(default_factory=tuple)


def write_report(
    path: str | Path, *, title: str, lead: str, sections: Sequence[Section], records: Mapping[str, Any]
) -> Path:
    """Write the page, whole or not at all.

    All text is escaped, and the page allows no script but its own two, whose hashes it names, and nothing to fetch:
    names may come from anywhere.

    Args:
        path: HTML file to write.
        title: of the page.
        lead: what the reader should know first, in a sentence or two.
        sections: in order.
        records: JSON-ready configuration, versions and so on, folded away at the end.

    Returns:
        The path written.

    Raises:
        ImportError: there are plots, and plotly is not installed.
        OSError: the page cannot be written.

    Example:
        >>> import tempfile, pathlib
        >>> from ntkprefix.report import Section, Table, write_report
        >>> table = Table(["method", "accuracy"], [["head only", "0.9"]])
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> page = write_report(
        ...     folder / "report.html", title="A run", lead="", sections=[Section("Result", table=table)], records={}
        ... )
        >>> "head only" in page.read_text(encoding="utf-8")
        True
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    scripts = [_plotly(), _own("page.js")] if any(section.plots for section in sections) else []
    page = environment.from_string(_own("page.html.jinja")).render(
        title=title,
        lead=lead,
        sections=[
            {
                "title": section.title,
                "text": section.text,
                "table": section.table,
                "notes": section.notes,
                "plots": [
                    {"plot": plot, "figure": figure(plot), "picks": list(picks(plot).values()), "scales": scales(plot)}
                    for plot in section.plots
                ],
            }
            for section in sections
        ],
        records={name: json.dumps(content, indent=1) for name, content in records.items()},
        style=Markup(_own("page.css")),
        scripts=[Markup(script) for script in scripts],
        hashes=[_hash(script) for script in scripts],
        long=_LONG,
    )
    # File names need not be text.
    write_bytes(path, page.encode(errors="backslashreplace"))
    return Path(path)


def _own(name: str) -> str:
    return resources.files("ntkprefix.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    with extra("report", "ntkprefix.report"):
        from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _hash(script: str) -> str:
    """As a content security policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
