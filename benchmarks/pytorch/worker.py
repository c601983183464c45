"""The side of `benchmarks.peers` that runs in a peer's environment: imports nothing but Python's own."""

import json
import sys
from collections.abc import Callable
from typing import Any

from memory import peak_bytes


def serve(version: str, prepare: Callable[..., Callable[[], Any]]) -> None:
    """Answer every line of the standard input by a line, until it ends; the first answer is the peer's version.

    Args:
        version: of what is compared with.
        prepare: takes what a line asks for and returns what runs it once. It may keep what it has made.
    """
    _answer(version)
    for line in sys.stdin:
        asked = json.loads(line)
        wanted = asked.pop("wanted")
        run = prepare(**asked)
        if wanted == "peak":
            run()
            _answer(peak_bytes(run))
        else:
            run()
            _answer("done")


def _answer(content: Any) -> None:
    print(json.dumps(content), flush=True)
