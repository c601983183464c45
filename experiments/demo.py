"""`make demo`: check the theorem quickly, then adapt a real pretrained model with an infinite prefix, and report."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table as TerminalTable
from rich.text import Text

import theory
from experiments import summary
from experiments.compare import compare
from experiments.fields import OURS, PROBED
from ntkprefix import checks
from ntkprefix.cli import guard
from ntkprefix.commands.train import Config
from ntkprefix.images import ImageData, load_images
from ntkprefix.models import ViT, ViTConfig, load_dinov2
from ntkprefix.records import comparison, verify
from ntkprefix.report import Section, Table, write_report
from ntkprefix.run_folder import prepare_folder
from ntkprefix.runs import write_json
from theory import neural_tangents_compat
from theory.verify import table as verdict_table

_PATCH = ViTConfig.patch
# DINOv2's position embeddings are those of this side; larger images would have to stretch them.
_LARGEST_SIZE = ViTConfig.patch * ViTConfig.grid
# The demonstration on digits takes 186; within so few, step sizes are still warming up.
_FEW_STEPS = 50
# All methods are in the committed results; here they would take minutes more.
_SHOWN = (PROBED, "P-Tuning v2, 10 tokens", OURS)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to show.

    Attributes:
        data_dir: folder of images (`train/<class>/...` and `test/<class>/...`, or `<class>/...`) or a `.npz` file;
            scikit-learn's handwritten digits if absent.
        size: side that images are resized to, in pixels, a multiple of 14 up to 518.
        epochs: passes over the training images.
        train_images: at most so many training images.
        test_images: at most so many held-out images.
        out: run folder; `runs/demo-<time>` if absent.

    Raises:
        ValueError: a size or count out of range.
    """

    data_dir: Path | None = None
    size: int = 70
    epochs: int = 3
    train_images: int = 1000
    test_images: int = 800
    out: Path | None = None

    def __post_init__(self):
        checks.at_least(1, "demo", epochs=self.epochs, test_images=self.test_images)
        checks.at_least(Config.batch_size, "demo", train_images=self.train_images)
        if self.size % _PATCH or not 0 < self.size <= _LARGEST_SIZE:
            raise ValueError(
                f"demo: expected a size that is a multiple of {_PATCH} pixels, from {_PATCH} to {_LARGEST_SIZE}, got "
                f"{self.size}."
            )


def main(config: DemoConfig) -> dict[str, Any]:
    """Run both parts, print what was found, and write results, plots and the report.

    Returns:
        What is written to `results.json`.

    Raises:
        ImportError: a package is not installed.
        OSError: images, weights or the run folder cannot be read or written.
        ValueError: images or weights are not what they should be. All of this is found out before anything runs.
    """
    console, began = Console(), time.perf_counter()
    out = config.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    data, model = prepare(config, out)
    console.rule("1. Does training converge as the prefix grows?")
    verified = theory.verify(theory.Config(quick=True, out=out / "verify"), show_progress=True)
    console.print(verdict_table(verified))
    console.rule("2. An infinite prefix in every layer of DINOv2 ViT-S/14")
    options = {
        "size": config.size,
        "epochs": config.epochs,
        "train_rows": config.train_images,
        "test_rows": config.test_images,
    }
    results = compare(data, model, out, _SHOWN, options)
    results |= {"summary": summary.by_method(results), "verify": verified.results}
    results |= {"seconds": round(time.perf_counter() - began, 1)}
    write_json(out / "results.json", results)
    page = report(results, out)
    console.print(Text(_data_line(results)))
    console.print(_for_terminal(comparison.with_failures(summary.brief(results["summary"]), results)))
    for note in (*_reasons(results), *_cautions(results)):
        console.print(Text(note))
    where = f"Look at [bold]{escape(str(page))}[/]; every number is in {escape(str(out / 'results.json'))}."
    console.print(f"\nTook {results['seconds']:.0f} s. {where}", soft_wrap=True)
    return results


def prepare(config: DemoConfig, out: Path) -> tuple[ImageData, ViT]:
    """Find out whether images, weights and packages are there and fit, and make the run folder.

    Returns:
        The images and the pretrained model.

    Raises:
        ImportError: a package is not installed.
        OSError: images or weights are not there, or the run folder cannot be made.
        ValueError: images or weights are not what they should be, or too few; the message says which and what to do.
    """
    neural_tangents_compat.load()
    model = load_dinov2()
    try:
        data = load_images(_source(config), size=config.size)
    except TypeError as error:  # arrays of another dtype: the file is not what it should be
        raise ValueError(str(error)) from error
    _check_enough(data, config)
    prepare_folder(out)
    return data, model


