"""What every run leaves behind: JSON results that are whole or absent, and where they came from."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ntkprefix._version import __version__

# How the names of files end that are being written.
PARTIAL = ".ntkprefix-partial"

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "neural-tangents", "numpy")


def environment() -> dict[str, Any]:
    """Where a result was made: versions, device, commit and time.

    Returns:
        A JSON-ready dictionary. `commit` is None outside a git checkout and ends in `-dirty` when tracked files
        differ from it, other than result files and documents, which runs write.

    Example:
        >>> from ntkprefix import __version__
        >>> from ntkprefix.runs import environment
        >>> found = environment()
        >>> found["ntkprefix"] == __version__, sorted(found["packages"])
        (True, ['flax', 'jax', 'jaxlib', 'neural-tangents', 'numpy', 'optax'])
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
        OSError: as for `write_bytes`.
        ValueError: `content` holds NaN or an infinity.

    Example:
        >>> import tempfile
        >>> from ntkprefix.runs import write_json
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(write_json(f"{folder}/run/results.json", {"loss": 0.5}).read_text(), end="")
        ...     write_json(f"{folder}/run/results.json", {"loss": float("nan")})
        Traceback (most recent call last):
        ValueError: Out of range float values are not JSON compliant...
    """
    path = Path(path)
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
    return path


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all (see `write_json`).

    Args:
        path: file to write; its folder is made when absent.
        content: all of it.

    Raises:
        OSError: the file cannot be written; the message names it. What was there before is untouched.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ntkprefix.runs import write_bytes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(f"{folder}/new/state", b"12")
        ...     write_bytes(f"{folder}/new/state", b"345")
        ...     [(path.name, path.read_bytes()) for path in Path(folder, "new").iterdir()]
        [('state', b'345')]
    """
    path = Path(path)
    try:
        _replace(path, content)
    except OSError as error:
        raise _unwritten(path, error) from error


def check_writable(path: str | Path) -> None:
    """Find out whether a file can be written, before the work whose result it is.

    Its folder is made when absent; what a process that was killed left half-written of it is removed.

    Raises:
        OSError: it cannot; the message names it.

    Example:
        >>> import tempfile
        >>> from ntkprefix.runs import check_writable
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(f"{folder}/new/manual.safetensors")
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _only_a_file(path)
        tempfile.TemporaryFile(dir=path.parent).close()
        for left in path.parent.iterdir():
            if left.name.startswith(_start(path)) and left.name.endswith(PARTIAL):
                left.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: OSError) -> OSError:
    """What the system says of a file in the midst of writing does not name it."""
    reason = error.strerror or str(error)
    return OSError(f"{path}: cannot be written ({reason}). Make room, or choose another place.")


def _start(path: Path) -> str:
    """Of the name that a file has while it is written; names have at most 255 letters."""
    return f".{path.name[:100]}."


def _only_a_file(path: Path) -> None:
    """That what takes a file's name takes it from a file, if from anything: a device would be gone."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is there, and no file")


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _only_a_file(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_start(path), suffix=PARTIAL)
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


def read_json(path: str | Path, *, advice: str = "Delete it to start afresh.") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        advice: what to do with a file that is none, for the message; that for what a run can make again if not given.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a device or a pipe.
        ValueError: the file is not a JSON object; the message names it.

    Example:
        >>> import tempfile
        >>> from ntkprefix.runs import read_json, write_json
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_json(write_json(f"{folder}/results.json", {"loss": 0.5}))
        {'loss': 0.5}
    """
    path = Path(path)
    try:
        content = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, but it does not parse ({error}). {advice}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}. {advice}")
    return content


def read_file(path: Path) -> bytes:
    """All of a file, which has an end: a device or a pipe may have none.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a device or a pipe; the message names it.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.runs import read_file
        >>> read_file(Path("/dev/null"))
        Traceback (most recent call last):
        OSError: /dev/null: expected a file, got a folder, a device or a pipe. Name a file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file here, found none. Is the path right?")
    if not path.is_file():
        raise OSError(f"{path}: expected a file, got a folder, a device or a pipe. Name a file.")
    return path.read_bytes()


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    r"""Read a file of one JSON object per line, without a last line that is not whole.

    Args:
        path: of the file.

    Returns:
        The objects, in the order of the lines.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a device or a pipe.
        ValueError: a line that is no JSON object; the message names the file and the line.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ntkprefix.runs import read_json_lines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "metrics.jsonl")
        ...     _ = path.write_text('{"step": 1}\n{"step": 2}\n{"st')  # killed while it wrote
        ...     read_json_lines(path)
        [{'step': 1}, {'step': 2}]
    """
    return [content for _, content in _json_lines(Path(path))]


def _json_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    whole, _, _ = read_file(path).rpartition(b"\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: expected JSON, but it does not parse ({error}). Delete it, or take another."
            ) from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{path}, line {number}: expected a JSON object, got a {type(content).__name__}. Delete it, or take "
                "another."
            )
        yield line, content


class JsonLines:
    """A file of one JSON object per line, each written as it comes.

    Args:
        path: what it already holds stays, but for a last line that is not whole; its folder is made when absent.
        keep: of the lines there, those for which it is true stay; all if None.

    Raises:
        OSError: the path is of a folder, a device or a pipe, or cannot be written.
        ValueError: a line that is no JSON object; the message names the file and the line.

    Example:
        >>> import tempfile
        >>> from ntkprefix.runs import JsonLines
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = JsonLines(f"{folder}/metrics.jsonl")
        ...     lines.add(step=1, loss=0.5)
        ...     print(Path(lines.path).read_text(), end="")
        {"step": 1, "loss": 0.5}
    """

    def __init__(self, path: str | Path, *, keep: Callable[[dict[str, Any]], bool] | None = None):
        self.path = Path(path)
        lines = _json_lines(self.path) if self.path.exists() else ()
        kept = [line + b"\n" for line, content in lines if keep is None or keep(content)]
        write_bytes(self.path, b"".join(kept))

    def add(self, **content: Any) -> None:
        """Write one line.

        Raises:
            OSError: the file cannot be written.
            ValueError: NaN or an infinity.
        """
        line = json.dumps(content, allow_nan=False) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise _unwritten(self.path, error) from error


class _Rate(ProgressColumn):
    """Steps per second, or seconds per step where one takes more."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each")


def progress(**options: Any) -> Progress:
    """A progress bar with counts, rate, time taken and time left, the same everywhere.

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
        _Rate(),
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
    git = ["git", "-C", str(Path(__file__).parents[1])]
    written = [":(exclude)**/results/**", ":(exclude)docs/**", ":(exclude)*.md"]
    try:
        commit, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=False)
            for command in (
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no", "--", ".", *written],
            )
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
