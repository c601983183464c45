"""Runs that were stopped go on where they were: parameters, optimiser and history, kept by orbax."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from ntkprefix import checks
from ntkprefix.digests import DIGESTS, check_digests, has_digests, write_digests
from ntkprefix.hosts import agreed, by_first
from ntkprefix.parallel import off_mesh
from ntkprefix.runs import PARTIAL
from ntkprefix.train.config import TrainConfig

# Of the time, one part in so many is spent on checkpoints.
_SHARE = 20
# What lies in a checkpoint before its digests do.
_OF_ORBAX = {"arrays", "history", "_CHECKPOINT_METADATA", "commit_success.txt"}


class Saved(NamedTuple):
    """All that a run is, between two steps.

    Attributes:
        arrays: parameters, optimiser state and the best parameters so far.
        losses: of every step done.
        validation: validation losses so far.
        seconds: time in steps.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix.train import Checkpoints, TrainConfig
        >>> from ntkprefix.train.checkpoints import Saved
        >>> arrays = {"params": jnp.ones(3), "state": jnp.zeros(3), "best": jnp.ones(3)}
        >>> config = TrainConfig(epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Checkpoints(folder).save(Saved(arrays, [0.5, 0.25], [], 0.1), config, rows=8)
        ...     start = Saved({name: jnp.zeros(3) for name in arrays}, [], [], 0.0)
        ...     found = Checkpoints(folder).restore(start, config, rows=8)
        >>> found.losses, found.arrays["params"].tolist()
        ([0.5, 0.25], [1.0, 1.0, 1.0])
    """

    arrays: PyTree
    losses: list[float]
    validation: list[float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """A folder in which a run is kept: at its start, after every epoch, and within epochs.

    A checkpoint is written beside the last one and then takes its name in one step, so a run that is killed while
    writing has the one before. What is kept goes on to the same last bit on the same machine, with the same packages.
    Several processes that train together need a folder that all of them see.

    Attributes:
        folder: of one run; made when absent.
        every: steps between checkpoints within an epoch. With 0 there are as many as a twentieth of the time suffices
            for, so that what is lost is a step, or of shorter ones up to twenty times what a checkpoint takes; none for
            several processes, whose clocks differ.

    Raises:
        TypeError: `every` is not an integer.
        ValueError: it is negative.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import Checkpoints, TrainConfig, train
        >>> x, config = np.ones(32, np.float32), TrainConfig(epochs=3)
        >>> loss = lambda w, _, x: jnp.mean((w - x) ** 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = train(loss, jnp.zeros(()), None, (x,), config, checkpoints=Checkpoints(folder))
        ...     again = train(loss, jnp.zeros(()), None, (x,), config, checkpoints=Checkpoints(folder))
        >>> bool(first.params == again.params)  # the second trained nothing
        True
    """

    folder: str | Path
    every: int = 0

    def __post_init__(self):
        checks.at_least(0, "Checkpoints", every=self.every)

    def due(self, steps: int, since: float, took: float) -> bool:
        """Whether a checkpoint within an epoch comes after that many steps.

        Args:
            steps: done.
            since: seconds from the last checkpoint on.
            took: seconds that it took to write.
        """
        if self.every:
            return steps % self.every == 0
        return jax.process_count() == 1 and since >= took * (_SHARE - 1)

    def save(self, saved: Saved, config: TrainConfig, rows: int) -> None:
        """Write a checkpoint, whole or not at all, and forget all but the one before it.

        Raises:
            OSError: it cannot be written.
        """
        told = {
            "run": _run(saved, config, rows),
            "losses": saved.losses,
            "validation": saved.validation,
            "seconds": saved.seconds,
        }
        self._check_room(saved)
        with off_mesh(), self._manager() as manager:
            arguments = {"arrays": ocp.args.StandardSave(saved.arrays), "history": ocp.args.JsonSave(told)}
            try:
                with _quiet():
                    manager.save(len(saved.losses), args=ocp.args.Composite(**arguments), force=True)
            except jax.errors.JaxRuntimeError:  # another process is gone, say
                raise
            except Exception as error:  # orbax passes on what tensorstore raises, a ValueError on a full disk
                _end_if_interrupted(error)
                raise self._unwritten(saved, _first_line(error)) from error
        by_first(lambda: write_digests(Path(self.folder) / str(len(saved.losses))))

    def _check_room(self, saved: Saved) -> None:
        """Where orbax meets the disk's end, what it had not yet done goes on to fail on the screen."""
        takes = sum(leaf.nbytes for leaf in jax.tree.leaves(saved.arrays))
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if takes > free:
            raise self._unwritten(saved, f"it takes {takes / 1e6:,.3g} MB, and there is room for {free / 1e6:,.3g} MB")

    def _unwritten(self, saved: Saved, why: str) -> OSError:
        where = Path(self.folder) / str(len(saved.losses))
        return OSError(
            f"{where}: cannot be written ({why}). Make room: the same call then goes on from the checkpoint before."
        )

    def newest(self, *, most: int | None = None) -> Path | None:
        """The newest checkpoint, of so many steps at most; None where there is none. One process may ask alone."""
        # Not by orbax, where all processes wait for one another.
        whole = [path for path in self._named() if has_digests(path) and (most is None or int(path.name) <= most)]
        return max(whole, key=lambda path: int(path.name), default=None)

    def _named(self) -> list[Path]:
        """All that have a checkpoint's name, which is given before the digests are written: those make it whole."""
        return [path for path in Path(self.folder).glob("*/") if path.name.isdecimal()]

    def restore(self, like: Saved, config: TrainConfig, rows: int) -> Saved | None:
        """The newest checkpoint, or None where there is none.

        Args:
            like: the run at its start: its arrays have the shapes to be read.
            config: of the run.
            rows: of data.

        Raises:
            ValueError: the checkpoint is damaged, or that of another run, or there is something else by the name of
                one; the message names the folder and what differs.
        """
        if not agreed(Path(self.folder).is_dir):
            return None
        by_first(self._tidy)
        with off_mesh(), self._manager() as manager:
            newest = manager.latest_step()
            if newest is None:
                return None
            where = Path(self.folder) / str(newest)
            # Orbax reads all arrays at once, and where one cannot be, others go on to fail on the screen.
            try:
                check_digests(where)
            except ValueError as error:
                raise ValueError(f"{error} {self._instead(newest)}") from error
            told = self._read(manager, newest, where, history=ocp.args.JsonRestore())["history"]
            wanted = _run(like, config, rows)
            found = told.get("run") if isinstance(told, dict) else None
            if not isinstance(found, dict):
                raise ValueError(f"{where}: expected a training checkpoint, got something else. Choose another folder.")
            kept = (told.get("losses"), told.get("validation"), [told.get("seconds")])
            if not all(map(_numbers, kept)) or len(told["losses"]) != newest:
                raise ValueError(
                    f"{where}: expected the losses of {newest} steps, validation losses and seconds, got something "
                    f"else. {self._instead(newest)}"
                )
            if found != wanted:
                differing = [name for name in wanted if found.get(name) != wanted[name]]
                name = differing[0] if differing else "the description"
                raise ValueError(
                    f"{where}: expected a checkpoint of this run, but {name} is {found.get(name)} there and "
                    f"{wanted.get(name)} here. Choose another folder, or delete this one to start afresh."
                )
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like.arrays)
            arrays = self._read(manager, newest, where, arrays=ocp.args.StandardRestore(abstract))["arrays"]
        return Saved(arrays, told["losses"], told["validation"], told["seconds"])

    def _tidy(self) -> None:
        """Remove what a killed run left half-written. Orbax would do so too, but later, in the midst of a save."""
        for left in Path(self.folder).glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in Path(self.folder).glob(f"*/.*{PARTIAL}"):
            left.unlink(missing_ok=True)
        # What nobody can tell to be whole is not read: tensorstore may not outlive files that are damaged.
        unknown = sorted(path for path in self._named() if not has_digests(path))
        # A killed run leaves the newest, an old one that was being deleted, and one between them that is whole.
        if len(unknown) > 1 and self.newest() is None:
            raise ValueError(
                f"{unknown[0]}: expected {DIGESTS} in a checkpoint, by which it is known to be whole, found none, nor "
                f"in {unknown[1].name}. Copy them too, or delete these to start afresh."
            )
        for left in unknown:
            others = {path.name for path in left.iterdir()} - _OF_ORBAX
            if others:
                raise ValueError(
                    f"{left}: expected a training checkpoint, found another folder, with {min(others)} in it. Choose "
                    "another folder for the run, or move this one."
                )
        for left in unknown:
            shutil.rmtree(left)

    def _manager(self) -> _Manager:
        # Written before `save` returns: what trains is donated to the next step, and small.
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        with _quiet():  # about checkpoints that were being deleted
            return _Manager(Path(self.folder).absolute(), options=options)

    def _read(self, manager: Any, step: int, where: Path, **arguments: Any) -> Any:
        try:
            with _quiet():
                return manager.restore(step, args=ocp.args.Composite(**arguments))
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:  # orbax, tensorstore and json each have errors of their own
            _end_if_interrupted(error)
            raise ValueError(
                f"{where}: cannot be read as a checkpoint ({_first_line(error)}). {self._instead(step)}"
            ) from error

    def _instead(self, step: int) -> str:
        """What to do where the checkpoint of a step is of no use."""
        where, before = Path(self.folder) / str(step), self.newest(most=step - 1)
        return f"Delete {where} to {'start afresh' if before is None else 'go on from the checkpoint before'}."


class _Manager(ocp.CheckpointManager):
    """Orbax's, which asks at every step whether the processes are to be ended; `hosts.join` asks for no such news."""

    def reached_preemption(self, step: int) -> bool:  # noqa: ARG002
        """No: without the service, older versions of orbax end with an error."""
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without orbax's own account of what it then raises, and of what its threads had still to do when it does.

    Those threads may be told a moment after the error, so a failure leaves their hook and filter in place.
    """
    logger, told = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = _but_closed_loops(told)
    try:
        yield
        sys.unraisablehook = told
    except BaseException:
        logger.addFilter(_but_late)
        raise
    finally:
        logger.setLevel(level)


def _but_late(record: logging.LogRecord) -> bool:
    """Without threads that find, when all has ended, that they can no longer begin anything."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return not str(error).startswith("cannot schedule new futures after")


def _but_closed_loops(told: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook for errors that nobody can catch, without those of writing to an event loop that has ended."""

    def tell(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            told(unraisable)

    return tell


def _numbers(content: Any) -> bool:
    """Whether it is a list of numbers that float32 has."""
    largest = float(np.finfo(np.float32).max)
    return isinstance(content, list) and all(type(each) in (int, float) and abs(each) <= largest for each in content)


def _end_if_interrupted(error: BaseException) -> None:
    """Orbax makes an error of whatever ends its reading, an interrupt from the keyboard too."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt | asyncio.CancelledError):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__


def _first_line(error: Exception) -> str:
    """What an error says, in a few words."""
    return f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]


def _run(saved: Saved, config: TrainConfig, rows: int) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    shapes = {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved.arrays["params"])
    }
    return json.loads(json.dumps({**dataclasses.asdict(config), "rows of data": rows, "parameters": shapes}))
