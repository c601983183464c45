"""What a prefix of M tokens costs in attention, as tokens and as a state: `python -m benchmarks.prefix_cost`.

Floating-point operations and working memory are the compiler's own count. Times are medians over rounds in which every
case runs once, so that a slow spell of the machine slows all of them, and are given relative to no prefix. A state runs
one program whatever M it was made from, so it is one case.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.timing import in_rounds
from ntkprefix import FeaturePrefix, TokenPrefix, attention
from ntkprefix.runs import environment, write_json


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
    inputs, cases = make_cases(config)
    compiled = [compile_case(prefix, inputs) for _, _, prefix in cases]
    seconds = in_rounds([run for run, _ in compiled], config.rounds)
    rows = [
        {
            "prefix": kind,
            "M": length,
            "numbers": sum(leaf.size for leaf in jax.tree.leaves(prefix)),
            **counted,
            "relative_time": [round(float(q), 3) for q in np.quantile(times / seconds[0], (0.25, 0.5, 0.75))],
        }
        for (kind, length, prefix), (_, counted), times in zip(cases, compiled, seconds, strict=True)
    ]
    results = {"config": asdict(config), "environment": environment(), "rows": rows}
    write_json(RESULTS / "prefix_cost.json", results)
    Console().print(_table(rows))
    return results


def make_cases(config: CostConfig) -> tuple[tuple[jax.Array, ...], list[tuple[str, int | None, Any]]]:
    """Query, key and value, and every case: its kind, M (None stands for any) and the prefix."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (1, config.queries, config.heads, config.width)
    inputs = tuple(jax.random.normal(key, shape) for key in keys)
    cases: list[tuple[str, int | None, Any]] = [("none", 0, None)]
    for length in config.lengths:
        tokens = jax.random.normal(jax.random.fold_in(keys[0], length), (2, length, config.heads, config.width))
        cases.append(("tokens", length, TokenPrefix(*tokens)))
    return inputs, [*cases, ("state", None, FeaturePrefix.from_tokens(*tokens))]


def compile_case(prefix: Any, inputs: tuple[jax.Array, ...]) -> tuple[Callable[[], Any], dict[str, int]]:
    """What runs attention with a prefix, and the compiler's count of its operations and working memory."""
    program = jax.jit(lambda prefix, q, k, v: attention(q, k, v, prefix=prefix)).lower(prefix, *inputs).compile()
    memory, cost = program.memory_analysis(), program.cost_analysis()
    counted = {"flops": int(cost["flops"]), "working_bytes": int(memory.temp_size_in_bytes)}
    return lambda: program(prefix, *inputs).block_until_ready(), counted


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Attention with a prefix of M tokens", title_justify="left")
    for column in ("prefix", "M", "numbers stored", "Mflop", "working MB", "time / no prefix (quartiles)"):
        table.add_column(column, justify="left" if column == "prefix" else "right")
    for row in rows:
        table.add_row(
            row["prefix"],
            length(row["M"]),
            f"{row['numbers']:,}",
            f"{row['flops'] / 1e6:,.0f}",
            f"{row['working_bytes'] / 1e6:,.1f}",
            ratio(row["relative_time"]),
        )
    return table


def length(M: int | None) -> str:
    """A prefix length for a table."""
    return "any" if M is None else f"{M:,}"


def ratio(quartiles: list[float]) -> str:
    """A median with its quartiles, to three digits."""
    low, middle, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in quartiles)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main(tyro.cli(CostConfig))
