"""What many examples as a compressed prompt keep of their help: `experiments/results/many_shot.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.dots import Dot, dots
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.report import Plot, Section, Table, number, short
from theory.intervals import Estimate

_NAMES = {"none": "no examples", "all": "all, not compressed"}
_SHAPE = {
    "environment": dict,
    "config": {"model": str, "tokens": int, "budget": str},
    "tasks": [
        {
            "task": str,
            "examples": int,
            "test_rows": int,
            "rows": [{"method": str, "log_likelihood": float, "right?": str}],
        }
    ],
}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every file."""
    return [_section(record) for record in records]


def _section(record: Record) -> Section:
    config, tasks = record.content["config"], record.content["tasks"]
    told = "; ".join(
        f"{short(task['task'])}: {task['examples']:,} examples, {task['test_rows']:,} test rows" for task in tasks
    )
    return Section(
        f"Many examples as a prompt: {record.name}",
        text=(
            f"{short(config['model'])}; as many examples as {config['tokens']:,} tokens hold, compressed "
            f"{short(config['budget'])}. {told}. Kept: share of what the examples do to the log-likelihood of the "
            "right answer. Right: share of the test rows whose likeliest class is the right one."
        ),
        table=_table(tasks),
        notes=["In brackets: 95 % interval over test rows, by Wilson's formula."],
        plots=[
            _dots("Share of the examples' gain that is kept", "kept", tasks),
            _dots("Share of test rows that is right", "right", tasks),
        ],
    )


def _table(tasks: Sequence[Mapping[str, Any]]) -> Table:
    found = {task["task"]: (kept_of(task), right_of(task)) for task in tasks}
    columns = ["method"]
    for name, (_, right) in found.items():
        columns += [f"{short(name)}, kept", *([f"{short(name)}, right"] if right else [])]
    rows = []
    for method in dict.fromkeys(row["method"] for task in tasks for row in task["rows"]):
        cells = [called(method)]
        for kept, right in found.values():
            cells.append(number(kept[method].value) if method in kept else "")
            if right:
                cells.append(plus_minus(right[method]) if method in right else "")
        rows.append(cells)
    return Table(columns, rows)


def kept_of(task: Mapping[str, Any]) -> dict[str, Estimate]:
    """Of every method, if there are rows without and with the examples, and these make a difference."""
    said = {row["method"]: row["log_likelihood"] for row in task["rows"]}
    gain = said.get("all", math.nan) - said.get("none", math.nan)
    if not gain:
        return {}
    return {
        method: Estimate((each - said.get("none", math.nan)) / gain, math.nan, math.nan)
        for method, each in said.items()
    }


def right_of(task: Mapping[str, Any]) -> dict[str, Estimate]:
    """Of every method, where answers are classes."""
    found = {row["method"]: row["right"] for row in task["rows"] if row.get("right")}
    return {method: of_runs([right.count("1") / len(right)], right) for method, right in found.items()}


def _dots(label: str, what: str, tasks: Sequence[Mapping[str, Any]]) -> Plot:
    of = kept_of if what == "kept" else right_of
    groups = {short(task["task"]): [Dot(called(method), each) for method, each in of(task).items()] for task in tasks}
    return dots(label, label.lower(), groups, "One point per method and task.", lowest=-0.5)


def called(method: str) -> str:
    """A method in words."""
    return short(_NAMES.get(method, method))


KIND = Kind("experiments.many_shot", ("tasks",), _SHAPE, sections)
