"""Whether files are still what was written: digests of all files of a folder, in one more."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ntkprefix.runs import PARTIAL, read_json, write_json

DIGESTS = "digests.json"


def has_digests(folder: Path) -> bool:
    """Whether what was written has been written down, which comes last."""
    return (folder / DIGESTS).is_file()


def write_digests(folder: Path) -> None:
    """Write down the digests of all files below a folder.

    Raises:
        OSError: they cannot be read, or the file not written.
    """
    write_json(folder / DIGESTS, {name: _digest(folder / name) for name in _files(folder)})


def check_digests(folder: Path) -> None:
    """Compare all files below a folder with what was written down.

    Raises:
        OSError: a file cannot be read, or nothing was written down.
        ValueError: a file is missing, another than it was, or none of those; the message names it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ntkprefix.digests import check_digests, write_digests
        >>> with tempfile.TemporaryDirectory() as place:
        ...     file = Path(place) / "numbers"
        ...     _ = file.write_text("1 2 3")
        ...     write_digests(file.parent)
        ...     check_digests(file.parent)
        ...     _ = file.write_text("1 2 4")
        ...     check_digests(file.parent)
        Traceback (most recent call last):
        ValueError: .../numbers: expected the file that was written, got another: it is damaged.
    """
    there, digests = _files(folder), read_json(folder / DIGESTS)
    for name in there:
        if name not in digests and not Path(name).name.startswith("."):  # which systems leave anywhere
            raise ValueError(f"{folder / name}: expected only files that were written down, found another.")
    for name, digest in digests.items():
        if name not in there:  # nor is a file read that lies elsewhere
            raise ValueError(f"{folder / name}: expected the file that was written, found none.")
        if _digest(folder / name) != digest:
            raise ValueError(f"{folder / name}: expected the file that was written, got another: it is damaged.")


def _files(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(PARTIAL)]
    return sorted(path.relative_to(folder).as_posix() for path in files if path.name != DIGESTS)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
