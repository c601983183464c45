"""How attention's work is best cut into blocks on this machine: `python -m benchmarks.block_sizes`.

For every shape, output and gradient under several cuts, in rounds in which every cut has its turn, relative to the cut
that `ntkprefix.kernels.blocks.blocks_for` chooses. The rule there was written from such a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.timing import in_rounds
from ntkprefix.kernels import blockwise, dense
from ntkprefix.kernels.blocks import Blocks, blocks_for
from ntkprefix.partial import Partial
from ntkprefix.runs import environment, write_json

_WIDTH = 64


class Shape(NamedTuple):
    """Sizes of one call: B, T, S, N, K, and whether it is causal."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    causal: bool


# Decoders of 9 heads, with and without groups, long and short, chunked prefill; encoders of 6 heads in batches.
SHAPES = (
    Shape(1, 256, 256, 9, 9, True),
    Shape(1, 512, 512, 9, 9, True),
    Shape(1, 1024, 1024, 9, 9, True),
    Shape(2, 1024, 1024, 9, 3, True),
    Shape(1, 512, 4096, 9, 3, True),
    Shape(1, 2048, 2048, 9, 9, True),
    Shape(1, 4096, 4096, 9, 9, True),
    Shape(1, 8192, 8192, 9, 9, True),
    Shape(8, 256, 256, 6, 6, False),
    Shape(8, 512, 512, 6, 6, False),
    Shape(64, 64, 64, 6, 6, False),
)
CUTS = (
    Blocks(256, 256, apart=True),
    Blocks(256, 512, apart=True),
    Blocks(512, 512, apart=True),
    Blocks(512, 1024, apart=True),
    Blocks(1024, 1024, apart=True),
    Blocks(256, 256, apart=False),
    Blocks(512, 512, apart=False),
)


@dataclass(frozen=True, kw_only=True)
class BlockSizesConfig:
    """How carefully.

    Attributes:
        rounds: how often each cut is timed on each shape.
        longest: shapes with more queries are left out.
    """

    rounds: int = 5
    longest: int = 8192


def main(config: BlockSizesConfig) -> dict[str, Any]:
    """Time and print every shape.

    Returns:
        What is written to `benchmarks/results/block_sizes.json`.
    """
    console, rows = Console(), []
    for shape in SHAPES:
        if shape.queries <= config.longest:
            rows.append(_measured(shape, config.rounds))
            console.print(_table(rows[-1]))
    results = {"config": asdict(config), "environment": environment(), "rows": rows}
    write_json(RESULTS / "block_sizes.json", results)
    return results


def _measured(shape: Shape, rounds: int) -> dict[str, Any]:
    chosen = blocks_for(jax.default_backend(), *shape[:5])
    cuts = [chosen, *(cut for cut in _distinct(shape) if cut != chosen)]
    kernels: dict[str, tuple[Callable[..., Partial], dict[str, Any]]] = {
        str(tuple(asdict(cut).values())): (blockwise.partial_attention, {"blocks": cut}) for cut in cuts
    }
    if shape.queries * shape.keys <= 2**24:
        kernels["all logits"] = dense.partial_attention, {}
    found = {}
    for what in ("output", "gradient"):
        runs = [_run(shape, kernel, options, gradient=what == "gradient") for kernel, options in kernels.values()]
        seconds = in_rounds(runs, rounds)
        found[what] = {
            name: {
                "milliseconds": float(f"{1e3 * np.median(times):.3g}"),
                "relative_time": round(float(np.median(times / seconds[0])), 3),
            }
            for name, times in zip(kernels, seconds, strict=True)
        }
    return {"shape": shape._asdict(), "chosen": next(iter(kernels)), **found}


def _distinct(shape: Shape) -> list[Blocks]:
    """Cuts that differ once they are no larger than the shape."""
    smallest = {(min(cut.queries, shape.queries), min(cut.keys, shape.keys), cut.apart): cut for cut in reversed(CUTS)}
    return list(smallest.values())[::-1]


def _run(shape, kernel, options, *, gradient):
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = ((shape.queries, shape.heads), (shape.keys, shape.kv_heads), (shape.keys, shape.kv_heads))
    inputs = tuple(
        jax.random.normal(key, (shape.batch, length, heads, _WIDTH))
        for key, (length, heads) in zip(keys, sizes, strict=True)
    )
    options = options | {
        "scale": _WIDTH**-0.5,
        "is_causal": shape.causal,
        "query_offset": shape.keys - shape.queries,
    }

    def output(*arrays):
        return kernel(*arrays, **options).normalise()

    def both(*arrays):
        out, backward = jax.vjp(output, *arrays)
        return backward(out)

    program = jax.jit(both if gradient else output).lower(*inputs).compile()
    return lambda: jax.block_until_ready(program(*inputs))


def _table(row: dict[str, Any]) -> Table:
    table = Table(title=str(row["shape"]), title_justify="left")
    for column in ("queries, keys, apart", "output, ms", "of the chosen", "gradient, ms", "of the chosen"):
        table.add_column(column, justify="left" if "queries" in column else "right")
    for name, output in row["output"].items():
        gradient = row["gradient"][name]
        table.add_row(name, *(str(value) for found in (output, gradient) for value in found.values()))
    return table


if __name__ == "__main__":
    main(tyro.cli(BlockSizesConfig))
