"""The tables of speed and memory, from the benchmarks' result files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import RESULTS, attention, gpu, kernels
from benchmarks.limits import seconds_at_least
from benchmarks.timing import ratio
from ntkprefix.runs import read_json


def cost() -> str:
    """What attention costs with a prefix and without, and what others' costs, for two lengths."""
    results = read_json(RESULTS / "attention.json")
    config, where = results["config"], results["environment"]
    lengths = (1024, 4096)
    rows = {(row["queries"], row["gradient"], row["case"]): row for row in results["rows"]}
    columns = [f"T = {length:,}{more}" for length in lengths for more in ("", ", gradient")]
    lines = [f"| attention | {' | '.join(columns)} | MB |", "|---" * (len(columns) + 2) + "|"]
    for name in _cases(results, lengths, gradient=False):
        cells = [rows.get((length, gradient, name)) for length in lengths for gradient in (False, True)]
        shown = ["" if cell is None else _ratio(cell) for cell in cells]
        lines.append(f"| {name} | {' | '.join(shown)} | {_megabytes(cells[-1])} |")
    torch = f"PyTorch {config['torch']}, " if config["torch"] else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Time relative to our attention without a prefix, median of {config['rounds']} rounds in which every case "
            f"has its turn: output alone, and output with all gradients, those of the prefix among them. T queries and "
            f"keys, causal, {config['heads']} heads of {config['width']}, float32. MB: working memory of the compiled "
            f"program for the longest T with gradients; of PyTorch the most that its process took ({torch}"
            f"{where['processor']}, {where['cores']} cores). {_of_longest(rows, max(lengths))} A state is compared "
            "with exact prefixes for its cost alone: how far its output is from the exact one is what "
            f"`taylor_error_bound` is about. {_on_a_gpu()} Other lengths, real models and the theory's kernels are in "
            "`docs/speed.md`. Remade by `make bench`.",
        ]
    )


def _cases(results: dict[str, Any], lengths: Sequence[int], *, gradient: bool) -> list[str]:
    rows = [row for row in results["rows"] if row["queries"] in lengths and row["gradient"] == gradient]
    return list(dict.fromkeys(row["case"] for row in rows))


def _megabytes(row: dict[str, Any] | None) -> str:
    memory = row and (row["working_bytes"] or row["peak_bytes"])
    return f"{memory / 1e6:,.0f}" if memory else ""


def attention_speed() -> str:
    """Attention of every length, and how much of the machine's limits it reaches."""
    results = read_json(RESULTS / "attention.json")
    config, rates = results["config"], results["limits"]
    rows = {(row["queries"], row["gradient"], row["case"]): row for row in results["rows"]}
    lengths = config["queries"]
    tables = []
    for gradient in (False, True):
        title = "with all gradients" if gradient else "output"
        lines = [
            f"| {title} | {' | '.join(f'T = {length:,}' for length in lengths)} |",
            "|---" * (len(lengths) + 1) + "|",
        ]
        for name in _cases(results, lengths, gradient=gradient):
            cells = [rows.get((length, gradient, name)) for length in lengths]
            shown = ["" if cell is None else ratio(cell["relative_time"]) for cell in cells]
            lines.append(f"| {name} | {' | '.join(shown)} |")
        milliseconds = [rows[length, gradient, attention.OURS]["milliseconds"] for length in lengths]
        lines.append(f"| {attention.OURS}, ms | {' | '.join(f'{each:g}' for each in milliseconds)} |")
        reached = [
            1e3
            * seconds_at_least(rates, queries=length, heads=config["heads"], width=config["width"], gradient=gradient)
            / each
            for length, each in zip(lengths, milliseconds, strict=True)
        ]
        lines.append(f"| {attention.OURS}, of the limit | {' | '.join(f'{each:.0%}' for each in reached)} |")
        tables += ["\n".join(lines), ""]
    longest = max(length for length in lengths if (length, True, attention.FORMULA) in rows) if config["torch"] else 0
    memory = (
        f" At T = {longest:,} with gradients the paper's formula takes "
        f"{_peak(rows, longest, attention.FORMULA) / _peak(rows, longest, attention.STATE):.0f} times the memory of a "
        "state, each as the operating system sees it."
        if longest
        else ""
    )
    return "\n".join(
        [
            *tables,
            f"Time relative to no prefix, median and quartiles of {config['rounds']} rounds. The limit is that of this "
            f"machine in the same run, {rates['operations'] / 1e9:.0f} billion operations a second in products of "
            f"matrices and {rates['exponentials'] / 1e9:.2g} billion exponentials, one after the other, for the logits "
            f"that causality leaves.{memory} Empty: what holds all logits at once, above T = 4,096; prefixes with "
            "T M above 2^27; and gradients of prefixes above 2^18. Remade by `make bench`.",
        ]
    )


