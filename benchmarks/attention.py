"""Attention with a prefix against everything that it could be instead: `python -m benchmarks.attention`.

Every case of one length runs in turns, ours and others', so that a slow spell of the machine slows all of them, and is
compared with our attention without a prefix in every round. `--torch PYTHON` names the interpreter of an environment
with PyTorch; without it PyTorch's cases are left out. `make bench` makes that environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.limits import limits
from benchmarks.peers import ATTENTION, started
from benchmarks.pytorch.memory import peak_bytes
from benchmarks.timing import against, finished, in_rounds, ratio
from ntkprefix import FeaturePrefix, MeasurePrefix, TokenPrefix, attention
from ntkprefix.runs import environment, write_json

OURS = "no prefix"
STATE = "a state"
STOCK = "jax.nn, no prefix"
FUSED = "PyTorch, fused, no prefix"
FORMULA = "PyTorch, the paper's formula"
# Of a head and its prefix tokens; more take minutes.
_MOST_LOGITS = 2**27
# Of a head, in what holds all of them in memory, several times over.
_MOST_AT_ONCE = 2**24
# Prefix tokens whose gradients are taken too; a million take 5 GB, and what trains them several times that.
_MOST_TRAINED = 2**18


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """The attention layer, which is causal, and what it is compared with.

    Attributes:
        queries: T = S, tokens of the input.
        heads: N = K.
        width: H = Hv.
        tokens: lengths M of exact prefixes, those with which T M is not over 2^27; gradients up to 2^18.
        clouds: of a measure, of rank 2.
        rounds: how often each case is timed.
        torch: interpreter of an environment with PyTorch.
    """

    queries: tuple[int, ...] = (128, 512, 1024, 4096, 8192)
    heads: int = 9
    width: int = 64
    tokens: tuple[int, ...] = (16, 64, 1024, 16384, 65536, 2**18, 2**20)
    clouds: int = 8
    rounds: int = 5
    torch: Path | None = None


def main(config: AttentionConfig) -> dict[str, Any]:
    """Time and print every case.

    Returns:
        What is written to `benchmarks/results/attention.json`.
    """
    rows, console, rates = [], Console(), limits(config.rounds)
    with started(config.torch, ATTENTION) as torch:
        for queries in config.queries:
            cases = {name: compiled(*case) for name, *case in cases_of(config, queries)}
            for gradient in (False, True):
                programs = {name: found[gradient] for name, found in cases.items() if gradient in found}
                found = _measured(config, queries, gradient, programs, torch)
                console.print(_table(queries, gradient, found))
                rows += [{"queries": queries, "gradient": gradient, **row} for row in found]
        version = None if torch is None else torch.version
    about = asdict(config) | {"torch": version}
    results = {"config": about, "environment": environment(), "limits": rates, "rows": rows}
    write_json(RESULTS / "attention.json", results)
    return results


def _measured(config, queries, gradient, programs, torch) -> list[dict[str, Any]]:
    runs = {name: run for name, (run, _) in programs.items()}
    for run in runs.values():
        run()
    peaks = {name: peak_bytes(run) for name, run in runs.items()}
    if torch is not None:
        sizes = {"queries": queries, "heads": config.heads, "width": config.width, "gradient": gradient}
        names = {FUSED: "fused"} | ({FORMULA: "formula"} if queries**2 <= _MOST_AT_ONCE else {})
        for name, case in names.items():
            runs[name] = torch.case(case=case, **sizes)
            peaks[name] = torch.peak_bytes(case=case, **sizes)
    seconds = in_rounds(list(runs.values()), config.rounds)
    return [
        {
            "case": name,
            **against(times, seconds[0]),
            "working_bytes": programs[name][1] if name in programs else None,
            "peak_bytes": peaks[name],
        }
        for name, times in zip(runs, seconds, strict=True)
    ]


def cases_of(config: AttentionConfig, queries: int) -> Iterator[tuple[str, Callable[..., Array], Any, tuple]]:
    """Name, function of (prefix, query, key, value), prefix and inputs of ours and JAX's; the first is the measure."""
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = tuple(jax.random.normal(key, (1, queries, config.heads, config.width)) for key in keys)

    def tokens(length):
        # NumPy's, which draws in place: a million tokens take 5 GB, and JAX's drawing three times that.
        random, shape = np.random.default_rng(length), (length, config.heads, config.width)
        return [jnp.asarray(random.standard_normal(shape, np.float32)) for _ in range(2)]

    def ours(prefix, query, key, value):
        return attention(query, key, value, prefix=prefix, is_causal=True)

    yield OURS, ours, None, inputs
    yield STATE, ours, FeaturePrefix.from_tokens(*tokens(4096)), inputs
    clouds = MeasurePrefix.from_tokens(*tokens(1024), components=config.clouds, rank=2)
    yield f"a measure of {config.clouds} clouds", ours, clouds, inputs
    for length in (length for length in config.tokens if length * queries <= _MOST_LOGITS):
        yield f"{length:,} tokens", ours, TokenPrefix(*tokens(length)), inputs

    def stock(_, query, key, value):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    if queries**2 <= _MOST_AT_ONCE:
        yield STOCK, stock, None, inputs


def compiled(function, prefix, inputs) -> dict[bool, tuple[Callable[[], Any], int]]:
    """What runs a case, output alone and with all gradients, and the working memory of its program in bytes.

    Gradients are left out for prefixes that are too long for them.
    """

    def both(prefix, *arrays):
        out, backward = jax.vjp(function, prefix, *arrays)
        return out, backward(arrays[0])  # as good a gradient of the output as any

    trains = not isinstance(prefix, TokenPrefix) or prefix.keys.shape[0] <= _MOST_TRAINED
    found: dict[bool, tuple[Callable[[], Any], int]] = {}
    for gradient, traced in ((False, function), (True, both))[: 1 + trains]:
        program = jax.jit(traced).lower(prefix, *inputs).compile()
        found[gradient] = finished(program, prefix, *inputs), int(program.memory_analysis().temp_size_in_bytes)
    return found


def _table(queries: int, gradient: bool, rows: list[dict[str, Any]]) -> Table:
    title = f"{queries:,} queries and keys, causal, " + ("output and gradients" if gradient else "output")
    table = Table(title=title, title_justify="left")
    for column in ("attention", "ms", "time / no prefix (quartiles)", "working MB", "peak MB"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for row in rows:
        memory = [row["working_bytes"], row["peak_bytes"]]
        table.add_row(
            row["case"],
            f"{row['milliseconds']:g}",
            ratio(row["relative_time"]),
            *("" if each is None else f"{each / 1e6:,.1f}" for each in memory),
        )
    return table


if __name__ == "__main__":
    main(tyro.cli(AttentionConfig))
