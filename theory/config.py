"""What a verification run is about: the setting, the ladder of prefix lengths, and how many seeds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# What a run measures unless it is told otherwise. The quick one ends within a minute on two cores.
_FULL = {
    "steps": 2000,
    "seeds": 10,
    "kernel_seeds": 20,
    "lengths": tuple(2**k for k in range(2, 17)),
    "kernel_lengths": tuple(2**k for k in range(6, 19)),
    "scaling_lengths": (*(2**k for k in range(1, 10)), 2**11, 2**13),
    "scaling_max_steps": 4096,
}
_QUICK = {
    "steps": 400,
    "seeds": 8,
    "kernel_seeds": 20,
    "lengths": tuple(2**k for k in range(2, 13, 2)),
    "kernel_lengths": tuple(2**k for k in range(6, 17, 2)),
    "scaling_lengths": tuple(2**k for k in range(2, 11, 2)),
    "scaling_max_steps": 1024,
}


@dataclass(frozen=True)
class Config:
    """Settings of `verify`. Options left at 0 or empty take the full run's values, or the quick run's with `quick`.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    quick: bool = False
    """A short ladder, in under a minute."""
    out: Path = Path("runs/verify")
    """Run folder. Start again with the same one to resume."""
    n: int = 8
    """Training inputs."""
    d: int = 8
    """Width of inputs and outputs."""
    n_test: int = 32
    """Held-out inputs."""
    sigma: float = 0.5
    """Standard deviation of the prefix at the start. The M that is needed grows exponentially with it."""
    data: Literal["sphere", "gaussian", "digits"] = "sphere"
    """Inputs: uniform on the unit sphere, N(0, I/d), or real handwritten digits."""
    projection: Literal["pca", "random"] = "pca"
    """How digits come down to d dimensions."""
    targets: Literal["gaussian", "teacher", "labels"] = "gaussian"
    """Targets: random, a smooth function of the inputs, or the digits' classes."""
    target_scale: float = 1.0
    """Root mean square norm of a target, about."""
    optimizer: Literal["gd", "momentum", "adam", "sgd"] = "gd"
    """The guarantee covers gd alone; with the others the verdicts that rest on it do not apply."""
    step_size: float = 1.0
    """In units of 1/lambda_max(H*); the guarantee covers steps up to 1."""
    batch_size: int = 0
    """Inputs per step for sgd; half of them when 0."""
    seed: int = 0
    """Seed of data and targets, and from which those of the prefixes derive."""
    steps: int = 0
    """Training steps."""
    seeds: int = 0
    """Prefixes trained per length, at least 5."""
    kernel_seeds: int = 0
    """Prefixes drawn per length for the kernel at the start, at least 5."""
    lengths: tuple[int, ...] = ()
    """Prefix lengths to train, at least 3."""
    kernel_lengths: tuple[int, ...] = ()
    """Prefix lengths for the kernel at the start, at least 3."""
    scaling_lengths: tuple[int, ...] = ()
    """Prefix lengths among which the smallest one that keeps the guarantee is sought."""
    scaling_max_steps: int = 0
    """Longest training in that search."""
    scaling_n: tuple[int, ...] = (4, 8, 12)
    """Numbers of inputs in that search."""
    scaling_d: tuple[int, ...] = (6, 8, 16)
    """Widths in that search."""
    scaling_sigma: tuple[float, ...] = (0.35, 0.5, 0.7, 1.0)
    """Standard deviations in that search."""

    def __post_init__(self) -> None:
        preset = _QUICK if self.quick else _FULL
        for name, value in preset.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.batch_size < 0 or self.batch_size > self.n:
            raise ValueError(f"batch_size must be within 0..n={self.n}, got {self.batch_size}.")
        for name in ("n", "d", "n_test", "sigma", "target_scale", "step_size", "steps", "scaling_max_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        for name in ("seeds", "kernel_seeds"):
            if getattr(self, name) < 5:
                raise ValueError(
                    f"{name} must be at least 5 for an interval that means something, got {getattr(self, name)}."
                )
        for name in ("lengths", "kernel_lengths", "scaling_lengths"):
            lengths = getattr(self, name)
            if len(lengths) < 3 or list(lengths) != sorted(set(lengths)) or any(M < 2 or M % 2 for M in lengths):
                raise ValueError(f"{name} must be at least 3 even prefix lengths, increasing; got {lengths}.")
        if self.targets == "labels" and self.data != "digits":
            raise ValueError(f"targets='labels' need data='digits', got data={self.data!r}.")

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed.

        Example:
            >>> from theory import Config
            >>> Config(quick=True).replace(n=4).n
            4
        """
        return dataclasses.replace(self, **changes)
