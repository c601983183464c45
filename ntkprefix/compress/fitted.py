"""A state of features fitted to the answers that queries should get, instead of summed over the keys."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ntkprefix.compress.problem import Problem
from ntkprefix.compress.sums import Sums, fitting
from ntkprefix.partial import Partial
from ntkprefix.prefixes import FeaturePrefix, TokenPrefix
from ntkprefix.prefixes.least_squares import fit_state


@dataclasses.dataclass(frozen=True)
class FittedFeatures(Sums):
    """Z and k per query head by least squares, with k >= 0 so that the denominator stays positive.

    Attributes:
        features: `elu` or `favor`, as for `Sums`: those of `taylor` can be negative.
        recentre: as for `Sums`.

    Raises:
        TypeError: as for `Sums`.
        ValueError: an unknown feature map.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import FittedFeatures, Sums, compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 2, 4))
        >>> options = {"budget": "50 numbers", "queries": queries}
        >>> summed, fitted = (compress(keys, values, method=of("elu"), **options) for of in (Sums, FittedFeatures))
        >>> bool((fitted.report.error < summed.report.error).all()), bool((fitted.prefix.k >= 0).all())
        (True, True)

    Source: `ntkprefix.prefixes.least_squares`.
    """

    features: str = "elu"
    needs_queries = True
    _known: ClassVar[tuple[str, ...]] = ("elu", "favor")

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> FeaturePrefix:  # noqa: ARG002
        """The state, which answers for the scale 1/sqrt(H) alone.

        Raises:
            ValueError: the budget holds no state, or the scale is another.
        """
        width, query_heads = problem.keys.shape[-1], problem.queries.shape[1]
        if not math.isclose(problem.scale, width**-0.5, rel_tol=1e-6):
            raise ValueError(f"FittedFeatures: expected the scale 1/sqrt(H) = {width**-0.5:g}, got {problem.scale:g}.")
        group = query_heads // problem.heads
        phi = fitting(self.features, numbers // group, width, problem.values.shape[-1])
        mean = jnp.mean(problem.keys, axis=0)
        centre = jnp.repeat(mean if self.recentre else jnp.zeros_like(mean), group, axis=0)
        exact, beside = problem.exact(), problem.beside
        features, log_features = phi(problem.queries * problem.scale**0.5)
        along = jnp.einsum("qnh,nh->qn", problem.queries * problem.scale, centre)
        size = jnp.log(jnp.sum(features, axis=-1)) + log_features + along
        log_scale = jnp.mean(exact.log_mass() - size, axis=0)
        return fit_state(
            TokenPrefix(problem.keys, problem.values),
            problem.queries[None],
            _log_mass(beside, exact)[None],
            feature_map=phi,
            centre=centre,
            log_scale=log_scale,
        )


def _log_mass(beside: Partial | None, exact: Partial) -> Array:
    """What else each query sees; next to nothing where there is nothing, since queries of no mass would not count."""
    return exact.log_mass() - 30 if beside is None else beside.log_mass()
