"""Other libraries' code, in environments of their own, as things that can be timed beside ours."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent / "pytorch"
ATTENTION, MODELS = _HERE / "attention.py", _HERE / "models.py"


@contextlib.contextmanager
def started(python: Path | None, program: Path) -> Iterator[Peer | None]:
    """A peer on all cores, or None where no interpreter is named.

    Raises:
        OSError: as for `Peer`.
    """
    if python is None:
        yield None
        return
    with Peer(python, program, threads=os.cpu_count() or 1) as peer:
        yield peer


class Peer:
    """A process of another environment that runs what it is told to.

    Args:
        python: the environment's interpreter.
        program: what runs there; it ends in `benchmarks.pytorch.worker.serve`.
        threads: how many it may use.

    Attributes:
        version: of the library.

    Raises:
        OSError: there is no such interpreter, or it lacks what the program imports.
    """

    def __init__(self, python: Path, program: Path, threads: int):
        self._process = subprocess.Popen(
            [str(python), str(program), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._program = program
        self.version: str = self._answer()

    def case(self, **asked: Any) -> Callable[[], None]:
        """What runs a case once and waits for it."""

        def run() -> None:
            self._ask("done", asked)

        return run

    def peak_bytes(self, **asked: Any) -> int | None:
        """As `benchmarks.pytorch.memory.peak_bytes` of a case that has run before."""
        return self._ask("peak", asked)

    def _ask(self, wanted: str, asked: dict[str, Any]) -> Any:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps({"wanted": wanted, **asked}) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline().strip()
        if not line:
            self._process.communicate()
            raise OSError(f"{self._program.name}: expected an answer from {self._process.args!r}, but it ended.")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.communicate()
