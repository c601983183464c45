"""How to train: passes, step sizes over time, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optax

from ntkprefix import checks

# Up to here float32, in which schedules count, has every step's number.
MOST_STEPS = 2**24
# Of the numbers that float32 has: a step size below it is 0.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the data.
        batch_size: rows per step; the last, smaller batch of an epoch is dropped.
        micro_batches: parts that a batch is computed in, one after another, to save memory; a divisor of `batch_size`.
        learning_rate: peak step size of AdamW.
        warmup: share of all steps in which the step size rises linearly to its peak.
        schedule: what follows: a cosine or a line to zero, or a constant.
        weight_decay: of AdamW.
        clip: largest global norm of a gradient.
        patience: epochs without a smaller validation loss after which training stops; 0 for all epochs whatever comes.
        seed: of the order of the data.

    Raises:
        TypeError: a count that is not an integer, a number that is none.
        ValueError: a count below 1, epochs above 2^24, a seed of more than 32 bits, a learning rate that is not finite
            and above 0, a warm-up share outside 0..1, an unknown schedule, micro-batches that do not divide the batch,
            a negative or infinite weight decay or clip.
    """

    epochs: int = 4
    batch_size: int = 16
    micro_batches: int = 1
    learning_rate: float = 3e-3
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 1e-4
    clip: float = 1.0
    patience: int = 0
    seed: int = 0

    def __post_init__(self):
        checks.at_least(
            1, "TrainConfig", epochs=self.epochs, batch_size=self.batch_size, micro_batches=self.micro_batches
        )
        checks.at_most(MOST_STEPS, "TrainConfig", epochs=self.epochs)
        checks.at_least(0, "TrainConfig", patience=self.patience)
        checks.short_seed("TrainConfig", self.seed)
        checks.finite("TrainConfig", least=0.0, weight_decay=self.weight_decay, clip=self.clip)
        checks.one_of("TrainConfig", "schedule", self.schedule, tuple(_DECAYS))
        checks.finite("TrainConfig", learning_rate=self.learning_rate)
        if self.learning_rate < _SMALLEST:
            raise ValueError(
                f"TrainConfig: expected a learning_rate above 0, of at least {_SMALLEST:.2g}, got {self.learning_rate}."
            )
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"TrainConfig: expected a warmup share within 0..1, got {self.warmup}.")
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"TrainConfig: expected micro_batches that divide the batch_size, got {self.micro_batches} and "
                f"{self.batch_size}."
            )

    def steps_per_epoch(self, rows: int) -> int:
        """Number of steps of one pass over that many rows of data.

        Raises:
            ValueError: fewer rows than a batch.
        """
        if rows < self.batch_size:
            raise ValueError(
                f"train: expected at least one batch of {self.batch_size} rows of data, got {rows} rows. "
                "Give a smaller batch_size, or more rows."
            )
        return rows // self.batch_size

    def steps(self, rows: int) -> int:
        """Number of steps on that many rows of data.

        Raises:
            ValueError: fewer rows than a batch, or more than 2^24 steps.
        """
        steps = self.epochs * self.steps_per_epoch(rows)
        if steps > MOST_STEPS:
            raise ValueError(
                f"train: expected at most {MOST_STEPS:,} steps, got {steps:,}, which are {self.epochs:,} epochs of "
                f"{self.steps_per_epoch(rows):,}. Take fewer epochs, or a larger batch_size."
            )
        return steps

    def step_sizes(self, rows: int) -> np.ndarray:
        """Step size of every step on that many rows of data, float32.

        Example:
            >>> from ntkprefix.train import TrainConfig
            >>> config = TrainConfig(epochs=1, batch_size=1, learning_rate=1.0, warmup=0.5, schedule="linear")
            >>> [float(size) for size in config.step_sizes(4)]
            [0.5, 1.0, 0.5, 0.0]
        """
        steps = self.steps(rows)
        warm = round(self.warmup * steps)
        rise = optax.linear_schedule(0.0, self.learning_rate, warm)
        decay = _DECAYS[self.schedule](self.learning_rate, max(steps - warm, 1))
        schedule = optax.join_schedules([rise, decay], [warm])
        return np.asarray(schedule(np.arange(1, steps + 1, dtype=np.float32)), np.float32)

    def batches(self, data: Sequence[np.ndarray], skip: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
        """The batches of every step, in an order that the seed alone decides.

        Args:
            data: arrays with one leading axis of rows; a batch is the same rows of each.
            skip: steps that are done already.
        """
        random = np.random.default_rng(self.seed)
        of_epoch = self.steps_per_epoch(len(data[0]))
        for epoch in range(self.epochs):
            order = random.permutation(len(data[0]))
            for step in range(of_epoch):
                if epoch * of_epoch + step >= skip:
                    chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
                    yield tuple(array[chosen] for array in data)


_DECAYS = {
    "cosine": optax.cosine_decay_schedule,
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
    "constant": lambda peak, _: optax.constant_schedule(peak),
}