def _on_a_gpu() -> str:
    """What a state costs for the longest rows that were measured."""
    results = read_json(RESULTS / "gpu.json")
    longest = max(results["config"]["queries"])
    took = {
        row["case"]: row["relative_time"][1]
        for row in results["rows"]
        if (row["queries"], row["gradient"], row["width"]) == (longest, False, 64)
    }
    return (
        f"On an {results['environment']['device']} in bfloat16, with T = {longest:,}, our kernel takes "
        f"{took['pallas, no prefix']:.2f} of cuDNN's time without a prefix and {took['pallas, a state']:.2f} of it "
        "with a state."
    )


def gpu_speed() -> str:
    """Attention on a GPU, against cuDNN's without a prefix."""
    results = read_json(RESULTS / "gpu.json")
    config, where, rates = results["config"], results["environment"], results["limits"]
    rows = {(row["queries"], row["gradient"], row["case"]): row for row in results["rows"] if row["width"] == 64}
    lengths = sorted(config["queries"])
    columns = [f"T = {length:,}{more}" for length in lengths for more in ("", ", gradient")]
    lines = [f"| attention | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for *_, name in rows):
        cells = [rows[length, gradient, name]["relative_time"] for length in lengths for gradient in (False, True)]
        lines.append(f"| {name} | {' | '.join(map(ratio, cells))} |")
    first = [rows[length, gradient, gpu.CUDNN] for length in lengths for gradient in (False, True)]
    milliseconds, reached = ([row[name] for row in first] for name in ("milliseconds", "of_matmul_rate"))
    lines.append(f"| {gpu.CUDNN}, ms | {' | '.join(f'{each:g}' for each in milliseconds)} |")
    lines.append(f"| {gpu.CUDNN}, of the limit | {' | '.join(f'{each:.0%}' for each in reached)} |")
    left_out = sorted(set(config["width"]) - {row["width"] for row in results["rows"]})
    ended = f" The run was ended before heads of {' and '.join(map(str, left_out))} had their turn." if left_out else ""
    return "\n".join(
        [
            *lines,
            "",
            f"Time relative to cuDNN's, median and quartiles of {config['rounds']} rounds: {config['tokens']:,} tokens "
            f"in rows of T, causal, {config['model_width'] // 64} heads of 64, bfloat16, {where['device']}, JAX "
            f"{where['packages']['jax']}. The limit is that of products of matrices in the same run, "
            f"{rates['operations'] / 1e12:.0f} trillion operations a second.{ended} Remade by "
            "`python -m benchmarks.gpu` on an NVIDIA GPU.",
        ]
    )


def scaling_speed() -> str:
    """A training step shared out between what there is."""
    results = read_json(RESULTS / "scaling.json")
    config, where = results["config"], results["environment"]
    lines = ["| prefix | | mesh | MB a device | ms | time / one core |", "|---|---|---|---|---|---|"]
    prefix = None
    for row in results["rows"]:
        shown, prefix = "" if row["prefix"] == prefix else row["prefix"], row["prefix"]
        held = f"{row['bytes_per_device'] / 1e6:.3g}"
        cells = (shown, row["case"], row["mesh"], held, f"{row['milliseconds']:g}", ratio(row["relative_time"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"A step of AdamW, median and quartiles of {config['rounds']} rounds in which every layout has its turn: a "
            f"Llama of {config['layers']} layers of width {config['width']}, {config['batch']} rows of "
            f"{config['length']} tokens on all devices together, float32. Each process is held to its own cores, and "
            f"processes meet on the machine's own network (gloo; {where['processor']}, {where['cores']} cores). MB a "
            "device: weights, what trains and its moments. Remade by `python -m benchmarks.scaling`.",
        ]
    )


def _peak(rows: dict[tuple[int, bool, str], dict[str, Any]], length: int, name: str) -> float:
    return rows[length, True, name]["peak_bytes"]


def kernels_speed() -> str:
    """The exact kernel of a finite prefix against neural_tangents'."""
    results = read_json(RESULTS / "kernels.json")
    config, where = results["config"], results["environment"]
    lines = ["| M | kernel | ms | time / ours | working MB | difference |", "|---|---|---|---|---|---|"]
    for row in results["rows"]:
        ours = row["case"] == kernels.OURS
        lines.append(
            f"| {row['M']:,} | {row['case']} | {row['milliseconds']:g} | {'' if ours else ratio(row['relative_time'])} "
            f"| {row['working_bytes'] / 1e6:,.1f} | {'' if ours else format(row['difference'], 'g')} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"n = {config['n']}, d = {config['d']}, float32; median of {config['rounds']} rounds "
            f"({where['processor']}, {where['cores']} cores). Remade by `python -m benchmarks.kernels`.",
        ]
    )


def models_speed() -> str:
    """Training steps and generation of real models beside PEFT."""
    results = read_json(RESULTS / "models.json")
    config, where = results["config"], results["environment"]
    lines = ["| workload | | ms | time / a state |", "|---|---|---|---|"]
    for workload in results["workloads"]:
        size = f"{workload['length']} {'pixels' if workload['model'] == 'dinov2' else 'tokens'}"
        title = f"{workload['what']}, {workload['model']}, {workload['batch']} x {size}"
        title += f", {workload['new']} new" if workload["new"] else ""
        for row in workload["rows"]:
            lines.append(f"| {title} | {row['case']} | {row['milliseconds']:g} | {ratio(row['relative_time'])} |")
            title = ""
    return "\n".join(
        [
            *lines,
            "",
            f"float32, AdamW, one batch; median and quartiles of {config['rounds']} rounds ({config['torch']}; "
            f"{where['processor']}, {where['cores']} cores). PEFT's prefix tuning takes no vision models. Remade by "
            "`python -m benchmarks.models`.",
        ]
    )


def _ratio(row: dict[str, Any]) -> str:
    middle = row["relative_time"][1]
    return f"{middle:.0f}" if middle >= 100 else f"{middle:.3g}"


def _of_longest(rows: dict[tuple[int, bool, str], dict[str, Any]], length: int) -> str:
    """How our attention compares with others' at one length."""
    sentences = []
    for other in (attention.STOCK, attention.FUSED):
        pair = [rows.get((length, gradient, other)) for gradient in (False, True)]
        if all(pair):
            times = [f"{row['relative_time'][1]:.2g}" for row in pair if row]
            sentences.append(f"At T = {length:,} {other}, takes {times[0]} times as long, {times[1]} with gradients.")
    pair = [rows.get((length, gradient, attention.FORMULA)) for gradient in (False, True)]
    if all(pair):
        state = [rows[length, gradient, attention.STATE] for gradient in (False, True)]
        times = [
            f"{row['relative_time'][1] / own['relative_time'][1]:.2g}"
            for row, own in zip(pair, state, strict=True)
            if row
        ]
        sentences.append(
            f"The paper's formula takes {times[0]} times as long as a state here, {times[1]} with gradients."
        )
    return " ".join(sentences)
