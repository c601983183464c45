"""Kernels of pretrained models in their prefix: `experiments/results/real_kernels_<model>.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ntkprefix.records.base import Kind, Record
from ntkprefix.report import Line, Plot, Section, Table, number, short

_ROW = {
    "M": (int, None),
    "parameters": int,
    "kernel_movement": float,
    "error": {"test": float},
    "distance?": (float, None),
}
_SHAPE = {"environment": dict, "config": {"model": str}, "data": str, "rows": [_ROW]}
_MEASURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "distance of the kernel at the start to its limit": lambda row: row.get("distance"),
    "movement of the kernel in training": lambda row: row["kernel_movement"],
    "error of the linearised model on held-out inputs": lambda row: row["error"]["test"],
}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every model."""
    return [_section(record) for record in records]


def _section(record: Record) -> Section:
    rows = record.content["rows"]
    lengths = sorted({row["M"] for row in rows if row["M"] is not None})
    cells = []
    for M in [*lengths, *([None] if any(row["M"] is None for row in rows) else [])]:
        chosen = [row for row in rows if row["M"] == M]
        name = "state (Z, k)" if M is None else f"{M:,} tokens"
        measured = [_told([measure(row) for row in chosen]) for measure in _MEASURES.values()]
        cells.append([name, f"{chosen[0]['parameters']:,}", *measured])
    return Section(
        f"Kernels of {short(record.content['config']['model'])}: {record.name}",
        text=f"{short(record.content['data'], 200)}. Median and range over draws of the prefix.",
        table=Table(["prefix per layer", "trained numbers", *_MEASURES], cells),
        plots=[_plot(name, rows, lengths) for name in _MEASURES] if lengths else [],
    )


def _plot(name: str, rows: Sequence[Mapping[str, Any]], lengths: Sequence[int]) -> Plot:
    measure = _MEASURES[name]
    found = [_known([measure(row) for row in rows if row["M"] == M]) for M in lengths]
    low, middle, high = ([float(end(each)) if each else None for each in found] for end in (min, np.median, max))
    lines = [Line("M tokens: median and range over draws", lengths, middle, low, high, style="both")]
    state = _known([measure(row) for row in rows if row["M"] is None])
    if state:
        height = float(np.median(state))
        lines.append(Line("state (Z, k)", [lengths[0], lengths[-1]], [height, height], reference=True))
    return Plot(name[0].upper() + name[1:], "prefix tokens M per layer", "relative", lines, x_log=True, y_log=True)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _told(values: Sequence[float | None]) -> str:
    known = _known(values)
    if not known:
        return ""
    middle = number(float(np.median(known)))
    return middle if len(known) == 1 else f"{middle} ({number(min(known))} to {number(max(known))})"


KIND = Kind("experiments.real_kernels", ("data", "rows"), _SHAPE, sections)
