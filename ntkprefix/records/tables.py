"""Tables of methods on tasks: `experiments/results/tables/<field>/<task>.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.dots import Dot, dots
from ntkprefix.records.seeds import EXPLAINED, diverged, means, of_field, of_seeds, plus_minus
from ntkprefix.records.shape import Bits, Numbers
from ntkprefix.report import Line, Plot, Section, Table, short

_ROW = {
    "method": str,
    "step_size": float,
    "adapter_parameters": int,
    "step_megabytes?": float,
    "data": str,
    "tests": [({"right": Bits}, None), "S"],
    "tried": {"step_sizes": Numbers("n"), "losses": Numbers("n", gaps=True)},
}
_SHAPE = {"environment": dict, "field": str, "task": str, "model": str, "seeds": Numbers("S"), "rows": [_ROW]}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every field and model, whose tasks stand side by side."""
    fields: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    tasks = Counter((record.content["field"], record.content["model"], record.content["task"]) for record in records)
    for record in records:
        content = record.content
        place = content["field"], content["model"]
        # Two measurements of one task are told apart by their files.
        own = {"task": f"{content['task']} ({record.name})"} if tasks[*place, content["task"]] > 1 else {}
        fields.setdefault(place, []).append({**content, **own})
    return [_section(f"{short(field)} tasks on {short(model)}", tables) for (field, model), tables in fields.items()]


def _section(title: str, tables: Sequence[Mapping[str, Any]]) -> Section:
    methods = list(dict.fromkeys(row["method"] for table in tables for row in table["rows"]))
    found = {
        table["task"]: [
            Dot(method, of_seeds(table, method), list(means(table, method).values()))
            for method in methods
            if _row(table, method)
        ]
        for table in tables
    }
    label = "share of test rows that are right"
    caption = "Mean over seeds and its 95 % interval; small points are seeds."
    data = dict.fromkeys(row["data"] for table in tables for row in table["rows"])
    return Section(
        title[:1].upper() + title[1:],
        text="; ".join(short(each, 200) for each in data) + ".",
        table=_table(tables, methods),
        notes=[EXPLAINED, *diverged(tables)],
        plots=[dots("Accuracy", label, found, caption), *(_tried(table) for table in tables)],
    )


def _row(table: Mapping[str, Any], method: str) -> Mapping[str, Any] | None:
    return next((row for row in table["rows"] if row["method"] == method), None)


def _table(tables: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Table:
    columns = ["method", *(short(table["task"]) for table in tables), *["mean"] * (len(tables) > 1)]
    columns += ["trained numbers", "step MB"]
    rows = []
    for method in methods:
        having = [table for table in tables if _row(table, method)]
        first = _row(having[0], method) or {}
        cells = [short(method)]
        cells += [plus_minus(of_seeds(table, method)) if table in having else "" for table in tables]
        if len(tables) > 1:
            cells.append(plus_minus(of_field(tables, method)) if len(having) == len(tables) else "")
        cells.append(f"{first['adapter_parameters']:,}")
        rows.append([*cells, f"{first['step_megabytes']:,.0f}" if first.get("step_megabytes") else ""])
    return Table(columns, rows)


def _tried(table: Mapping[str, Any]) -> Plot:
    lines = [
        Line(row["method"], row["tried"]["step_sizes"], row["tried"]["losses"], style="both") for row in table["rows"]
    ]
    caption = "On training rows that are held back. Of step sizes that do equally well, the smallest was taken."
    title = f"Step sizes that were tried, {short(table['task'])}"
    return Plot(title, "step size", "loss (nats)", lines, caption, x_log=True, y_log=True)


KIND = Kind("experiments.tables", ("field", "task"), _SHAPE, sections)
