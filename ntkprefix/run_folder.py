"""A run's folder: found writable before anything is computed, and written to by one run at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ntkprefix.runs import PARTIAL

try:
    import fcntl
except ImportError:  # Windows has other locks; runs there are not kept apart
    fcntl = None  # type: ignore[assignment]


def prepare_folder(folder: str | Path) -> None:
    """Make a folder, and find out whether files can be written there.

    Raises:
        OSError: it cannot be made, or nothing can be written there; the message names it.

    Example:
        >>> import tempfile
        >>> from ntkprefix.run_folder import prepare_folder
        >>> with tempfile.TemporaryDirectory() as place:
        ...     prepare_folder(f"{place}/runs/first")
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be made a run folder ({error.strerror}). Choose another with --out."
        ) from error


@contextmanager
def run_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that is this run's alone until the block ends, however it ends.

    The system lets go of it when the process is gone, so a run that was killed is no obstacle to the one that goes on
    with it. What was half-written then is removed. File systems without locks do not keep runs apart.

    Args:
        folder: made if it is not there.

    Yields:
        The folder.

    Raises:
        BlockingIOError: another run has it.
        OSError: it cannot be made, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> from ntkprefix.run_folder import run_folder
        >>> with tempfile.TemporaryDirectory() as place, run_folder(f"{place}/run") as folder:
        ...     folder.is_dir()
        True
    """
    folder = Path(folder)
    prepare_folder(folder)
    lock = _lock(folder)
    try:
        for pattern in (f".*{PARTIAL}", f"*/.*{PARTIAL}"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        yield folder
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor of the folder that holds its lock; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(
            f"{folder}: expected a folder that no other run is writing to, but one is. Wait until it has ended, or "
            "choose another with --out."
        ) from error
    except OSError:  # some network file systems have none
        os.close(descriptor)
        return None
    return descriptor
