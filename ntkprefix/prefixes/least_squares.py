"""A state that answers given queries as a prefix of tokens does, with a denominator that stays positive."""

from __future__ import annotations

import math
from functools import partial as bind
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix.feature_maps import FeatureMap
from ntkprefix.nonnegative import nonnegative_least_squares
from ntkprefix.prefixes.features import FeaturePrefix
from ntkprefix.prefixes.tokens import TokenPrefix

# A state of k = 1 may outweigh what a query sees by this factor, and no more, before the query counts for less.
_OUTWEIGHS = 10.0


def fit_state(
    tokens: TokenPrefix,
    query: Float[Array, "B T N H"],
    log_mass: Float[Array, "B T N"],
    *,
    feature_map: FeatureMap,
    centre: Float[Array, "N H"],
    log_scale: Float[Array, " N"],
    ridge: float = 1e-4,
) -> FeaturePrefix:
    r"""The state per query head that is nearest to a prefix of tokens on given queries.

    Numerator and denominator are fitted apart, each relative to the mass that the query sees in all,
    $m(q) = e^{LSE(q)} + \sum_r e^{\beta q \cdot p_r}$, so that an error counts by what it does to the output (but at
    least to a tenth of the mass of a state of k = 1: else a few queries that see nearly nothing would decide the fit):

    $$ \min_Z \sum_q \Big\| \frac{\phi(q)^T Z - num(q)}{m(q)} \Big\|^2 + \lambda \|Z\|^2 \qquad
       \min_{k \ge 0} \sum_q \Big( \frac{\phi(q) \cdot k - den(q)}{m(q)} \Big)^2 + \lambda \|k\|^2 $$

    A fit of k without its sign can vanish between the queries that it was fitted on, and the output with it.

    Args:
        tokens: the prefix, [M, K, H] and [M, K, Hv].
        query: that it should answer, [B, T, N, H]; at least as many for a head as there are features, R.
        log_mass: log-sum-exp of the input that each sees, [B, T, N]; queries of -inf, which are padding, do not count.
        feature_map: phi, without negative features.
        centre: c, as in `FeaturePrefix`.
        log_scale: s, likewise.
        ridge: lambda, relative to the mean diagonal of the normal equations, above 0; at least R times the rounding of
            the sums is used.

    Returns:
        The state, float32 or wider, with k >= 0, for the scale 1/sqrt(H).

    Raises:
        TypeError: arrays that are not floating point, no feature map, a ridge that is no number.
        ValueError: a feature map with negative features, a ridge that is not above 0, tokens that do not fit together.

    Source: docs/prefixes.md, "A state that stands for tokens".
    """
    checks.is_feature_map("fit_state", feature_map)
    checks.nonnegative_features("fit_state", feature_map)
    checks.finite("fit_state", least=0.0, ridge=ridge)
    if ridge == 0:
        raise ValueError("fit_state: expected a ridge above 0, got 0: features of few queries are not independent.")
    checks.floating("fit_state", query=query, log_mass=log_mass, centre=centre, log_scale=log_scale)
    tokens.shape()
    dtype = accumulator(query.dtype, tokens.keys.dtype, tokens.values.dtype)
    query, log_mass = query.astype(dtype), log_mass.astype(dtype)
    beta = 1 / query.shape[-1] ** 0.5
    exact = tokens.partial(query, beta)
    phi, log_phi = feature_map(query * beta**0.5)
    along = beta * jnp.einsum("btnh,nh->btn", query, centre.astype(dtype), precision="highest")
    log_factor = log_phi + along + log_scale.astype(dtype)[None, None]
    least = log_factor + jnp.log(jnp.sum(phi, axis=-1)) - math.log(_OUTWEIGHS)
    log_total = jnp.maximum(jnp.logaddexp(log_mass, exact.log_mass()), least)
    # The whole exponent of a row that sees nothing may be NaN: it is chosen against, not multiplied by zero.
    seen = log_mass != -jnp.inf
    rows = phi * jnp.where(seen, jnp.exp(log_factor - log_total), 0)[..., None]
    share = jnp.where(seen, jnp.exp(exact.log_scale - log_total), 0)
    flat = [array.reshape(-1, *array.shape[2:]) for array in (rows, exact.num * share[..., None], exact.den * share)]
    Z, k = jax.vmap(bind(_fit_head, ridge=ridge), in_axes=1)(*flat)
    return FeaturePrefix(Z, k, feature_map, log_scale, centre, beta)


def _fit_head(
    rows: Float[Array, "Q R"], num: Float[Array, "Q Hv"], den: Float[Array, " Q"], *, ridge: float
) -> tuple[Float[Array, "R Hv"], Float[Array, " R"]]:
    multiply: Any = bind(jnp.matmul, precision="highest")
    gram, precise = multiply(rows.T, rows), jnp.finfo(rows.dtype)
    # Below eps * trace, rounding can make the matrix of dependent features indefinite, and its Cholesky factor NaN.
    damping = jnp.trace(gram) * jnp.maximum(ridge / len(gram), precise.eps) + precise.tiny
    gram = gram + damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    Z = jax.scipy.linalg.solve(gram, multiply(rows.T, num), assume_a="pos")
    return Z, nonnegative_least_squares(gram, multiply(rows.T, den))
