"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ntkprefix.memory import out_of_memory
from ntkprefix.parallel import even_rows, on_mesh, put_rest, put_rows
from ntkprefix.runs import JsonLines
from ntkprefix.train.checkpoints import Checkpoints, Saved
from ntkprefix.train.config import TrainConfig
from ntkprefix.train.memory import what_would_fit
from ntkprefix.train.step import Loss, Told, optimiser, own, step, step_on_mesh

# Parameters that a message names before it counts.
_NAMED = 3


class TrainResult(NamedTuple):
    """What training leaves.

    Attributes:
        params: trained parameters; where there is a validation loss, those of the epoch at which it was smallest.
        losses: loss of every step, before the step.
        seconds: time in steps, the first (which compiles) left out.
        validation: validation loss after every epoch; empty without one.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, train
        >>> x = np.linspace(-1, 1, 8, dtype=np.float32)
        >>> loss = lambda w, _, x: jnp.mean((w - x) ** 2)
        >>> config = TrainConfig(epochs=3, batch_size=4)
        >>> result = train(loss, jnp.ones(()), None, (x,), config, validate=lambda w: float(w**2))
        >>> result.losses.shape, result.validation.shape  # of steps, of epochs
        ((6,), (3,))
        >>> bool(result.validation[-1] == result.validation.min() == result.params**2)
        True
    """

    params: PyTree
    losses: np.ndarray
    seconds: float
    validation: np.ndarray


