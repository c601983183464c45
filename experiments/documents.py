"""Write the tables of the README and of `docs/` from the committed result files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS as BENCHMARKS
from benchmarks.timing import ratio
from experiments import RESULTS, plots, summary, tables
from experiments import real_kernels as real_models
from experiments.algebra import PATH as JOINED
from experiments.algebra_table import algebra
from experiments.compression import PATH
from experiments.compression_table import compression
from experiments.fields import FIELDS, OURS, PROBED
from experiments.scale import FAINT
from experiments.speed import attention_speed, cost, gpu_speed, kernels_speed, models_speed
from ntkprefix.commands import plan
from ntkprefix.records import seeds
from ntkprefix.report import number
from ntkprefix.runs import read_json, write_bytes
from theory.verify import cautions

_ROOT = Path(__file__).parents[1]
README = _ROOT / "README.md"
PREFIXES, THEORY, SPEED, COMPRESSION, ALGEBRA, PARALLEL = (
    _ROOT / "docs" / f"{name}.md" for name in ("prefixes", "theory", "speed", "compression", "algebra", "parallel")
)


def main() -> None:
    """Rewrite the tables in place, and the picture that stands beside one."""
    for document in TABLES:
        write_bytes(document, render(document).encode())
    pictures = {
        "real_kernels": plots.real_kernels(_real_kernels()),
        "cost": plots.cost(read_json(BENCHMARKS / "attention.json")),
        "compression": plots.compression(read_json(PATH)),
        "vision": plots.field(field_results("vision")),
        "algebra": plots.algebra(read_json(JOINED)),
    }
    for name, figure in pictures.items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=120)
        write_bytes(_ROOT / "docs" / "images" / f"{name}.png", picture.getvalue())


def _real_kernels() -> dict[str, dict[str, Any]]:
    return {model: read_json(RESULTS / f"real_kernels_{model}.json") for model in real_models.MODELS}


def render(document: Path) -> str:
    """A document's text with every table made anew.

    Raises:
        ValueError: a table's markers are missing.
    """
    text = document.read_text(encoding="utf-8")
    for make in TABLES[document]:
        name = make.__name__
        found = re.search(rf"<!-- {name}: [^\n]*-->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
        if not found:
            raise ValueError(f"{document.name}: expected the markers of the table {name!r}.")
        text = f"{text[: found.start(1)]}{make()}\n{text[found.end(1) :]}"
    return text


def vision() -> str:
    """Every method on every set of images."""
    return field_table("vision")


def language() -> str:
    """Every method on every set of texts, by a head on MiniLM."""
    return field_table("language")


def field_table(field: str) -> str:
    """Every method on every task of a field that has a result file."""
    tables = field_results(field)
    methods = [row["method"] for row in tables[0]["rows"]]
    first, where, steps = tables[0], tables[0]["environment"], _step_times(field)
    columns = ["method", "trained numbers", *(table["task"] for table in tables)]
    columns += ["mean"] * (len(tables) > 1) + ["step"] * bool(steps) + ["MB"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in methods:
        row = _row(first, method)
        cells = [method, f"{row['adapter_parameters']:,}"]
        cells += [seeds.plus_minus(seeds.of_seeds(table, method)) for table in tables]
        cells += [seeds.plus_minus(seeds.of_field(tables, method))] * (len(tables) > 1)
        # Linear probing computes features once: its steps are another thing.
        cells += [steps.get(method, "")] * bool(steps)
        cells += [f"{row['step_megabytes']:,.0f}" if row["step_megabytes"] else ""]
        lines.append(f"| {' | '.join(cells)} |")
    sizes = "; ".join(table["rows"][0]["data"] for table in tables)
    times = (
        f"step: time of a training step over that of {OURS}, median and quartiles of rounds in which all take one, by "
        f"`python -m experiments.step_times {field}`; "
        if steps
        else ""
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{first['model']}: accuracy on held-out rows, mean over {len(first['seeds'])} seeds and half of its 95 % "
            f"interval over them; numbers trained besides the head's; {times}MB: working memory of the compiled step, "
            f"for {first['task']} ({where['processor']}, {where['cores']} cores). {sizes}. "
            f"Step sizes are chosen by one rule for all methods, on training rows held back; the head first trains "
            f"alone. Remade by `python -m experiments.tables {field} --data-root FOLDER`.",
            "",
            *(f"- {_ahead(tables, other)}" for other in methods if other not in (OURS, PROBED)),
            *(f"- {sentence}" for sentence in seeds.diverged(tables)),
        ]
    )


def field_results(field: str) -> list[dict[str, Any]]:
    """What the result files say of the tasks on which every method is measured, in the field's order."""
    paths = [tables.path_of(field, task) for task in FIELDS[field].tasks]
    found = [read_json(path) for path in paths if path.exists()]
    return [table for table in found if len(table["rows"]) == len(FIELDS[field].methods)]


def _step_times(field: str) -> dict[str, str]:
    """Of every method, if they have been measured."""
    path = tables.path_of(field, "step_times")
    rows = read_json(path)["rows"] if path.exists() else []
    return {row["method"]: ratio(row["relative_time"]) for row in rows}


def _row(table: dict[str, Any], method: str) -> dict[str, Any]:
    return next(row for row in table["rows"] if row["method"] == method)


