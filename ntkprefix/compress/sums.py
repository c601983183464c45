"""Sums over features of the prompt's keys, in closed form: Performer's and the polynomial method."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
from jaxtyping import PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Problem
from ntkprefix.feature_maps import MAX_FEATURES, FeatureMap, feature_map
from ntkprefix.prefixes import FeaturePrefix


@dataclasses.dataclass(frozen=True)
class Sums:
    """Z and k of the prompt: the more features, the nearer; documents can be appended and subtracted exactly.

    Attributes:
        features: `elu`, as many as a head is wide; `taylor`, of the highest degree that the budget holds; `favor`, as
            many random ones as it holds, the same in every run.
        recentre: around the prompt's mean key, for which the error is smaller. Without it states of several prompts
            have the same centre, 0, and can be added.

    Raises:
        TypeError: a `recentre` that is neither True nor False.
        ValueError: an unknown feature map.

    Example:
        >>> import jax, numpy as np
        >>> from ntkprefix.compress import Sums, compress
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 64, 2, 4))
        >>> options = {"method": Sums("elu", recentre=False), "budget": "50 numbers"}
        >>> halves = (slice(32), slice(32, 64))
        >>> first, second = (compress(keys[half], values[half], **options).prefix for half in halves)
        >>> both = compress(keys, values, **options).prefix
        >>> both.Z.shape, bool(np.allclose((first + second).Z, both.Z, rtol=1e-4, atol=1e-4))
        ((2, 4, 4), True)

    Source: `FeaturePrefix.from_tokens`.
    """

    features: str = "favor"
    recentre: bool = True
    needs_queries = False
    _known: ClassVar[tuple[str, ...]] = ("elu", "taylor", "favor")

    def __post_init__(self):
        checks.one_of(type(self).__name__, "feature map", self.features, self._known)
        checks.yes_or_no(type(self).__name__, recentre=self.recentre)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> FeaturePrefix:  # noqa: ARG002
        """The state.

        Raises:
            ValueError: the budget holds no state.
        """
        phi = fitting(self.features, numbers, problem.keys.shape[-1], problem.values.shape[-1])
        return FeaturePrefix.from_tokens(
            problem.keys, problem.values, feature_map=phi, recentre=self.recentre, scale=problem.scale
        )


def fitting(name: str, numbers: int, width: int, value_width: int) -> FeatureMap:
    """The feature map of a name whose state, R (Hv + 1) + H + 1 numbers with its centre and log scale, has the most.

    Raises:
        ValueError: not even the smallest fits.
    """
    most = (numbers - width - 1) // (value_width + 1)
    phi, degree = feature_map("elu"), 0
    if name == "favor" and most >= 1:
        with jax.ensure_compile_time_eval():
            phi = feature_map("favor", features=min(most, MAX_FEATURES), key=jax.random.key(0))
    if name == "taylor":
        while math.comb(width + degree + 1, degree + 1) <= min(most, MAX_FEATURES):
            degree += 1
        phi = feature_map("taylor", degree=degree)
    least = phi.size(width)
    if least > most:
        needed = least * (value_width + 1) + width + 1
        raise ValueError(
            f"compress: a state of {name} features has at least {needed:,} numbers for each head, more than the "
            f"budget's {numbers:,}. Give a larger budget, or choose a method that keeps tokens."
        )
    return phi
