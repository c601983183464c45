"""Other result files, benchmarks among them: their rows as a table, and times against sizes where they have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.shape import Numbers, Shape, fault
from ntkprefix.report import Line, Plot, Section, Table, number, short

# Keys under which files have their rows.
_KEYS = ("rows", "heads", "workloads")
_TIME, _QUARTILES = "milliseconds", "relative_time"
# Sizes that times are drawn against.
_SIZES = {"queries": "queries and keys T", "M": "prefix length M (tokens)"}
_TIMED = {"case": str, _TIME: float}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every file."""
    return [_section(record, record.content[record.kind.marks[-1]]) for record in records]


def _section(record: Record, rows: Sequence[Mapping[str, Any]]) -> Section:
    cells = [flat for row in rows for flat in _flat(row)]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    table = Table(
        [name.replace("_", " ") for name in columns], [[row.get(name, "") for name in columns] for row in cells]
    )
    notes = ["Relative time: median, and in brackets first and third quartile."] if _QUARTILES in columns else []
    return Section(f"Measurements: {record.name}", table=table, notes=notes, plots=_times(rows))


def _flat(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The cells of a row, or of each of the rows within it; what is nested otherwise is left out."""
    cells: dict[str, str] = {}
    inner: list[dict[str, str]] = []
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= {f"{name} {key}": _cell(key, each) for key, each in value.items() if not isinstance(each, Mapping)}
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            inner += [flat for each in value for flat in _flat(each)]
        else:
            cells[name] = _cell(name, value)
    return [cells | each for each in inner] or [cells]


def _cell(name: str, value: Any) -> str:
    if name == _QUARTILES and _fits(value, Numbers("3")):
        low, middle, high = map(number, value)
        return f"{middle} ({low} to {high})"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else short(str(value))


def _times(rows: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Time against size, a line for every case."""
    plots = []
    for size, label in _SIZES.items():
        timed = [row for row in rows if _fits(row, _TIMED | {size: float})]
        cases = dict.fromkeys((row["case"], row.get("gradient") is True) for row in timed)
        lines = []
        for case, gradient in cases:
            chosen = [row for row in timed if (row["case"], row.get("gradient") is True) == (case, gradient)]
            name = f"{case}, with gradients" if gradient else case
            x, y = ([row[column] for row in chosen] for column in (size, _TIME))
            lines.append(Line(name, x, y, style="both", off=gradient))
        if lines:
            plots.append(Plot(f"Time against {label}", label, "milliseconds", lines, x_log=True, y_log=True))
    return plots


def _fits(content: Any, shape: Shape) -> bool:
    return fault(content, shape) is None


KINDS = tuple(
    Kind("other experiments and benchmarks", ("environment", key), {"environment": dict, key: [dict]}, sections)
    for key in _KEYS
)
