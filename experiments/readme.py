"""Write the README's tables from the committed result files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import RESULTS as BENCHMARKS
from benchmarks import prefix_cost
from experiments import RESULTS
from ntkprefix.runs import read_json, write_bytes

README = Path(__file__).parents[1] / "README.md"


def main() -> None:
    """Rewrite the tables in place."""
    write_bytes(README, render(README.read_text(encoding="utf-8")).encode())


def render(text: str) -> str:
    """The README with every table made anew.

    Raises:
        ValueError: a table's markers are missing.
    """
    parts: dict[str, Callable[[], str]] = {"cost": cost, "vision": vision, "verify": verify}
    for name, make in parts.items():
        found = re.search(rf"<!-- {name}: [^\n]*-->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
        if not found:
            raise ValueError(f"README.md: expected the markers of the table {name!r}.")
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
            f"with quartiles ({where['processor']}, {where['cores']} cores). A state is compared with an exact prefix "
            f"for its cost alone: how far its output is from the exact one is what `taylor_error_bound` is about. "
            f"Remade by `python -m benchmarks.prefix_cost`.",
        ]
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
            f"The state of NTK-Attention is the size of {tokens:g} prefix tokens per layer: it is the smaller one only "
            f"for prefixes that are longer. Starts and step sizes were chosen by one rule, on training digits "
            f"held back (`experiments/tuning.py`). Remade by `python -m experiments.results vision`.",
        ]
    )


def verify() -> str:
    """The verdicts of the full ladder."""
    results = read_json(RESULTS / "verify.json")
    lines = ["| verdict | finding | estimate | 95 % interval | band | |", "|---|---|---|---|---|---|"]
    for verdict in results["verdicts"]:
        for finding in verdict["findings"]:
            low, high = (_number(bound) for bound in finding["interval"])
            band = " to ".join(_number(bound) for bound in finding["band"])
            lines.append(
                f"| {verdict['name']} | {finding['name']} | {_number(finding['estimate'])} | {low} to {high} "
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
            f"{config['scaling_seeds']} for the requirement). "
            f"Remade by `python -m experiments.results verify`.",
        ]
    )


def _number(value: Any) -> str:
    # Seven digits are stored: what is smaller than their rounding is zero.
    return "none" if value is None else f"{0.0 if abs(value) < 1e-12 else value:.3g}"


if __name__ == "__main__":
    main()