def report(results: dict[str, Any], out: Path) -> Path:
    """Write `report.html`; there are no plots of part 2 when no method finished."""
    verdicts = results["verify"]["verdicts"]
    sections = [
        Section(
            "Adapting DINOv2 ViT-S/14",
            text=(
                f"{_data_line(results)} The pretrained weights are frozen; every method trains a linear head on them. "
                f"NTK-Attention adds an infinitely long prefix to each of 12 layers as a trained state per head, "
                f"as many numbers as {summary.break_even(64, 64, 64):.1f} prefix tokens per layer. P-Tuning v2 "
                f"trains the prefix tokens themselves. Both start from a head that was trained alone for a few passes, "
                f"and take the same steps on the same images; linear probing (head only) takes more passes. Step "
                f"sizes were chosen by one rule for all methods, on held-back digits, whatever the images here."
            ),
            table=comparison.table(results),
            notes=[*_reasons(results), *_cautions(results)],
            plots=comparison.plots(results),
        ),
        verify.section(
            results["verify"],
            "Does training converge as the prefix grows?",
            f"{_held(verdicts)} verdicts on the convergence theorem hold on the quick ladder.",
        ),
    ]
    records = {name: results[name] for name in ("config", "environment", "data")}
    return write_report(
        out / "report.html",
        title="An infinite prefix at the cost of none",
        lead=f"{lead(results)} {_held(verdicts)} verdicts on the theorem behind it hold.",
        sections=sections,
        records={**records, "verify": results["verify"]["config"]},
    )


def lead(results: dict[str, Any]) -> str:
    """What came of NTK-Attention, beside the head alone and the best of the other methods.

    Example:
        >>> from experiments.demo import lead
        >>> row = {"method": "head only", "accuracy": 0.9, "interval": [0.88, 0.92]}
        >>> lead({"summary": [row], "runs": []})
        'NTK-Attention did not finish. The head alone reaches 90.0% (95 % interval 88.0% to 92.0%) on held-out images.'
    """
    found = {row["method"]: row for row in results["summary"]}
    if not found:
        return "No method finished training."
    if OURS not in found:
        if PROBED not in found:
            return "Neither NTK-Attention nor training the head alone finished."
        return f"NTK-Attention did not finish. The head alone reaches {_reached(found[PROBED])}."
    if PROBED not in found:
        return f"NTK-Attention reaches {_reached(found[OURS])}; training the head alone did not finish."
    told = f"NTK-Attention reaches {_reached(found[OURS])}, {_gain(results, PROBED)} against training the head alone"
    others = [row for name, row in found.items() if name not in (OURS, PROBED)]
    if not others:
        return f"{told}."
    best = max(others, key=lambda row: row["accuracy"])
    return f"{told} and {_gain(results, best['method'])} against {best['method']}."


def _gain(results: dict[str, Any], other: str) -> str:
    gain = summary.difference(results, OURS, other)
    return f"{100 * gain.value:+.1f} points ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def _source(config: DemoConfig) -> str:
    # With its folder named, a folder called "digits" is not mistaken for the data set of that name.
    return "digits" if config.data_dir is None else os.path.join(os.curdir, config.data_dir)


def _check_enough(data: ImageData, config: DemoConfig) -> None:
    rows, least = len(data.x_train), Config.batch_size
    if rows < least:
        raise ValueError(f"{data.name}: expected at least {least} training images, one batch, got {rows}. Add images.")
    classes = len(np.unique(data.y_train))
    if min(rows, config.train_images) < classes:
        raise ValueError(
            f"{data.name}: expected at least {classes} training images, one for each class, got "
            f"{config.train_images}. Raise --train-images."
        )


def _reached(row: dict[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['accuracy']:.1%} (95 % interval {low:.1%} to {high:.1%}) on held-out images"


def _held(verdicts: Sequence[dict[str, Any]]) -> str:
    return f"{sum(verdict['status'] == 'pass' for verdict in verdicts)} of {len(verdicts)}"


def _data_line(results: dict[str, Any]) -> str:
    return f"{results['data']['about']}."


def _reasons(results: dict[str, Any]) -> list[str]:
    return [f"{run['method']} failed: {run['failure']}" for run in results["failures"]]


def _cautions(results: dict[str, Any]) -> list[str]:
    told = summary.guesses(results)
    steps = [row["steps"] for row in results["summary"] if row["steps"] < _FEW_STEPS]
    if steps:
        told.append(
            f"A run of {min(steps)} training steps says little about a method. Take more images, or more passes with "
            "--epochs."
        )
    return told


def _for_terminal(table: Table) -> TerminalTable:
    # A name is no markup.
    shown = TerminalTable()
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def command(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line.

    Args:
        arguments: options; those of the process when absent.

    Returns:
        Exit status: 0 when all verdicts hold and all methods finished, 1 when not, 2 when it could not run, 130 when
        it was interrupted.

    Raises:
        SystemExit: with status 2, there is no such option, or one is out of range; with 0, help was asked for.
    """

    def run() -> int:
        config = tyro.cli(DemoConfig, args=arguments, prog="python -m experiments.demo")
        results = main(config)
        return 0 if results["verify"]["passed"] and not results["failures"] else 1

    return guard("demo", run)


if __name__ == "__main__":
    sys.exit(command())
