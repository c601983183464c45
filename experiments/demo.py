"""`make demo`: check the theorem quickly, then adapt a real pretrained model with an infinite prefix, and report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table as TerminalTable

import theory
from experiments import plots, summary, vision
from ntkprefix.report import Figure, Section, Table, write_report
from ntkprefix.runs import write_json
from theory.verify import table as verdict_table


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What to show.

    Attributes:
        data_dir: folder of images (`train/<class>/...` and `test/<class>/...`, or `<class>/...`) or a `.npz` file;
            scikit-learn's handwritten digits if absent.
        size: side that images are resized to, in pixels, a multiple of 14.
        epochs: passes over the training images.
        train_images: at most so many training images.
        test_images: at most so many held-out images.
        out: run folder; `runs/demo-<time>` if absent.
    """

    data_dir: Path | None = None
    size: int = 70
    epochs: int = 3
    train_images: int = 1000
    test_images: int = 800
    out: Path | None = None


def main(config: DemoConfig) -> dict[str, Any]:
    """Run both parts, print what was found, and write results, plots and the report.

    Returns:
        What is written to `results.json`.
    """
    console, began = Console(), time.perf_counter()
    out = config.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    console.rule("1. Does training converge as the prefix grows?")
    verified = theory.verify(theory.Config(quick=True, out=out / "verify"), show_progress=True)
    console.print(verdict_table(verified))
    console.rule("2. An infinite prefix in every layer of DINOv2 ViT-S/14")
    results = vision.main(
        vision.VisionConfig(
            data=str(config.data_dir or "digits"),
            size=config.size,
            epochs=config.epochs,
            train_images=config.train_images,
            test_images=config.test_images,
        )
    )
    rows = summary.by_method(results)
    results = {**results, "summary": rows, "verify": verified.results, "seconds": round(time.perf_counter() - began, 1)}
    write_json(out / "results.json", results)
    console.print(_for_terminal(summary.brief(rows), _data_line(results)))
    page = report(results, out)
    console.print(
        f"\nTook {results['seconds']:.0f} s. Look at [bold]{page}[/bold]; every number is in {out}/results.json."
    )
    return results


def report(results: dict[str, Any], out: Path) -> Path:
    """Draw the plots of part 2 and write `report.html`."""
    rows = results["summary"]
    loss = plots.loss_curves(results["runs"], out / "loss.png")
    accuracy = plots.accuracies(rows, out / "accuracy.png")
    ntk = next(row for row in rows if row["method"] == "NTK-Attention")
    baseline = next(row for row in rows if row["method"] == "head only")
    equal_tokens = summary.break_even(64, 64, 64)
    verdicts = results["verify"]["verdicts"]
    held = sum(verdict["status"] == "pass" for verdict in verdicts)
    sections = [
        Section(
            "Adapting DINOv2 ViT-S/14",
            text=(
                f"{_data_line(results)} The pretrained weights are frozen. NTK-Attention adds an infinitely long "
                f"prefix to each of 12 layers as a trained state Z, k per head: {ntk['adapter_parameters']:,} numbers, "
                f"as many as {equal_tokens:g} prefix tokens per layer. P-Tuning v2 trains 10 prefix tokens "
                f"per layer. Both take the same steps on the same images, linear probing more; each one's step size "
                f"was chosen from one list on held-back training digits."
            ),
            table=summary.table(rows),
            figures=[
                Figure(accuracy, "Accuracy on images that played no part in training or in the choice of step sizes."),
                Figure(loss, "Training loss. Linear probing trains on features computed once, for more passes."),
            ],
        ),
        Section(
            "Does training converge as the prefix grows?",
            text=f"{held} of {len(verdicts)} verdicts on the convergence theorem hold on the quick ladder.",
            table=Table(
                ["finding", "estimate", "95 % interval", "band", "verdict"],
                [
                    [
                        f"{verdict['name']}: {finding['name']}",
                        _number(finding["estimate"]),
                        " to ".join(_number(bound) for bound in finding["interval"]),
                        " to ".join(_number(bound) for bound in finding["band"]),
                        verdict["status"],
                    ]
                    for verdict in verdicts
                    for finding in verdict["findings"]
                ],
            ),
            figures=[
                Figure(out / "verify" / f"{verdict['name']}.png", _sentence(verdict["claim"])) for verdict in verdicts
            ],
        ),
    ]
    records = {name: results[name] for name in ("config", "environment", "data")}
    gain = 100 * (ntk["accuracy"] - baseline["accuracy"])
    return write_report(
        out / "report.html",
        title="An infinite prefix at the cost of none",
        lead=(
            f"NTK-Attention reaches {ntk['accuracy']:.1%} on held-out images, {gain:+.1f} points against training the "
            f"head alone. {held} of {len(verdicts)} verdicts on the theorem behind it hold."
        ),
        sections=sections,
        records={**records, "verify": results["verify"]["config"]},
    )


def _data_line(results: dict[str, Any]) -> str:
    data = results["data"]
    sizes = f"{data['train']:,} training and {data['test']:,} held-out images, {len(data['classes'])} classes"
    return f"{data['name']}: {sizes}."


def _for_terminal(table: Table, title: str) -> TerminalTable:
    shown = TerminalTable(title=title, title_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left")
    for row in table.rows:
        shown.add_row(*row)
    return shown


def _sentence(claim: str) -> str:
    return f"{claim[0].upper()}{claim[1:]}."


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main(tyro.cli(DemoConfig))
