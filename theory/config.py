"""What a verification run is about: the setting, the ladder of prefix lengths, and how many seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from ntkprefix import hosts
from ntkprefix._options import default_told
from ntkprefix.checks import short_seed
from ntkprefix.parallel import sizes_of
from theory.data import Inputs, Projection, Targets

Optimizer = Literal["gd", "momentum", "adam", "sgd"]

# What a run measures unless it is told otherwise. The quick one ends within a minute on two cores, once compiled.
_FULL = {
    "steps": 2000,
    "seeds": 10,
    "kernel_seeds": 20,
    "lengths": tuple(2**k for k in range(2, 17)),
    "kernel_lengths": tuple(2**k for k in range(6, 19)),
    "scaling_lengths": (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192),
    "scaling_max_steps": 2**15,
    "scaling_seeds": 20,
    "scaling_n": (4, 8, 12),
    "scaling_sigma": (0.35, 0.5, 0.7, 1.0),
}
_QUICK = {
    "steps": 400,
    "seeds": 12,
    "kernel_seeds": 20,
    "lengths": tuple(2**k for k in range(2, 15, 2)),
    "kernel_lengths": tuple(2**k for k in range(6, 17, 2)),
    "scaling_lengths": (2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024),
    "scaling_max_steps": 2**13,
    "scaling_seeds": 12,
    "scaling_n": (2, 4, 8),
    "scaling_sigma": (0.5, 0.7, 1.0),
}
_OF_RUN = default_told("that of the full or quick run")
# Beyond these a run would take weeks, or more memory than there is, and the error would come from deep inside.
_MOST_STEPS = 100_000
_MOST_SEEDS = 10_000
_LONGEST = 2**24
_LARGEST = 1e6
_NUMBERS = {int: (Integral, "whole number"), float: (Real, "number")}


class _Open(int):
    """A count that is left open. A 0 that somebody gives is none: it is out of range."""


_OPEN = _Open()


@dataclass(frozen=True)
class Config:
    """Settings of `verify`. What is left out, or empty, is as in the full run, or as in the quick run with `quick`.

    Raises:
        TypeError: a setting is of another type; the message names it.
        ValueError: a setting is out of range; the message names it.
    """

    quick: bool = False
    """A short ladder, in under a minute once its programs are compiled, which takes half a minute."""
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
    data: Inputs = "sphere"
    """Inputs: uniform on the unit sphere, N(0, I/d), or real handwritten digits."""
    projection: Projection = "pca"
    """How digits come down to d dimensions."""
    targets: Targets = "gaussian"
    """Targets: random, a smooth function of the inputs, or the digits' classes."""
    target_scale: float = 1.0
    """Root mean square norm of a target, about."""
    optimizer: Optimizer = "gd"
    """The guarantee covers gd alone; with the others the verdicts that rest on it do not apply."""
    step_size: float = 1.0
    """In units of 1/lambda_max(H*); the guarantee covers steps up to 1, and from 2 on H* itself diverges."""
    batch_size: int = 0
    """Inputs per step for sgd; half of them when 0. Where the search has fewer inputs, all of them."""
    seed: int = 0
    """Seed of data, targets and prefixes. The quick run has too few prefixes for verdict 7 on most seeds but 0."""
    steps: Annotated[int, _OF_RUN] = _OPEN
    """Training steps."""
    seeds: Annotated[int, _OF_RUN] = _OPEN
    """Prefixes trained per length, at least 5."""
    kernel_seeds: Annotated[int, _OF_RUN] = _OPEN
    """Prefixes drawn per length for the kernel at the start, at least 5."""
    lengths: Annotated[tuple[int, ...], _OF_RUN] = ()
    """Prefix lengths to train, at least 3."""
    kernel_lengths: Annotated[tuple[int, ...], _OF_RUN] = ()
    """Prefix lengths for the kernel at the start, at least 3."""
    # Where the first of the ladder is enough, the smallest one is not known.
    scaling_lengths: Annotated[tuple[int, ...], _OF_RUN] = ()
    """Prefix lengths among which the smallest that keeps the guarantee is sought, from 2 on, the shortest there is."""
    scaling_max_steps: Annotated[int, _OF_RUN] = _OPEN
    """Longest training in that search. A case counts when the bound by then demands a tenth of the loss."""
    scaling_seeds: Annotated[int, _OF_RUN] = _OPEN
    """Prefixes per length in that search, at least 5. What one of them needs varies a hundredfold at sigma = 1."""
    scaling_n: Annotated[tuple[int, ...], _OF_RUN] = ()
    """Numbers of inputs in that search."""
    scaling_d: tuple[int, ...] = (6, 8, 16)
    """Widths in that search."""
    scaling_sigma: Annotated[tuple[float, ...], _OF_RUN] = ()
    """Standard deviations in that search."""
    mesh: Annotated[str, default_told("one device")] = ""
    """How devices share out the prefix's tokens, such as prefix=8."""
    hosts: Annotated[str, default_told("one process")] = ""
    """Of one of several processes that verify together, as for ntkprefix train."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list | np.ndarray):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.out, str | PathLike):
            object.__setattr__(self, "out", Path(self.out))
        preset = _QUICK if self.quick else _FULL
        left_open = {name: value for name in preset if _is_open(value := getattr(self, name))}
        for name in left_open:
            object.__setattr__(self, name, preset[name])
        # Not a field: it is no setting, and neither results nor the command line should show it.
        object.__setattr__(self, "_left_open", left_open)
        self._check()

    def _check(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            self._check_type(name, hint)
        self._expect("batch_size", 0 <= self.batch_size <= self.n, f"within 0..n={self.n}")
        if self.mesh:
            sizes = sizes_of(self.mesh)
            self._expect("mesh", sizes["data"] == sizes["tensor"] == 1, "along prefix alone, such as prefix=8")
        hosts.check(self.hosts, self.mesh)
        for name in ("n", "d", "n_test", "sigma", "steps", "scaling_max_steps"):
            self._expect(name, 0 < getattr(self, name) < math.inf, "above 0 and finite")
        # The kernel overflows long before, which says so with its own words; from here on, Python's numbers do.
        self._expect("sigma", self.sigma <= _LARGEST, f"of at most {_LARGEST:g}")
        for name in ("step_size", "target_scale"):
            # Further out, float32 rounds updates and losses to nothing or to infinity.
            self._expect(name, 1e-6 <= getattr(self, name) <= 1e6, "within 1e-6..1e6")
        for name in ("steps", "scaling_max_steps"):
            self._expect(name, getattr(self, name) <= _MOST_STEPS, f"of at most {_MOST_STEPS}")
        for name in ("seeds", "kernel_seeds", "scaling_seeds"):
            self._expect(name, getattr(self, name) >= 5, "of at least 5, for an interval that means something")
            self._expect(name, getattr(self, name) <= _MOST_SEEDS, f"of at most {_MOST_SEEDS}")
        short_seed("verify", self.seed)
        self._expect("data", self.targets != "labels" or self.data == "digits", "'digits' for targets='labels'")
        for name in ("lengths", "kernel_lengths", "scaling_lengths"):
            lengths = getattr(self, name)
            whole = len(lengths) >= 3 and _increasing(lengths) and all(M >= 2 and M % 2 == 0 for M in lengths)
            self._expect(name, whole, "to be at least 3 even prefix lengths, increasing")
            self._expect(name, lengths[-1] <= _LONGEST, f"of at most 2^24 = {_LONGEST} tokens")
        for name in ("scaling_n", "scaling_d", "scaling_sigma"):
            values = getattr(self, name)
            positive = len(values) >= 2 and _increasing(values) and 0 < values[0] <= values[-1] < math.inf
            self._expect(name, positive, "to be at least 2 positive numbers, increasing")
            self._expect(name, values[-1] <= _LARGEST, f"of at most {_LARGEST:g}")

    def _check_type(self, name: str, hint: Any) -> None:
        value = getattr(self, name)
        if get_origin(hint) is Literal:
            choices = ", ".join(get_args(hint))
            self._expect(name, isinstance(value, str) and value in get_args(hint), f"to be one of {choices}")
        elif get_origin(hint) is tuple:
            kind = get_args(hint)[0]
            numbers = isinstance(value, tuple) and all(_is(kind, number) for number in value)
            self._expect(name, numbers, f"to be a tuple of {_NUMBERS[kind][1]}s", TypeError)
            object.__setattr__(self, name, tuple(map(kind, value)))
        elif hint in _NUMBERS:
            self._expect(name, _is(hint, value), f"to be a {_NUMBERS[hint][1]}", TypeError)
            # Python's own numbers, which JSON knows, in place of NumPy's.
            object.__setattr__(self, name, hint(value))
        elif hint is bool:
            self._expect(name, isinstance(value, bool), "to be True or False", TypeError)
        else:
            self._expect(name, isinstance(value, hint), f"to be a {'path' if hint is Path else 'text'}", TypeError)

    def _expect(self, name: str, holds: bool, what: str, error: type[Exception] = ValueError) -> None:
        if not holds:
            raise error(f"verify: expected {name} {what}, got {getattr(self, name)!r}.")

    @property
    def diverges(self) -> bool:
        """Whether gradient descent diverges on the infinite prefix itself: from a step of 2/lambda_max(H*) on."""
        # Less the rounding of lambda_max.
        return self.step_size >= 2 * (1 - 1e-5)

    def replace(self, **changes: Any) -> Config:
        """A copy with some settings changed. What was left open is filled in anew, as `quick` then says.

        Example:
            >>> from theory import Config
            >>> short = Config(seeds=7).replace(quick=True)
            >>> short.seeds, short.steps == Config(quick=True).steps
            (7, True)
        """
        return dataclasses.replace(self, **(vars(self)["_left_open"] | changes))


def _is_open(value: Any) -> bool:
    return isinstance(value, _Open) or (isinstance(value, tuple) and not value)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, _NUMBERS[kind][0]) and not isinstance(value, bool)


def _increasing(values: tuple[float, ...]) -> bool:
    return all(before < after for before, after in itertools.pairwise(values))
