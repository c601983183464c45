"""How much memory something takes while it runs, as the operating system sees it. Imports nothing but Python's own."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(run: Callable[[], Any]) -> int | None:
    """Most memory of this process during a run, beyond what it had before; None but on Linux.

    Call it with what has run before: compiling, or loading a library's code, takes memory too.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory that the process still holds would hide what is taken
        _CLEAR.write_text("5")
        before = _kilobytes("VmRSS")
        run()
        return 1024 * (_kilobytes("VmHWM") - before)
    except OSError:
        return None


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", _STATUS.read_text())
    if found is None:
        raise OSError(f"{_STATUS}: expected {name}.")
    return int(found.group(1))
