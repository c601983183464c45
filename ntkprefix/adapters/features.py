"""NTK-Attention: an infinitely long prefix in every layer, as a trained Z and k."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ntkprefix.feature_maps import Elu, FeatureMap
from ntkprefix.models.statistics import AttentionStatistics
from ntkprefix.prefixes import FeaturePrefix


@dataclasses.dataclass(frozen=True)
class FeatureAdapter:
    r"""A trained feature state per head: L N (R (Hv + 1) + 1) parameters, however long a prefix it stands for.

    It starts as a no-op, Z = k = 0, with live gradients for both, and on the input's own scale: the log scale of each
    head starts at the log of the input's harmonic mean mass on the calibration batch, less log R, so that with k = 1
    the prefix weighs about as much as the input, averaged over queries, in every layer. Without a scale a state weighs
    e^{-28} in some layers of a real model, and at the mean log-sum-exp it outweighs some queries' input by e^{28}.

    Attributes:
        feature_map: phi.
        train_scale: whether each head's log scale is trained too.

    Source: NTK-Attention (arXiv 2406.14036). The paper's code passes k through an absolute value, whose derivative at
    its start is zero, and has no scale.
    """

    feature_map: FeatureMap = dataclasses.field(default_factory=Elu)
    train_scale: bool = True

    def init(self, key: PRNGKeyArray, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """`Z` [L, N, R, Hv], `k` [L, N, R] and `log_scale` [L, N]; nothing in it is random."""
        layers, heads = statistics.log_harmonic_mass.shape
        features = self.feature_map.size(statistics.key_mean.shape[-1])
        return {
            "Z": jnp.zeros((layers, heads, features, statistics.value_mean.shape[-1])),
            "k": jnp.zeros((layers, heads, features)),
            "log_scale": statistics.log_harmonic_mass - math.log(features),
        }

    def prefixes(self, params: PyTree) -> FeaturePrefix:
        """The states of every layer, with k >= 0."""
        log_scale = params["log_scale"]
        if not self.train_scale:
            log_scale = jax.lax.stop_gradient(log_scale)
        return FeaturePrefix(params["Z"], nonnegative(params["k"]), self.feature_map, log_scale)


@jax.custom_jvp
def nonnegative(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0) with the derivative of the identity: a clip, whose gradient is alive at and below zero.

    A softplus would also keep k positive, but could not start at k = 0, where the model is exactly the pretrained one.
    """
    return jnp.maximum(x, 0)


@nonnegative.defjvp
def _(primals, tangents):
    return nonnegative(primals[0]), tangents[0]
