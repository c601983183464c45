"""The tables of documents that compare methods on a field's tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from benchmarks.timing import ratio
from experiments import summary
from experiments.fields import FIELDS, OURS, PROBED
from experiments.tables import made_by, path_of
from ntkprefix.records import seeds
from ntkprefix.runs import read_json
from theory.intervals import Estimate

What = Literal["right", "loss"]
_MEASURED = {"right": "accuracy on held-out rows", "loss": "loss on held-out rows, in nats per token of an answer"}


def field_table(field: str, what: What = "right") -> str:
    """Every method on every task of a field that has a result file: the share of rows that is right, or the loss.

    A cell is empty where a method has not been measured, and so is its mean.
    """
    tables = field_results(field)
    made = [{row["method"] for row in table["rows"]} for table in tables]
    methods = [method for method in FIELDS[field].methods if any(method in each for each in made)]
    first, steps = tables[0], _step_times(field)
    columns = ["method", "trained numbers", *(table["task"] for table in tables)]
    columns += ["mean"] * (len(tables) > 1) + ["step"] * bool(steps) + ["MB"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in methods:
        on = [method in each for each in made]
        row = _row(tables[on.index(True)], method)
        cells = [method, f"{row['adapter_parameters']:,}"]
        cells += [
            seeds.plus_minus(seeds.of_seeds(table, method, what)) if there else ""
            for table, there in zip(tables, on, strict=True)
        ]
        mean = seeds.plus_minus(seeds.of_field(tables, method, what)) if all(on) else ""
        cells += [mean] * (len(tables) > 1)
        # Linear probing computes features once: its steps are another thing.
        cells += [steps.get(method, "")] * bool(steps)
        cells += [f"{row['step_megabytes']:,.0f}" if on[0] and row["step_megabytes"] else ""]
        lines.append(f"| {' | '.join(cells)} |")
    sizes = "; ".join(table["rows"][0]["data"] for table in tables)
    times = (
        f"step: time of a training step over that of {OURS}, median and quartiles of rounds in which all take one, by "
        f"`python -m experiments.step_times {field}`; "
        if steps
        else ""
    )
    has_head = any(row["head_parameters"] for row in first["rows"])
    besides, before = (" besides the head's", "; the head first trains alone") if has_head else ("", "")
    return "\n".join(
        [
            *lines,
            "",
            f"{first['model']}: {_MEASURED[what]}, mean over {_told_seeds(tables)} and half of its 95 % "
            f"interval over them; numbers trained{besides}; {times}MB: "
            f"working memory of the compiled step, for {first['task']}. {sizes}. "
            f"Step sizes are chosen by one rule for all methods, on training rows held back, by "
            f"{_choosing(tables)}{before}. {_made_on(tables)} "
            f"Remade by `python -m experiments.tables {field} --data-root FOLDER`.",
            "",
            *(f"- {_ahead(tables, other, what)}" for other in methods if other not in (OURS, PROBED)),
            *(f"- {sentence}" for sentence in seeds.diverged(tables)),
            *([f"- {_few_right(tables)}"] if what == "loss" else []),
        ]
    )


def fields_table(fields: Sequence[tuple[str, str, What]]) -> str:
    """Every method's mean over the tasks of several fields, and by how much NTK-Attention is ahead of it there.

    Args:
        fields: name, what its tasks are called, and what is measured on them.
    """
    columns, notes = ["method", "trained numbers"], []
    cells: dict[str, list[str]] = defaultdict(list)
    found = {field: field_results(field) for field, _, _ in fields}
    methods = [
        method
        for method in FIELDS[fields[0][0]].methods
        if all(method in {row["method"] for row in table["rows"]} for tables in found.values() for table in tables)
    ]
    for field, called, what in fields:
        tables = found[field]
        columns += [f"{called}: {'accuracy' if what == 'right' else 'loss'}", f"{OURS} ahead by"]
        for method in methods:
            gain = summary.ahead(tables, OURS, method, what)
            ahead = "" if method == OURS else "{} ({} to {})".format(*_signed(gain, what))
            cells[method] += [seeds.plus_minus(seeds.of_field(tables, method, what)), ahead]
        unit = f"{_MEASURED[what]}, ahead by {'points' if what == 'right' else 'nats'}"
        notes.append(f"{called}: {', '.join(table['task'] for table in tables)}; {unit}")
    first, every = found[fields[0][0]][0], [table for tables in found.values() for table in tables]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [
        f"| {method} | {_row(first, method)['adapter_parameters']:,} | {' | '.join(cells[method])} |"
        for method in methods
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"{first['model']}: means over tasks and {_told_seeds(every)}, half of their 95 % intervals over "
            f"seeds, and differences with 95 % intervals of pairs. {'. '.join(notes)}. "
            f"Step sizes are chosen by one rule for all methods, on training rows held back, by {_choosing(every)}. "
            f"{_made_on(every)} Remade by "
            f"{' and '.join(f'`python -m experiments.tables {field} --data-root FOLDER`' for field in found)}.",
        ]
    )


def field_results(field: str) -> list[dict[str, Any]]:
    """What the result files say of the tasks on which NTK-Attention has been measured, in the field's order."""
    paths = [path_of(field, task) for task in FIELDS[field].tasks]
    found = [read_json(path) for path in paths if path.exists()]
    return [table for table in found if any(row["method"] == OURS for row in table["rows"])]


