"""A run's folder: found writable before anything is computed, and written to by one run at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ntkprefix.runs import PARTIAL, read_json, write_json

try:
    import fcntl
except ImportError:  # Windows has other locks; runs there are not kept apart
    fcntl = None  # type: ignore[assignment]

# Of the run that a folder is of.
SETTINGS = "settings.json"


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
        KeyboardInterrupt: as it comes from the block, with a note of how to go on if anything is in the folder.
        OSError: it cannot be made, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> from ntkprefix.run_folder import run_folder
        >>> with tempfile.TemporaryDirectory() as place, run_folder(f"{place}/run") as folder:
        ...     folder.is_dir()
        True
    """
    folder = Path(folder)
    made = not os.path.exists(folder)  # names that are too long do not
    prepare_folder(folder)
    lock = _lock(folder)
    try:
        for pattern in (f".*{PARTIAL}", f"*/.*{PARTIAL}"):
            for left in folder.glob(pattern):
                left.unlink(missing_ok=True)
        yield folder
    except BaseException as stopped:
        if any(folder.glob("*/*")):
            if isinstance(stopped, KeyboardInterrupt):
                stopped.add_note(
                    f"What is done is kept in {folder}: the same command, with the same --out, goes on from there."
                )
        elif made and {path.name for path in folder.glob("*")} <= {SETTINGS}:
            (folder / SETTINGS).unlink(missing_ok=True)  # nothing came of it
            with suppress(OSError):
                folder.rmdir()
        raise
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def one_at_a_time(folder: str | Path) -> Iterator[None]:
    """Wait until no other process is in a block of this kind for the folder, and keep others waiting until it ends.

    Args:
        folder: made if it is not there. File systems without locks do not keep processes apart.

    Raises:
        OSError: it cannot be made, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> from ntkprefix.run_folder import one_at_a_time
        >>> with tempfile.TemporaryDirectory() as folder, one_at_a_time(folder):
        ...     pass  # read a file there, change what it holds, write it
    """
    folder = Path(folder)
    prepare_folder(folder)
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def same_run(folder: str | Path, settings: Mapping[str, Any], *, goes_on_from: str) -> None:
    """Write a run's settings into its folder, or find there that they are those of the run that was begun in it.

    Where there is nothing to go on from, what is begun anew may be another run.

    Args:
        folder: of the run.
        settings: all that the run's results depend on, ready for JSON.
        goes_on_from: the name of a folder in it, which runs write after their settings, and go on from.

    Raises:
        OSError: they cannot be written, or what should be a folder is a file.
        ValueError: other settings, or none beside what to go on from; the message names the folder and what differs.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from ntkprefix.run_folder import same_run
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same_run(folder, {"rank": 2}, goes_on_from="checkpoints")
        ...     (Path(folder) / "checkpoints" / "1").mkdir(parents=True)
        ...     same_run(folder, {"rank": 4}, goes_on_from="checkpoints")
        Traceback (most recent call last):
        ValueError: ...: expected the run that was begun there, but rank is 2 there and 4 here. Choose...
    """
    path, begun = Path(folder) / SETTINGS, Path(folder) / goes_on_from
    if begun.exists() and not begun.is_dir():
        raise OSError(f"{begun}: expected a folder, found a file. Move it away, or choose another with --out.")
    if not begun.is_dir() or not any(begun.iterdir()):
        write_json(path, settings)
        return
    if not path.exists():
        raise ValueError(
            f"{folder}: expected {SETTINGS} beside {goes_on_from}, which says what run it is, found none. Choose "
            f"another with --out, or delete {begun} to start afresh."
        )
    others = differing(read_json(path, advice=f"Delete {begun} to start afresh."), settings)
    if others:
        raise ValueError(
            f"{folder}: expected the run that was begun there, but {others}. Choose another with --out, or give the "
            "settings that it was begun with."
        )


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Settings that are others, with both values, in words; nothing if none are.

    Example:
        >>> from ntkprefix.run_folder import differing
        >>> differing({"rank": 2, "seed": 0}, {"rank": 4, "seed": 0})
        'rank is 2 there and 4 here'
    """
    names = (name for name in {**here, **there} if there.get(name) != here.get(name))
    return ", ".join(f"{name} is {there.get(name)!r} there and {here.get(name)!r} here" for name in names)


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """A descriptor of the folder that holds its lock; None where there are no locks."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
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
