"""A training step shared out between processes and devices: `python -m benchmarks.scaling`.

Every layout has processes of its own (`benchmarks.scaling_process`), each held to cores of its own, so that two of them
on a core each are to one on one core what two machines are to one. They meet on this machine's own network. Layouts run
in turns. More devices than cores are simulated: such a row says what sharing out costs, not what it saves.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import RESULTS
from benchmarks.timing import against, in_rounds, ratio
from ntkprefix import checks
from ntkprefix.runs import environment, write_json


class Layout(NamedTuple):
    """How a step is shared out.

    Attributes:
        processes: on cores of their own.
        cores: of each process.
        devices: of each process.
        mesh: sizes of the mesh of all devices, as `ntkprefix.parallel.mesh_of` reads them.
    """

    processes: int
    cores: int
    devices: int
    mesh: str

    def name(self) -> str:
        """In words."""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        return f"{processes}, {self.cores} core{'s' if self.cores > 1 else ''} and {devices} each"


# The first is what the others are compared with.
LAYOUTS = (
    Layout(1, 1, 1, "data=1"),
    Layout(2, 1, 1, "data=2"),
    Layout(2, 1, 1, "tensor=2"),
    Layout(2, 1, 1, "prefix=2"),
    Layout(1, 2, 1, "data=1"),
    Layout(1, 2, 8, "data=8"),
    Layout(1, 2, 8, "data=4,tensor=2"),
    Layout(1, 2, 8, "data=2,tensor=2,prefix=2"),
)
TOKENS = 4096
# By name: the adapter, as `ntkprefix.adapters.spelt` reads it.
PREFIXES = {f"{TOKENS:,} tokens": f"tokens:length={TOKENS}", "a state": "features:share=0.1"}


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """What is run.

    Attributes:
        layouts: which of `LAYOUTS`, by number; 0, one process on one core, first.
        rounds: how often each is timed.
        width: of the model, of 8 heads, 4 of them of keys and values.
        layers: of the model.
        batch: rows of a step, on all devices together.
        length: tokens of a row, all of which are learnt.

    Raises:
        ValueError: layouts that there are not, or for which there are not enough cores.
    """

    layouts: tuple[int, ...] = tuple(range(len(LAYOUTS)))
    rounds: int = 5
    width: int = 256
    layers: int = 4
    batch: int = 32
    length: int = 64

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in ("rounds", "width", "layers", "batch", "length")}
        checks.at_least(1, "scaling", **sizes)
        if not self.layouts or self.layouts[0] != 0 or not all(0 <= each < len(LAYOUTS) for each in self.layouts):
            raise ValueError(
                f"scaling: expected layouts of 0 to {len(LAYOUTS) - 1}, and first 0, which the others are compared "
                f"with, got {self.layouts}."
            )
        cores, there = max(LAYOUTS[each].processes * LAYOUTS[each].cores for each in self.layouts), _cores()
        if cores > len(there):
            raise ValueError(f"scaling: expected {cores} cores for these layouts, got {len(there)}. Choose others.")


def main(config: ScalingConfig) -> dict[str, Any]:
    """Time and print every layout.

    Returns:
        What is written to `benchmarks/results/scaling.json`.

    Raises:
        OSError: a process ended before it was told to.
    """
    rows = []
    for prefix, adapter in PREFIXES.items():
        layouts = [LAYOUTS[number] for number in config.layouts]
        if adapter.startswith("features"):  # a state has no tokens to share out
            layouts = [layout for layout in layouts if "prefix" not in layout.mesh]
        with contextlib.ExitStack() as stack:
            groups = [stack.enter_context(_started(layout, adapter, config)) for layout in layouts]
            seconds = in_rounds([group.step for group in groups], config.rounds)
        for layout, group, times in zip(layouts, groups, seconds, strict=True):
            shared = layout._asdict() | {"bytes_per_device": group.bytes_per_device}
            rows.append({"prefix": prefix, "case": layout.name(), **shared, **against(times, seconds[0])})
        Console().print(_table(prefix, [row for row in rows if row["prefix"] == prefix]))
    results = {"config": asdict(config), "environment": environment(), "rows": rows}
    write_json(RESULTS / "scaling.json", results)
    return results


class _Group(NamedTuple):
    """Processes that take a step together.

    Attributes:
        step: takes one, and waits for all of them.
        bytes_per_device: of weights, what trains and its moments.
    """

    step: Callable[[], None]
    bytes_per_device: int


@contextlib.contextmanager
def _started(layout: Layout, adapter: str, config: ScalingConfig) -> Iterator[_Group]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores, processes = _cores(), []
    for number in range(layout.processes):
        asked = layout._asdict() | asdict(config) | {"adapter": adapter, "number": number, "port": port}
        own = cores[number * layout.cores : (number + 1) * layout.cores]
        command = [sys.executable, "-m", "benchmarks.scaling_process", json.dumps(asked | {"own": own})]
        flags = f"--xla_force_host_platform_device_count={layout.devices}"
        options: dict[str, Any] = {"env": os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}}
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options))

    def answers() -> list[Any]:
        lines = [process.stdout.readline() for process in processes if process.stdout]
        if not all(lines):
            raise OSError(f"scaling: expected an answer from every process of {layout.name()}, but one ended.")
        return [json.loads(line) for line in lines]

    def step() -> None:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("step\n")
            process.stdin.flush()
        answers()

    try:
        yield _Group(step, answers()[0])
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        # All of them before any is waited for: they end together.
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            with process:
                process.wait()


def _table(prefix: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"a training step with {prefix}", title_justify="left")
    for column in ("", "mesh", "MB a device", "ms", "time / one core (quartiles)"):
        table.add_column(column, justify="right" if column in ("MB a device", "ms") else "left")
    for row in rows:
        held = f"{row['bytes_per_device'] / 1e6:.3g}"
        table.add_row(row["case"], row["mesh"], held, f"{row['milliseconds']:g}", ratio(row["relative_time"]))
    return table


if __name__ == "__main__":
    main(tyro.cli(ScalingConfig))