def _step_times(field: str) -> dict[str, str]:
    """Of every method, if they have been measured."""
    path = path_of(field, "step_times")
    rows = read_json(path)["rows"] if path.exists() else []
    return {row["method"]: ratio(row["relative_time"]) for row in rows}


def _row(table: dict[str, Any], method: str) -> dict[str, Any]:
    return next(row for row in table["rows"] if row["method"] == method)


def _made_on(tables: Sequence[dict[str, Any]]) -> str:
    """On which machines: that of most rows, and every other with its rows."""
    rows = defaultdict(list)
    for table in tables:
        for row in table["rows"]:
            rows[row.get("machine") or made_by(table["environment"])["machine"]].append(
                f"{table['task']}, {row['method']}"
            )
    usual = max(rows, key=lambda machine: len(rows[machine]))
    others = "".join(f"; on {machine}: {'; '.join(made)}" for machine, made in rows.items() if machine != usual)
    return f"Made on {usual}{others}."


def _ahead(tables: Sequence[dict[str, Any]], other: str, what: What) -> str:
    """How NTK-Attention compares with another method, in pairs, on the tasks that have both."""
    tables = [table for table in tables if any(row["method"] == other for row in table["rows"])]
    gain = summary.ahead(tables, OURS, other, what)
    where = f"in the mean over {len(tables)} tasks" if len(tables) > 1 else f"on {tables[0]['task']}"
    surely = "ahead of" if gain.low > 0 else "behind" if gain.high < 0 else "neither surely ahead of nor surely behind"
    value, low, high = _signed(gain, what)
    points = "points" if what == "right" else "nats, by which its loss is smaller,"
    return f"{OURS} is {surely} {other}: {value} {points} {where}, 95 % interval of pairs {low} to {high}."


def _signed(gain: Estimate, what: What) -> list[str]:
    """A difference and its interval, in points or nats."""
    return [f"{100 * number:+.1f}" if what == "right" else f"{number:+.3f}" for number in gain]


def _told_seeds(tables: Sequence[dict[str, Any]]) -> str:
    """Over how many seeds means are."""
    return _on_tasks({table["task"]: len(table["seeds"]) for table in tables})


def _choosing(tables: Sequence[dict[str, Any]]) -> str:
    """How many seeds chose the step sizes; the first tables had one, and do not say so."""
    return _on_tasks({table["task"]: len(table["rows"][0]["tried"].get("seeds", [0])) for table in tables})


def _on_tasks(seeds: dict[str, int]) -> str:
    """A number of seeds, or each with its tasks."""
    counts = {count: [task for task, each in seeds.items() if each == count] for count in seeds.values()}
    told = {count: f"{count} seeds" if count > 1 else "one seed" for count in counts}
    if len(counts) == 1:
        return next(iter(told.values()))
    return " and ".join(f"{told[count]} on {', '.join(tasks)}" for count, tasks in counts.items())


def _few_right(tables: Sequence[dict[str, Any]]) -> str:
    """How often the answers were right."""
    shares = [
        max(max(seeds.means(table, row["method"]).values(), default=0.0) for row in table["rows"]) for table in tables
    ]
    told = ", ".join(f"{share:.3f} on {table['task']}" for share, table in zip(shares, tables, strict=True))
    return f"The largest share of answers that any run of any method had exactly right: {told}."