def _ahead(tables: list[dict[str, Any]], other: str) -> str:
    """How NTK-Attention compares with another method, in pairs."""
    gain = summary.ahead(tables, OURS, other)
    where = "in the mean over tasks" if len(tables) > 1 else f"on {tables[0]['task']}"
    surely = "ahead of" if gain.low > 0 else "behind" if gain.high < 0 else "neither surely ahead of nor surely behind"
    return (
        f"{OURS} is {surely} {other}: {100 * gain.value:+.1f} points {where}, 95 % interval of pairs "
        f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}."
    )


def verify() -> str:
    """The verdicts of the full ladder."""
    results = read_json(RESULTS / "verify.json")
    lines = ["| verdict | finding | estimate | 95 % interval | band | |", "|---|---|---|---|---|---|"]
    for verdict in results["verdicts"]:
        for finding in verdict["findings"]:
            low, high = (number(bound) for bound in finding["interval"])
            band = " to ".join(number(bound) for bound in finding["band"])
            lines.append(
                f"| {verdict['name']} | {finding['name']} | {number(finding['estimate'])} | {low} to {high} "
                f"| {band} | {verdict['status']} |"
            )
    config = results["config"]
    longest = max(config["lengths"]).bit_length() - 1
    return "\n".join(
        [
            *lines,
            "",
            f"n = {config['n']}, d = {config['d']}, sigma = {config['sigma']}, "
            f"M to 2^{longest}, {config['seeds']} seeds ({config['kernel_seeds']} for the kernel at the start, "
            f"{config['scaling_seeds']} for the requirement). {' '.join(cautions(results['verdicts']))} "
            f"Remade by `python -m experiments.results verify`.",
        ]
    )


def scale() -> str:
    """How faint a prefix starts."""
    results = read_json(RESULTS / "scale.json")
    rows = results["heads"]
    lines = ["| layer | head | one scale | with a centre |", "|---|---|---|---|"]
    lines += [
        f"| {row['layer']} | {row['head']} | {row['constant']:.1f} | {row['centred']:.1f} |"
        for row in rows
        if min(row["constant"], row["centred"]) < FAINT
    ]
    faint = {name: sum(row[name] < FAINT for row in rows) for name in ("constant", "centred")}
    return "\n".join(
        [
            *lines,
            "",
            f"DINOv2 ViT-S/14 on {results['config']['images']} digits other than those that calibrate: every head of "
            f"{len(rows)} where one of the two is below {FAINT:g} nats, {faint['constant']} with one scale and "
            f"{faint['centred']} with a centre. Remade by `python -m experiments.results scale`.",
        ]
    )


def real_kernels() -> str:
    """Kernels of pretrained models in their prefix: distance to the limit, movement, error of the linearised model."""
    notes = []
    lines = [
        "| model | prefix per layer | trained numbers | distance to the limit | movement in training "
        "| error of the linearised model |",
        "|---|---|---|---|---|---|",
    ]
    for model, results in _real_kernels().items():
        config, where, rows = results["config"], results["environment"], results["rows"]
        for M in [*config["lengths"], None]:
            chosen = [row for row in rows if row["M"] == M]
            cells = (
                _median_and_range([row["distance"] for row in chosen]) if M else "",
                _median_and_range([row["kernel_movement"] for row in chosen]),
                _median_and_range([row["error"]["test"] for row in chosen]),
            )
            name = f"{M:,} tokens" if M else "state (Z, k)"
            lines.append(f"| {model} | {name} | {chosen[0]['parameters']:,} | {' | '.join(cells)} |")
        slopes = real_models.slopes(results)
        notes.append(
            f"{model} on {results['data']}; {config['steps']} steps of gradient descent of size "
            f"{config['step_size']:g}/lambda_max; over the lengths, the distance falls as "
            f"M^{np.mean(slopes):.2f} (draws: {min(slopes):.2f} to {max(slopes):.2f}) ({where['processor']})."
        )
    command = "python -m experiments.real_kernels"
    told = f"Median and range over {config['seeds']} draws of the prefix. {' '.join(notes)}"
    return "\n".join([*lines, "", f"{told} Remade by `{command} dinov2` and `{command} minilm --data-dir FOLDER`."])


def planned() -> str:
    """Steps of training on machines that are not here, from the formulas of `ntkprefix plan`."""
    config = plan.Config()
    lines = [f"| {' | '.join(plan.COLUMNS)} |", "|---" * len(plan.COLUMNS) + "|"]
    lines += [f"| {' | '.join(plan.cells(name, row))} |" for name, row in plan.plans(config)]
    return "\n".join([*lines, "", f"{config.model}, one device's part. {plan.told(config)} Made by `ntkprefix plan`."])


def _median_and_range(values: list[float]) -> str:
    middle = f"{np.median(values):.2g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2g} to {max(values):.2g})"


TABLES: dict[Path, tuple[Callable[[], str], ...]] = {
    README: (cost, vision, language, verify),
    PREFIXES: (scale,),
    THEORY: (real_kernels,),
    SPEED: (attention_speed, gpu_speed, models_speed, kernels_speed),
    COMPRESSION: (compression,),
    ALGEBRA: (algebra,),
    PARALLEL: (planned,),
}


if __name__ == "__main__":
    main()