def train(
    loss: Loss,
    params: PyTree,
    frozen: PyTree,
    data: Sequence[np.ndarray],
    config: TrainConfig,
    *,
    factors: PyTree = 1.0,
    project: Callable[[PyTree], PyTree] | None = None,
    validate: Callable[[PyTree], float] | None = None,
    checkpoints: Checkpoints | None = None,
    metrics: str | Path | None = None,
    on_step: Callable[[int, float], Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Minimise a loss over `params`.

    The step is compiled once, with the buffers of parameters and optimiser state donated. `frozen` is an argument of
    it, so the pretrained weights are neither copied nor compiled into the program. While the device computes a step,
    the host reads the loss of the one before.

    Args:
        loss: `(params, frozen, *batch)` -> mean loss, or (sum, weight) with sum / weight the mean over what counts.
        params: the trained pytree; its buffers are copied first, so the caller's stay valid.
        frozen: pytree handed to `loss` as it is.
        data: arrays with one leading axis of rows; a batch is the same rows of each.
        config: how to train.
        factors: of the step size, for parts of the parameters: a number for all, or a pytree of numbers whose leaves
            stand for whole branches of `params`, such as `{"adapter": 1.0, "head": 0.1}`. Others compile nothing new.
        project: maps parameters to the nearest allowed ones, after every step. Pass the same object each time, not a
            fresh lambda, or every call compiles again.
        validate: loss on rows that are not trained on, of given parameters; called after every epoch.
        checkpoints: where the run is kept, its start too. If it has been stopped, it goes on from there, to the same
            last bit.
        metrics: a JSON Lines file that gets one object per step (step, epoch, loss, step_size, seconds) and one per
            validation (step, epoch, validation).
        on_step: called after every step with the number of steps done and the loss.
        mesh: of devices that share the work (`ntkprefix.parallel.mesh_of`): batches over its axis `data`; parameters
            and frozen arrays as they lie on it (`put_model`, `put`), and whole on every device where they do not. Where
            its devices are those of several processes, each passes the same arguments, and one of them writes files.

    Returns:
        Parameters, losses, seconds and validation losses.

    Raises:
        ValueError: fewer rows than a batch, arrays of different lengths, patience without a validation loss, batches
            or micro-batches that the mesh cannot share out evenly, or checkpoints of another run.
        FloatingPointError: the loss or its gradient is not finite; the message has the step, the layer of the model
            (counted from 0) that the first such numbers left or the parameters whose gradient has them, with their
            layers where the first axis counts them, and the last checkpoint.
        MemoryError: memory is not enough; the message has what a step takes, and what would fit.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from ntkprefix.train import TrainConfig, train
        >>> x = np.linspace(-1, 1, 64, dtype=np.float32)
        >>> loss = lambda w, _, x, y: jnp.mean((w * x - y) ** 2)
        >>> result = train(loss, jnp.zeros(()), None, (x, 3 * x), TrainConfig(epochs=50, learning_rate=0.1))
        >>> round(float(result.params), 2)
        3.0
    """
    rows = check_data(data)
    if config.patience and validate is None:
        raise ValueError("train: expected a validation loss where there is patience, got none. Pass `validate`.")
    run = _Run(loss, params, frozen, config, factors, project, checkpoints, mesh)
    step_sizes, of_epoch = config.step_sizes(rows), config.steps_per_epoch(rows)
    run.enter(rows)
    lines = JsonLines(metrics, keep=lambda line: _told_by(line, run.steps)) if metrics else None
    for batch in config.batches(data, skip=run.steps):
        if run.stopped(config.patience):
            break
        run.advance(step_sizes[run.steps], batch)
        ends_epoch = run.steps % of_epoch == 0
        ends = ends_epoch or run.due()
        for number, value in run.read(everything=ends):
            if lines:
                lines.add(
                    step=number,
                    epoch=number / of_epoch,
                    loss=value,
                    step_size=float(step_sizes[number - 1]),
                    seconds=round(run.seconds, 3),
                )
            if on_step is not None:
                on_step(number, value)
        if ends_epoch and validate is not None:
            run.judge(validate(run.params))
            if lines:
                lines.add(step=run.steps, epoch=run.steps // of_epoch, validation=run.validation[-1])
        if ends:
            run.keep(rows)
    return TrainResult(run.chosen(), np.asarray(run.losses, np.float32), run.seconds, np.asarray(run.validation))


def check_data(data: Sequence[np.ndarray]) -> int:
    """Number of rows of arrays that have one length.

    Raises:
        ValueError: they do not.
    """
    rows = len(data[0])
    if any(len(array) != rows for array in data):
        raise ValueError(f"train: expected arrays of one length, got {[len(array) for array in data]}.")
    return rows


def _told_by(line: dict[str, Any], steps: int) -> bool:
    """Whether a line of metrics is of the first so many steps."""
    step = line.get("step")
    return isinstance(step, int | float) and step <= steps


def _diverged(step: int, told: Told) -> str:
    """What is not finite, and in which layer of the model it began."""
    loss = float(told.loss)
    if math.isfinite(loss):
        return f"the gradient is not finite at step {step}, where the loss is {loss:.4g}{_slopes(told)}"
    what = f"the loss is {loss} at step {step}"
    if not all(faults.is_fully_addressable for faults in told.faults):
        return what  # other processes have the rows
    for faults in map(np.asarray, told.faults):
        layers = np.flatnonzero(faults.any(axis=1))
        if layers.size:
            rows = int(faults[layers[0]].sum())  # over micro-batches too
            return f"{what}; the first numbers that are not finite leave layer {layers[0]}, in {rows} rows of the batch"
    return f"{what}; all that leaves the model's layers is finite" if told.faults else what


def _slopes(told: Told) -> str:
    """In which parameters the gradient is not finite, with places along the first axis: an adapter's is that of layers.

    Backwards, such numbers go from the layer where they begin to all before it: the last place is where to look.
    """
    found = jax.tree_util.tree_leaves_with_path(told.slopes)
    if not all(slopes.is_fully_addressable for _, slopes in found):
        return ""  # other processes have a part
    names = [
        f"{jax.tree_util.keystr(path) or 'what is trained'}{_places(slopes)}"
        for path, slopes in ((path, np.asarray(slopes)) for path, slopes in found)
        if slopes.any()
    ]
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return f", in {', '.join(names[:_NAMED] + more)}" if names else ", though each number of it is"


def _places(slopes: np.ndarray) -> str:
    """Where an array is true, as an index: `[4]`, `[0..7]`; nothing for an array without axes."""
    places: list[int] = np.flatnonzero(slopes).tolist()
    if slopes.ndim == 0:
        return ""
    first, last = places[0], places[-1]
    return f"[{first}]" if first == last else f"[{first}..{last}]"


class _Run:
    """The state of one run between steps."""

    def __init__(self, loss, params, frozen, config, factors, project, checkpoints, mesh):
        self._transformation = optimiser(config.weight_decay, config.clip)
        self._static = (loss, self._transformation, project, config.micro_batches)
        self._frozen, self._factors = frozen, factors
        self._config, self._checkpoints, self._mesh = config, checkpoints, mesh
        self.params = jax.tree.map(own, params)
        if mesh is not None:
            even_rows(config.batch_size // config.micro_batches, mesh.shape["data"])
            self.params, self._frozen = put_rest((self.params, frozen), mesh)
        self.state = self._transformation.init(self.params)  # as zeros that lie where their parameters do
        if mesh is not None:
            self.state = put_rest(self.state, mesh)
        self._step = step if mesh is None else step_on_mesh(self.params, self.state)
        self.best = None
        self.losses: list[float] = []
        self.validation: list[float] = []
        self.steps, self.seconds = 0, 0.0
        self._unread: list[tuple[int, Any]] = []
        self._began = 0.0
        self._kept, self._took = 0.0, 0.0  # when the last checkpoint was whole, and how long it took

    def advance(self, step_size, batch):
        first = self._began == 0
        if self._mesh is not None:
            batch = put_rows(batch, self._mesh)
        self._batch = batch
        with self._explained(), on_mesh(self._mesh):
            self.params, self.state, told = self._step(
                *self._static, self.params, self.state, self._frozen, step_size, self._factors, batch
            )
        self.steps += 1
        self._unread.append((self.steps, told))
        if first:
            with self._explained():
                jax.block_until_ready(told)  # compiling is not counted
            self._began = time.perf_counter() - self.seconds

    def read(self, *, everything):
        """Losses that are due: all but the last step's, which the device may still be computing."""
        while len(self._unread) > (0 if everything else 1):
            number, told = self._unread.pop(0)
            with self._explained():
                value, norm = float(told.loss), float(told.norm)
            self.seconds = time.perf_counter() - self._began
            if not (math.isfinite(value) and math.isfinite(norm)):
                raise FloatingPointError(f"train: {_diverged(number, told)}. {self._advice(number)}")
            self.losses.append(value)
            yield number, value

    def judge(self, validation):
        value = float(validation)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"train: the validation loss is {value} after {self.steps} steps. {self._advice(self.steps + 1)}"
            )
        if not any(value >= before for before in self.validation):
            self.best = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), self.params)
        self.validation.append(value)

    @contextmanager
    def _explained(self):
        """Says what would fit where memory is not enough."""
        try:
            yield
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not out_of_memory(error):
                raise
            fits = "Take more micro_batches."  # what a step takes is told of one device
            if self._mesh is None:
                fits = what_would_fit(self._static[0], self.params, self._frozen, self._batch, self._config)
            raise MemoryError(f"train: out of memory at step {self.steps or 1}. {fits}") from error

    def _advice(self, step):
        advice = f"Try a smaller learning_rate than {self._config.learning_rate}"
        if self._checkpoints is None:
            return f"{advice}."
        # What the step before left is not good: it is what the loss of this one was computed with.
        good = self._checkpoints.newest(most=step - 2)
        if good is None:
            return f"{advice}, in another folder: there is no checkpoint from before."
        return f"{advice}, in another folder: the last good checkpoint here is {good}."

    def stopped(self, patience):
        if not patience or not self.validation or self._unread:
            return False
        return len(self.validation) - 1 - int(np.argmin(self.validation)) >= patience

    def chosen(self):
        return self.params if self.best is None else self.best

    def saved(self):
        best = self.params if self.best is None else self.best
        return Saved(
            {"params": self.params, "state": self.state, "best": best}, self.losses, self.validation, self.seconds
        )

    def enter(self, rows):
        """Go on from the newest checkpoint; where there is none, keep the start, which may have taken long to find."""
        if self._checkpoints is None:
            return
        began = time.perf_counter()
        saved = self._checkpoints.restore(self.saved(), self._config, rows)
        if saved is None:
            self.keep(rows)
            return
        self._kept = time.perf_counter()
        self._took = self._kept - began
        self.params, self.state = saved.arrays["params"], saved.arrays["state"]
        self.losses, self.validation, self.seconds = list(saved.losses), list(saved.validation), saved.seconds
        self.steps = len(self.losses)
        self.best = saved.arrays["best"] if self.validation else None

    def due(self):
        """Whether a checkpoint comes before the epoch ends."""
        if self._checkpoints is None:
            return False
        return self._checkpoints.due(self.steps, time.perf_counter() - self._kept, self._took)

    def keep(self, rows):
        if self._checkpoints is None:
            return
        began = time.perf_counter()
        self._checkpoints.save(self.saved(), self._config, rows)
        self._kept = time.perf_counter()
        self._took = self._kept - began
        self._began += self._took if self._began else 0  # no step's time
