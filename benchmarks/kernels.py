"""The exact kernel of a finite prefix against `neural_tangents`' of the same model: `python -m benchmarks.kernels`.

Both in one run, in turns. Beyond a length the Jacobians that the other contracts take gigabytes; ours goes on alone.
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
from benchmarks.timing import against, finished, in_rounds, ratio
from ntkprefix.runs import environment, write_json
from theory import finite_ntk, init_stylized, stylized_model
from theory.neural_tangents_compat import empirical_ntk_fn

OURS = "finite_ntk"
# The ways of `neural_tangents` that work on current JAX: by contracting Jacobians, and by kernel-vector products.
PEERS = {"neural_tangents, Jacobians": 1, "neural_tangents, products": 2}


@dataclass(frozen=True, kw_only=True)
class KernelsConfig:
    """The kernel's sizes.

    Attributes:
        n: inputs.
        d: their width.
        lengths: M of the prefixes.
        most: the longest prefix on which neural_tangents is run: it holds n d times d M numbers.
        rounds: how often each is timed.
    """

    n: int = 32
    d: int = 16
    lengths: tuple[int, ...] = (2**8, 2**10, 2**12, 2**14, 2**18, 2**22)
    most: int = 2**14
    rounds: int = 5


def main(config: KernelsConfig) -> dict[str, Any]:
    """Time and print every length.

    Returns:
        What is written to `benchmarks/results/kernels.json`.
    """
    x = jax.random.normal(jax.random.key(0), (config.n, config.d)) / config.d**0.5
    rows = []
    for M in config.lengths:
        W, a = init_stylized(jax.random.key(M), M, config.d)
        cases = {OURS: finite_ntk}
        if config.most >= M:
            cases |= {name: _peer(way) for name, way in PEERS.items()}
        programs = {name: _compiled(kernel, W, a, x) for name, kernel in cases.items()}
        runs = [run for run, _ in programs.values()]
        ours, *others = (np.asarray(run()) for run in runs)
        seconds = in_rounds(runs, config.rounds)
        differences = [0.0, *(np.linalg.norm(ours - other) / np.linalg.norm(other) for other in others)]
        rows += [
            {
                "M": M,
                "case": name,
                **against(times, seconds[0]),
                "working_bytes": working,
                "difference": float(f"{difference:.2g}"),
            }
            for (name, (_, working)), times, difference in zip(programs.items(), seconds, differences, strict=True)
        ]
    results = {"config": asdict(config), "environment": environment(), "rows": rows}
    Console().print(_table(config, rows))
    write_json(RESULTS / "kernels.json", results)
    return results


def _peer(way: int) -> Callable:
    def kernel(W, a, x):
        return empirical_ntk_fn(lambda W, x: stylized_model(W, a, x), implementation=way)(x, None, W)

    return kernel


def _compiled(kernel: Callable, W, a, x) -> tuple[Callable[[], Any], int]:
    """What runs it, and its working memory in bytes."""
    program = jax.jit(kernel).lower(W, a, x).compile()
    return finished(program, W, a, x), int(program.memory_analysis().temp_size_in_bytes)


def _table(config: KernelsConfig, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"kernel of n = {config.n}, d = {config.d}", title_justify="left")
    for column in ("M", "", "ms", "time / ours (quartiles)", "working MB", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(
            f"{row['M']:,}",
            row["case"],
            f"{row['milliseconds']:g}",
            ratio(row["relative_time"]),
            f"{row['working_bytes'] / 1e6:,.1f}",
            f"{row['difference']:g}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(KernelsConfig))
