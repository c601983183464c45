"""Methods side by side on one set of images: what the demonstration leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntkprefix.records import verify
from ntkprefix.records.base import Kind, Record
from ntkprefix.records.dots import Dot, dots
from ntkprefix.records.shape import Numbers, Share
from ntkprefix.report import Line, Plot, Section, Table, short, smooth
from theory.intervals import Estimate

_RUN = {"method": str, "losses": Numbers("n")}
_ROW = {
    "method": str,
    "accuracy": Share,
    "interval": Numbers("2"),
    "adapter_parameters": int,
    "head_parameters": int,
    "step_size": float,
    "steps": int,
    "seconds_per_step": float,
    "seconds": float,
}
_SHAPE = {
    "environment": dict,
    "config": dict,
    "data": {"about": str},
    "runs": [_RUN],
    "failures": [{"method": str, "failure": str}],
    "summary": [_ROW],
    "verify?": verify.SHAPE,
}


def sections(records: Sequence[Record]) -> list[Section]:
    """For every run what its methods reach, and its verdicts if it has some."""
    found = []
    for record in records:
        results = record.content
        failed = [f"{run['method']} failed: {run['failure']}" for run in results["failures"]]
        interval = "The interval is of the held-out images, by Wilson's formula."
        about = f"{short(results['data']['about'], 300)}."
        found.append(
            Section(f"Methods side by side: {record.name}", about, table(results), [interval, *failed], plots(results))
        )
        if "verify" in results:
            found += verify.sections([Record(record.name, record.file, results["verify"], verify.KIND)])
    return found


def table(results: Mapping[str, Any]) -> Table:
    """A row for every method that finished, and one for every method of which no run did."""
    rows = [
        [
            short(row["method"]),
            f"{row['accuracy']:.3f}",
            " to ".join(f"{end:.3f}" for end in row["interval"]),
            f"{row['adapter_parameters']:,}",
            f"{row['head_parameters']:,}",
            f"{row['step_size']:g}",
            f"{row['steps']:,}",
            f"{row['seconds_per_step']:.2g}",
            f"{row['seconds']:.0f}",
        ]
        for row in results["summary"]
    ]
    columns = ["method", "held-out accuracy", "95 % interval", "trained", "in the head", "step size", "steps"]
    return with_failures(Table([*columns, "s/step", "s"], rows), results)


def with_failures(table: Table, results: Mapping[str, Any]) -> Table:
    """A table of methods with a row for every method of which no run finished."""
    finished = {row["method"] for row in results["summary"]}
    failed = dict.fromkeys(run["method"] for run in results["failures"] if run["method"] not in finished)
    empty = [""] * (len(table.columns) - 2)
    return Table(table.columns, [*table.rows, *([short(method), "failed", *empty] for method in failed)])


def plots(results: Mapping[str, Any]) -> list[Plot]:
    """Accuracies and loss curves; none where no method finished."""
    if not results["summary"]:
        return []
    label = "accuracy on held-out images"
    found = [Dot(row["method"], Estimate(row["accuracy"], *row["interval"])) for row in results["summary"]]
    caption = "On images that played no part in training or in the choice of settings, with 95 % intervals."
    weak, strong = [], []
    for run in results["runs"]:
        steps = list(range(1, len(run["losses"]) + 1))
        weak.append(Line(run["method"], steps, run["losses"], group=run["method"], weak=True))
        means = smooth(run["losses"]).tolist()
        strong.append(Line(f"{run['method']}, running mean", steps, means, group=run["method"]))
    told = (
        "Pale lines are the losses of every step's batch; over them the running mean over a twelfth of the run. "
        "Linear probing trains on features computed once, for more passes."
    )
    return [
        dots("Held-out accuracy", label, {label: found}, caption),
        Plot("Training loss", "step", "cross-entropy (nats)", [*weak, *strong], told, x_log=True, y_log=True),
    ]


KIND = Kind("the demonstration", ("runs", "failures"), _SHAPE, sections)
