"""Runs of `ntkprefix train`: those that differ in their seed alone are one method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.dots import Dot, dots
from ntkprefix.records.seeds import EXPLAINED, of_runs, plus_minus
from ntkprefix.records.shape import Bits, Numbers, Share
from ntkprefix.report import Line, Plot, Section, Table, number, short, smooth
from theory.intervals import Estimate

_SHAPE = {
    "config": {"model": str, "adapter": str, "task": str, "seed": int, "data_dir": (str, None)},
    "environment": dict,
    "data": str,
    "test": {"loss": float, "right": Bits, "accuracy?": Share, "exact_match?": Share},
    "sizes": {"adapter_parameters": int, "head_parameters": int},
    "times": {"steps": int, "seconds": float, "seconds_per_step": float},
    "validation?": Numbers("E"),
}
_LINE = {"step": float, "loss?": float, "validation?": float}
# Settings that say where a run is or what it is compared on, not how it was trained.
_APART = ("seed", "out", "adapter", "model", "task", "data_dir", "learning_rate", "checkpoint_every")
# Letters of a text from a file that is shown as one.
_PARAGRAPH = 300
_MEASURES = {"accuracy": "accuracy", "exact_match": "exact match"}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every model and data set."""
    kept, repeated = _without_repetitions(records)
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in kept:
        config = record.content["config"]
        found.setdefault((config["model"], config["task"], config["data_dir"]), []).append(record)
    return [_section(runs, repeated if index == 0 else []) for index, runs in enumerate(found.values())]


def _without_repetitions(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """One run of every configuration, and a sentence for each that was run again: two runs of a seed are no sample."""
    first: dict[str, Record] = {}
    told = []
    for record in records:
        settings = repr(sorted((name, value) for name, value in record.content["config"].items() if name != "out"))
        if settings in first:
            told.append(f"{record.name} has the settings and the seed of {first[settings].name}; it is left out.")
        else:
            first[settings] = record
    return list(first.values()), told


def _section(runs: Sequence[Record], notes: Sequence[str]) -> Section:
    methods: dict[str, list[Record]] = {}
    for run, name in zip(runs, _methods(runs), strict=True):
        methods.setdefault(name, []).append(run)
    measure = next((name for name in _MEASURES if all(name in run.content["test"] for run in runs)), None)
    config = runs[0].content["config"]
    data = list(dict.fromkeys(run.content["data"] for run in runs))
    loss = _loss_plot(methods)
    plots = [loss, *_validation_plots(methods), *([_measured(methods, measure)] if measure else [])]
    return Section(
        f"{short(config['model'])} on {short(data[0].partition(':')[0])}",
        text=f"{'. '.join(short(each, _PARAGRAPH) for each in data)}.",
        table=_table(methods, measure),
        notes=[EXPLAINED, *notes],
        plots=plots,
    )


def _methods(runs: Sequence[Record]) -> list[str]:
    """Each run's adapter, with those of its other settings that differ among the runs.

    Step sizes differ from adapter to adapter: they are told where they differ within one.
    """
    settings = [{name: value for name, value in run.content["config"].items() if name not in _APART} for run in runs]
    steps: dict[str, set[str]] = {}
    for run in runs:
        steps.setdefault(run.content["config"]["adapter"], set()).add(repr(_step_size(run)))
    for run, each in zip(runs, settings, strict=True):
        each["step_size"] = _step_size(run) if len(steps[run.content["config"]["adapter"]]) > 1 else None
    names = dict.fromkeys(name for each in settings for name in each)
    differ = [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]
    return [
        ", ".join(
            [
                run.content["config"]["adapter"],
                *(f"{name.replace('_', ' ')} {each[name]}" for name in differ if each.get(name) is not None),
            ]
        )
        for run, each in zip(runs, settings, strict=True)
    ]


def _step_size(run: Record) -> Any:
    """Of the adapter, or of the head where nothing else trains."""
    config = run.content["config"]
    return config.get("head_learning_rate" if config["adapter"] == "head" else "learning_rate")


def _table(methods: dict[str, list[Record]], measure: str | None) -> Table:
    columns = ["method", *([_MEASURES[measure]] if measure else []), "test loss", "seeds", "trained numbers"]
    columns += ["in the head", "step size", "steps", "s/step", "s"]
    rows = []
    for name, runs in methods.items():
        contents = [run.content for run in runs]
        loss = of_runs([content["test"]["loss"] for content in contents])
        sizes, times = contents[0]["sizes"], [content["times"] for content in contents]
        rows.append(
            [
                short(name),
                *([plus_minus(_estimate(runs, measure))] if measure else []),
                plus_minus(loss, number),
                ", ".join(str(content["config"]["seed"]) for content in contents),
                f"{sizes['adapter_parameters']:,}",
                f"{sizes['head_parameters']:,}",
                short(str(_step_size(runs[0]))),
                " or ".join(dict.fromkeys(f"{time['steps']:,}" for time in times)),
                number(float(np.median([time["seconds_per_step"] for time in times]))),
                number(float(np.median([time["seconds"] for time in times]))),
            ]
        )
    return Table(columns, rows)


def _estimate(runs: Sequence[Record], measure: str) -> Estimate:
    return of_runs([run.content["test"][measure] for run in runs], runs[0].content["test"]["right"])


def _measured(methods: dict[str, list[Record]], measure: str) -> Plot:
    label = f"{_MEASURES[measure]} on test rows"
    found = [
        Dot(name, _estimate(runs, measure), [run.content["test"][measure] for run in runs])
        for name, runs in methods.items()
    ]
    caption = (
        "Mean over seeds and its 95 % interval; small points are seeds. Of one run: the interval of its test rows."
    )
    return dots(_MEASURES[measure].capitalize(), label, {label: found}, caption)


def _loss_plot(methods: dict[str, list[Record]]) -> Plot:
    """Every step's loss, and over it the running mean."""
    weak, strong, positive = [], [], True
    for method, runs in methods.items():
        for run in runs:
            steps, losses = _series(run, "loss")
            positive = positive and all(loss > 0 for loss in losses)
            name = f"{short(method)}, seed {run.content['config']['seed']}: {short(run.name)}"
            weak.append(Line(name, steps, losses, group=method, weak=True))
            strong.append(Line(f"{name}, running mean", steps, smooth(losses).tolist(), group=method))
    caption = (
        "Pale lines are the losses of every step's batch, before the step; over them the running mean over a twelfth "
        "of the run. One line for each seed. Of an adapter, steps are those after the head has been trained alone."
    )
    return Plot("Training loss", "step", "loss (nats)", [*weak, *strong], caption, y_log=positive)


def _validation_plots(methods: dict[str, list[Record]]) -> list[Plot]:
    lines = [
        Line(
            f"{short(method)}, seed {run.content['config']['seed']}: {short(run.name)}",
            *_series(run, "validation"),
            group=method,
            style="both",
        )
        for method, runs in methods.items()
        for run in runs
    ]
    lines = [line for line in lines if line.x]
    caption = "After every pass, on the training rows that are held back. The parameters of the smallest are kept."
    return [Plot("Validation loss", "step", "loss (nats)", lines, caption)] if lines else []


def _series(run: Record, name: str) -> tuple[list[float], list[float]]:
    """Steps, and what the lines of `metrics.jsonl` say of them."""
    lines = [line for line in run.lines if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


KIND = Kind("ntkprefix train", ("config", "test"), _SHAPE, sections, _LINE)
