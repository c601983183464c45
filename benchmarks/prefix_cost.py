"""What a prefix of M tokens costs in attention, as tokens and as a state: `python -m benchmarks.prefix_cost`.

Floating-point operations and working memory are the compiler's own count. Times are medians over rounds in which every
case runs once, so that a slow spell of the machine slows all of them, and are given relative to no prefix.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from ntkprefix import FeaturePrefix, TokenPrefix, attention
from ntkprefix.runs import environment, progress, write_json


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """The attention layer, and the prefix lengths.

    Attributes:
        queries: T = S, tokens of the input.
        heads: N = K.
        width: H = Hv.
        lengths: prefix lengths M.
        rounds: how often each case is timed.
    """

    queries: int = 512
    heads: int = 6
    width: int = 64
    lengths: tuple[int, ...] = (16, 256, 4096, 65536)
    rounds: int = 15


def main(config: CostConfig) -> dict[str, Any]:
    """Count, time and print every case.

    Returns:
        What is written to `benchmarks/results/prefix_cost.json`.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (1, config.queries, config.heads, config.width)
    inputs = tuple(jax.random.normal(key, shape) for key in keys)
    cases: list[tuple[str, int, Any]] = [("none", 0, None)]
    for length in config.lengths:
        tokens = jax.random.normal(jax.random.fold_in(keys[0], length), (2, length, config.heads, config.width))
        cases += [("tokens", length, TokenPrefix(*tokens)), ("state", length, FeaturePrefix.from_tokens(*tokens))]
    compiled = [_compile(prefix, inputs) for _, _, prefix in cases]
    seconds = _time([run for run, _ in compiled], config.rounds)
    rows = [
        {
            "prefix": kind,
            "M": length,
            "numbers": sum(leaf.size for leaf in jax.tree.leaves(prefix)),
            **counted,
            "relative_time": round(float(np.median(times / seconds[0])), 3),
        }
        for (kind, length, prefix), (_, counted), times in zip(cases, compiled, seconds, strict=True)
    ]
    results = {"config": asdict(config), "environment": environment(), "rows": rows}
    write_json(RESULTS / "prefix_cost.json", results)
    Console().print(_table(rows))
    return results


def _compile(prefix: Any, inputs: tuple[jax.Array, ...]) -> tuple[Callable[[], Any], dict[str, int]]:
    program = jax.jit(lambda prefix, q, k, v: attention(q, k, v, prefix=prefix)).lower(prefix, *inputs).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    counted = {"flops": int(cost["flops"]), "working_bytes": int(memory.temp_size_in_bytes)}
    return lambda: program(prefix, *inputs).block_until_ready(), counted


def _time(runs: list[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Seconds, [cases, rounds]; the first, untimed round warms up."""
    seconds = np.empty((len(runs), rounds))
    with progress(transient=True) as bar:
        for number in bar.track(range(-1, rounds), description="timing"):
            for case, run in enumerate(runs):
                began = time.perf_counter()
                run()
                if number >= 0:
                    seconds[case, number] = time.perf_counter() - began
    return seconds


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Attention with a prefix of M tokens", title_justify="left")
    for column in ("prefix", "M", "numbers stored", "Mflop", "working MB", "time / no prefix"):
        table.add_column(column, justify="left" if column == "prefix" else "right")
    for row in rows:
        table.add_row(
            row["prefix"],
            f"{row['M']:,}",
            f"{row['numbers']:,}",
            f"{row['flops'] / 1e6:,.0f}",
            f"{row['working_bytes'] / 1e6:,.1f}",
            f"{row['relative_time']:.2f}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(CostConfig))
