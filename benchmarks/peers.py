"""Other libraries' code, in environments of their own, as things that can be timed beside ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("torch_attention.py")


class TorchAttention:
    """A process that runs PyTorch's attention when told to.

    Args:
        python: the interpreter of an environment with PyTorch.
        threads: how many it may use.

    Raises:
        OSError: there is no such interpreter, or it has no PyTorch.
    """

    def __init__(self, python: Path, threads: int):
        self._process = subprocess.Popen(
            [str(python), str(WORKER), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._answer()

    def case(self, name: str, *, queries: int, heads: int, width: int, gradient: bool) -> Callable[[], None]:
        """What runs a case once and waits for it."""
        asked = {"case": name, "queries": queries, "heads": heads, "width": width, "gradient": gradient}

        def run() -> None:
            stdin = self._process.stdin
            assert stdin is not None
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            self._answer()

        return run

    def _answer(self) -> str:
        stdout = self._process.stdout
        assert stdout is not None
        line = stdout.readline().strip()
        if not line:
            self._process.communicate()
            raise OSError(f"{WORKER.name}: expected an answer from {self._process.args!r}, but it ended.")
        return line

    def __enter__(self) -> TorchAttention:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.communicate()
