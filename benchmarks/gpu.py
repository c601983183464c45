"""Attention with a state on an NVIDIA GPU, against cuDNN's without a prefix: `python -m benchmarks.gpu`.

As `benchmarks.attention`, in bfloat16, for inputs of equally many tokens in fewer and longer rows. A run is many calls
in a row, of which the last is waited for: one call takes less time than it takes to start it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.limits import gpu_limits
from benchmarks.timing import against, finished, in_rounds, many, ratio
from ntkprefix import FeaturePrefix, TokenPrefix, attention
from ntkprefix.runs import environment, write_json

CUDNN = "cuDNN by jax.nn, no prefix"


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """The attention layer, which is causal and in bfloat16.

    Attributes:
        queries: T = S, tokens of a row.
        tokens: of all rows together.
        all_at: T at which everything else that computes the same is timed too.
        width: H = Hv.
        model_width: N H.
        prefix_tokens: M of an exact prefix.
        rounds: how often each case is timed.
        calls: in a run.
    """

    queries: tuple[int, ...] = (4096, 16384, 1024)
    all_at: int = 4096
    tokens: int = 32768
    width: tuple[int, ...] = (64, 128)
    model_width: int = 2048
    prefix_tokens: int = 4096
    rounds: int = 5
    calls: int = 10


def main(config: GpuConfig) -> dict[str, Any]:
    """Time and print every case.

    Returns:
        What is written to `benchmarks/results/gpu.json`.
    """
    console, rates = Console(width=130), gpu_limits()
    results: dict[str, Any] = {"config": asdict(config), "environment": environment(), "limits": rates, "rows": []}
    console.print(rates)
    for width, queries, gradient in product(config.width, config.queries, (False, True)):
        found = measured(config, queries, width, gradient, rates)
        console.print(_table(queries, width, gradient, found))
        results["rows"] += [{"queries": queries, "width": width, "gradient": gradient, **row} for row in found]
        write_json(RESULTS / "gpu.json", results)
    return results


def measured(config, queries, width, gradient, rates) -> list[dict[str, Any]]:
    runs, bytes_of = {}, {}

    def compiled(case):
        name, function, prefix, inputs = case
        return name, jax.jit(_with_gradients(function) if gradient else function).lower(prefix, *inputs).compile()

    cases = list(cases_of(config, queries, width))
    with ThreadPoolExecutor() as pool:
        programs = dict(pool.map(compiled, cases))
    for name, _, prefix, inputs in cases:
        bytes_of[name] = int(programs[name].memory_analysis().temp_size_in_bytes)
        runs[name] = finished(many(programs[name], config.calls), prefix, *inputs)
    seconds = in_rounds(list(runs.values()), config.rounds) / config.calls
    # Two matrix products forward and five backward, of T^2 / 2 logits with H columns.
    operations = config.tokens * queries / 2 * config.model_width * 2 * (7 if gradient else 2)
    return [
        {
            "case": name,
            **against(times, seconds[0]),
            "working_bytes": bytes_of[name],
            "of_matmul_rate": float(f"{operations / float(sorted(times)[len(times) // 2]) / rates['operations']:.3g}"),
        }
        for name, times in zip(runs, seconds, strict=True)
    ]


def cases_of(config: GpuConfig, queries: int, width: int) -> Iterator[tuple[str, Callable[..., Array], Any, tuple]]:
    """Name, function of (prefix, query, key, value), prefix and inputs; the first is the measure."""
    keys, heads = jax.random.split(jax.random.key(0), 5), config.model_width // width
    shape = (config.tokens // queries, queries, heads, width)
    inputs = tuple(jax.random.normal(key, shape, jnp.bfloat16) for key in keys[:3])
    tokens = tuple(jax.random.normal(key, (config.prefix_tokens, heads, width), jnp.bfloat16) for key in keys[3:])
    state = FeaturePrefix.from_tokens(*tokens)

    def stock(_, query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")

    def ours(implementation):
        return lambda prefix, *inputs: attention(*inputs, prefix=prefix, is_causal=True, implementation=implementation)

    yield CUDNN, stock, None, inputs
    yield "pallas, no prefix", ours("pallas"), None, inputs
    for name in ("pallas", "cudnn"):
        yield f"{name}, a state", ours(name), state, inputs
    if queries == config.all_at:
        for name in ("blockwise", "xla"):
            yield f"{name}, no prefix", ours(name), None, inputs
            yield f"{name}, a state", ours(name), state, inputs
        yield f"cudnn, {config.prefix_tokens:,} tokens", ours("cudnn"), TokenPrefix(*tokens), inputs


def _with_gradients(function):
    def both(prefix, *inputs):
        out, backward = jax.vjp(function, prefix, *inputs)
        return out, backward(inputs[0])  # as good a gradient of the output as any

    return both


def _table(queries: int, width: int, gradient: bool, rows: list[dict[str, Any]]) -> Table:
    what = "output and gradients" if gradient else "output"
    table = Table(title=f"{queries:,} queries and keys, H = {width}, causal, {what}", title_justify="left")
    for column in ("attention", "ms", "time / cuDNN's (quartiles)", "of the matmul rate", "working MB"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for row in rows:
        table.add_row(
            row["case"],
            f"{row['milliseconds']:g}",
            ratio(row["relative_time"]),
            f"{row['of_matmul_rate']:.2f}",
            f"{row['working_bytes'] / 1e6:,.0f}",
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(GpuConfig))
