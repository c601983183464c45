"""What compressed prompts keep, by method: `experiments/results/compression.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.dots import Dot, dots
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.records.shape import Numbers
from ntkprefix.report import Line, Plot, Section, Table, number, short

# What is worse than no prompt by more than this much of the gain is out of view at first.
_LOWEST = -0.5
_NUMBERS = ("ratio", "kept", "divergence", "error", "estimated_error", "coverage", "seconds")
_ROW = {"text": str, "method": str, "budget": str, "error_of_layers": Numbers("L"), **dict.fromkeys(_NUMBERS, float)}
_SHAPE = {
    "environment": dict,
    "config": {"model": str, "tokens": int, "continuation": int},
    "texts": [{"text": str, "full": float, "without": float}],
    "rows": [_ROW],
}


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every file."""
    return [_section(record) for record in records]


def _section(record: Record) -> Section:
    config, texts = record.content["config"], _by_text(record.content["texts"])
    several = len({row["budget"] for row in record.content["rows"]}) > 1
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in record.content["rows"]:
        name = f"{row['method']}, {row['budget']}" if several else row["method"]
        found.setdefault(name, []).append(row)
    gains = ", ".join(
        f"{number(float(np.mean([place['full'] - place['without'] for place in places])))} for {_text(text)}"
        for text, places in texts.items()
    )
    return Section(
        f"Compressed prompts: {record.name}",
        text=(
            f"{short(config['model'])}, prompts of {config['tokens']:,} tokens. Kept: share of the prompt's gain in "
            f"the log-likelihood of the {config['continuation']:,} tokens after it, below 0 where the model does worse "
            f"than without the prompt. The gain is {gains} nats a token."
        ),
        table=_table(found, list(texts)),
        notes=["After ±: half of the 95 % interval of the mean over texts and places in them, by Student's t."],
        plots=[_dots("Share of the prompt's gain that is kept", "kept", found, lowest=_LOWEST), *_errors(found)],
    )


def _table(found: Mapping[str, Sequence[Mapping[str, Any]]], texts: Sequence[str]) -> Table:
    columns = ["method", "smaller", *(f"kept, {_text(text)}" for text in texts), "kept, mean", "divergence", "error"]
    columns += ["estimated", "coverage", "seconds"]
    rows = []
    for name, measured in found.items():
        of_texts = _by_text(measured).items()
        kept = {text: plus_minus(of_runs([row["kept"] for row in of]), number) for text, of in of_texts}
        rows.append(
            [
                short(name),
                f"{number(measured[0]['ratio'])}x",
                *(kept.get(text, "") for text in texts),
                plus_minus(of_runs([row["kept"] for row in measured])),
                *(number(float(np.mean([row[column] for row in measured]))) for column in _NUMBERS[2:]),
            ]
        )
    return Table(columns, rows)


def _errors(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Plot]:
    lines = []
    for name, measured in found.items():
        means = np.mean([row["error_of_layers"] for row in measured], axis=0).tolist()
        lines.append(Line(name, list(range(1, len(means) + 1)), means, style="both"))
    label = "relative error of attention outputs"
    return [
        _dots("Error of attention outputs", "error", found, log=True),
        Plot("Error by layer, mean over texts", "layer", label, lines, y_log=True),
    ]


def _dots(label: str, column: str, found: Mapping[str, Sequence[Mapping[str, Any]]], **options: Any) -> Plot:
    values = {name: [row[column] for row in measured] for name, measured in found.items()}
    means = [Dot(name, of_runs(each), each) for name, each in values.items()]
    caption = "Mean over texts and its 95 % interval; small points are texts, or places in them."
    return dots(label, label.lower(), {"mean over texts": means}, caption, **options)


def _by_text(measured: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """What is of one text, from all places in it."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for each in measured:
        found.setdefault(each["text"], []).append(each)
    return found


def _text(name: str) -> str:
    return short(Path(name).stem)


KIND = Kind("experiments.compression", ("texts", "rows"), _SHAPE, sections)
