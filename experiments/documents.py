"""Write the tables of the README and of `docs/` from the committed result files: `python -m experiments.documents`."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from benchmarks import RESULTS as BENCHMARKS
from experiments import RESULTS, commands, plots
from experiments import real_kernels as real_models
from experiments.algebra import PATH as JOINED
from experiments.algebra_table import algebra
from experiments.compression import PATH
from experiments.compression_table import compression, sizes
from experiments.field_table import field_results, field_table, fields_table
from experiments.many_shot_table import many_shot
from experiments.scale import FAINT
from experiments.speed import attention_speed, cost, gpu_speed, kernels_speed, models_speed, scaling_speed
from experiments.token_sets_table import token_sets
from ntkprefix._options import default_told
from ntkprefix.commands import plan
from ntkprefix.report import number
from ntkprefix.runs import read_json, write_bytes
from theory.verify import cautions

_ROOT = Path(__file__).parents[1]
README = _ROOT / "README.md"
PREFIXES, THEORY, SPEED, COMPRESSION, ALGEBRA, PARALLEL, TASKS = (
    _ROOT / "docs" / f"{name}.md"
    for name in ("prefixes", "theory", "speed", "compression", "algebra", "parallel", "tasks")
)


@dataclass(frozen=True)
class DocumentsConfig:
    """Write tables of documents, and the pictures beside them, from the committed result files.

    Attributes:
        names: documents whose tables are written; pictures are drawn when none is named.
    """

    names: Annotated[
        tuple[Literal[*(path.name for path in TABLES)], ...], tyro.conf.Positional, default_told("all")
    ] = ()


def main(config: DocumentsConfig) -> None:
    """Rewrite the tables in place, and the pictures.

    Raises:
        OSError: a document or picture cannot be written.
        ValueError: a table's markers are missing.
    """
    for document in TABLES:
        if document.name in (config.names or (document.name,)):
            write_bytes(document, render(document).encode())
    if not config.names:
        _draw()


def _draw() -> None:
    pictures = {
        "real_kernels": plots.real_kernels(_real_kernels()),
        "cost": plots.cost(read_json(BENCHMARKS / "attention.json")),
        "compression": plots.compression(read_json(PATH)),
        "vision": plots.field(field_results("vision")),
        "texts": plots.field(field_results("language-smollm2")),
        "mathematics": plots.field(field_results("mathematics"), "loss"),
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


def texts_and_problems() -> str:
    """Every method in the mean over texts, and over word problems, by SmolLM2."""
    return fields_table([("language-smollm2", "texts", "right"), ("mathematics", "word problems", "loss")])


def language() -> str:
    """Every method on every set of texts, by a head on MiniLM."""
    return field_table("language")


def language_smollm2() -> str:
    """Every method on every set of texts, by the likelihood that SmolLM2 gives the answers."""
    return field_table("language-smollm2")


def mathematics() -> str:
    """Every method on every set of word problems, by the final answer that SmolLM2 writes."""
    return field_table("mathematics")


def mathematics_loss() -> str:
    """The same by the likelihood of the right answers."""
    return field_table("mathematics", "loss")


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
    README: (cost, vision, texts_and_problems, verify),
    PREFIXES: (scale,),
    THEORY: (real_kernels,),
    SPEED: (attention_speed, gpu_speed, models_speed, kernels_speed),
    COMPRESSION: (compression, sizes, many_shot, token_sets),
    ALGEBRA: (algebra,),
    PARALLEL: (scaling_speed, planned),
    TASKS: (language_smollm2, mathematics, mathematics_loss, language),
}


if __name__ == "__main__":
    sys.exit(commands.run("documents", DocumentsConfig, main, None))
