"""Write the tables of the README and of `docs/` from the committed result files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import RESULTS as BENCHMARKS
from benchmarks import prefix_cost
from experiments import RESULTS, plots, summary
from experiments import real_kernels as real_models
from experiments.scale import FAINT
from ntkprefix.runs import read_json, write_bytes
from theory.verify import cautions

_ROOT = Path(__file__).parents[1]
README = _ROOT / "README.md"
PREFIXES, THEORY = _ROOT / "docs" / "prefixes.md", _ROOT / "docs" / "theory.md"


def main() -> None:
    """Rewrite the tables in place, and the picture that stands beside one."""
    for document in TABLES:
        write_bytes(document, render(document).encode())
    picture = io.BytesIO()
    plots.real_kernels(_real_kernels()).savefig(picture, dpi=120)
    write_bytes(THEORY.parent / "images" / "real_kernels.png", picture.getvalue())


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


def cost() -> str:
    """What a prefix costs in attention, as tokens and as a state."""
    results = read_json(BENCHMARKS / "prefix_cost.json")
    config, where = results["config"], results["environment"]
    lines = [
        "| prefix | M | numbers stored | Mflop | working MB | time, relative to no prefix |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['prefix']} | {prefix_cost.length(row['M'])} | {row['numbers']:,} | {row['flops'] / 1e6:,.0f} "
            f"| {row['working_bytes'] / 1e6:,.1f} | {prefix_cost.ratio(row['relative_time'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"{config['queries']} queries and keys, {config['heads']} heads of {config['width']}, forward, float32; "
            f"flops and memory as the compiler counts them, time as the median of ratios in {config['rounds']} rounds, "
            f"with quartiles ({where['processor']}, {where['cores']} cores). {_as_many_tokens(results['rows'])} It is "
            f"compared with an exact prefix for its cost alone: how far its output is from the exact one is what "
            f"`taylor_error_bound` is about. Remade by `python -m benchmarks.prefix_cost`.",
        ]
    )


def _as_many_tokens(rows: list[dict[str, Any]]) -> str:
    """What a state costs, in prefix tokens."""
    tokens = {row["M"]: row["relative_time"] for row in rows if row["prefix"] == "tokens"}
    low, middle, high = next(row["relative_time"] for row in rows if row["prefix"] == "state")
    dearer = min(M for M, quartiles in tokens.items() if quartiles[0] > high)
    alike = [f"{M:,}" for M, quartiles in tokens.items() if quartiles[0] <= high and low <= quartiles[2]]
    as_long = f", about as long as {' or '.join(alike)} tokens" if alike else ""
    return (
        f"A state takes {middle:.3g} times as long as no prefix, whatever length it stands for{as_long}; {dearer:,} "
        "tokens take longer, quartiles apart."
    )


def vision() -> str:
    """Accuracy, interval and size of every method on the digits."""
    results = read_json(RESULTS / "vision_digits.json")
    data, where, first = results["data"], results["environment"], results["summary"][0]
    config = results["config"]
    lines = [
        f"DINOv2 ViT-S/14 on scikit-learn's handwritten digits ({data['train']:,} training and {data['test']:,} "
        f"held-out images at {config['size']} x {config['size']}, {config['epochs']} epochs, but "
        f"{config['head_epochs']} for the head only, whose features are computed once; {first['seeds']} seeds, "
        f"mean and 95 % interval over seeds; {where['processor']}, {where['cores']} cores):",
        "",
        "| method | held-out accuracy | 95 % interval | trained numbers (besides the head's) | s per step |",
        "|---|---|---|---|---|",
    ]
    for row in results["summary"]:
        low, high = row["interval"]
        lines.append(
            f"| {row['method']} | {row['accuracy']:.3f} | {low:.3f} to {high:.3f} "
            f"| {row['adapter_parameters']:,} | {row['seconds_per_step']:.2g} |"
        )
    tokens = results["break_even_tokens"]
    return "\n".join(
        [
            *lines,
            "",
            f"{_gains(results)} The state of NTK-Attention is the size of {tokens:.1f} prefix tokens per layer: it is "
            f"the smaller one only for prefixes that are longer. Starts and step sizes were chosen by one rule, on "
            f"training digits held back (`experiments/tuning.py`); the head that trains with a prefix first trains "
            f"alone for {config['probe_epochs']} passes, with the same step size {config['head_step_size']:g} for all "
            f"methods. "
            f"Remade by `python -m experiments.results vision`.",
        ]
    )


def _gains(results: dict[str, Any]) -> str:
    """How NTK-Attention compares with the most accurate of the other methods, in pairs."""
    others = [row for row in results["summary"] if row["method"] != "NTK-Attention"]
    best = max(others, key=lambda row: row["accuracy"])["method"]
    gain = summary.difference(results, "NTK-Attention", best)
    surely = "more" if gain.low > 0 else "less" if gain.high < 0 else "neither surely more nor surely less"
    return (
        f"NTK-Attention is {surely} accurate than the best other method, {best}: {100 * gain.value:+.1f} points, 95 % "
        f"interval of pairs {100 * gain.low:+.1f} to {100 * gain.high:+.1f}."
    )


def transfer() -> str:
    """Accuracy of every method on other images, with the digits' settings."""
    results = read_json(RESULTS / "vision_transfer.json")
    sets = list(results.values())
    methods = [row["method"] for row in sets[0]["summary"]]
    lines = [
        "| method | "
        + " | ".join(f"{name}, {found['data']['test']:,} held out" for name, found in results.items())
        + " |",
        "|---" * (1 + len(sets)) + "|",
    ]
    for method in methods:
        rows = [next(row for row in found["summary"] if row["method"] == method) for found in sets]
        cells = [f"{row['accuracy']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})" for row in rows]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    trained = ", ".join(f"{found['data']['train']:,} of {name}" for name, found in results.items())
    seeds = sets[0]["summary"][0]["seeds"]
    command = f"python -m experiments.transfer SET ... --seeds {' '.join(map(str, sets[0]['config']['seeds']))}"
    of = "held-out images, one seed" if seeds == 1 else f"{seeds} seeds"
    return "\n".join(
        [
            *lines,
            "",
            f"Held-out accuracy and its 95 % interval over {of}; training images {trained}. Remade by `{command}` with "
            f"the folders or `.npz` files of the sets.",
            "",
            *(f"- {name}: {_gains(found)}" for name, found in results.items()),
            *(f"- {name}: {note}" for name, found in results.items() for note in summary.guesses(found)),
        ]
    )


def verify() -> str:
    """The verdicts of the full ladder."""
    results = read_json(RESULTS / "verify.json")
    lines = ["| verdict | finding | estimate | 95 % interval | band | |", "|---|---|---|---|---|---|"]
    for verdict in results["verdicts"]:
        for finding in verdict["findings"]:
            low, high = (summary.number(bound) for bound in finding["interval"])
            band = " to ".join(summary.number(bound) for bound in finding["band"])
            lines.append(
                f"| {verdict['name']} | {finding['name']} | {summary.number(finding['estimate'])} | {low} to {high} "
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


def _median_and_range(values: list[float]) -> str:
    middle = f"{np.median(values):.2g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2g} to {max(values):.2g})"


TABLES: dict[Path, tuple[Callable[[], str], ...]] = {
    README: (cost, vision, transfer, verify),
    PREFIXES: (scale,),
    THEORY: (real_kernels,),
}


if __name__ == "__main__":
    main()
