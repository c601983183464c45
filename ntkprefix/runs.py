"""What every run leaves behind: JSON results that are whole or absent, and where they came from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ntkprefix._version import __version__

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "neural-tangents", "numpy")


def environment() -> dict[str, Any]:
    """Where a result was made: versions, device, commit and time.

    Returns:
        A JSON-ready dictionary. `commit` is None outside a git checkout and ends in `-dirty` when tracked files
        differ from it.
    """
    device = jax.devices()[0]
    return {
        "ntkprefix": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
        "device": device.device_kind,
        "platform": device.platform,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_json(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write JSON so that a reader, or a run that is killed, never meets half a file.

    The text goes to a temporary file in the same folder, which then takes the name in one step.

    Args:
        path: file to write; its folder is made when absent.
        content: JSON-ready mapping. NaN and infinities are refused: they are not JSON.

    Returns:
        The path written.

    Raises:
        ValueError: `content` holds NaN or an infinity.
    """
    path = Path(path)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
    return path


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all (see `write_json`).

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a JSON object; the message names it.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected JSON, but it does not parse ({error}). Delete it to start afresh."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}.")
    return content


def progress(**options: Any) -> Progress:
    """A progress bar with counts and times, the same everywhere.

    Example:
        >>> from ntkprefix.runs import progress
        >>> with progress(disable=True) as bar:
        ...     task = bar.add_task("working", total=2)
        ...     bar.advance(task)
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        **options,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    # describe, not rev-parse: it marks a working tree that differs from its commit.
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
