"""A state that answers given queries as a prefix of tokens does, with a denominator that stays positive."""

from __future__ import annotations

from functools import partial as bind
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix.feature_maps import FeatureMap
from ntkprefix.prefixes.features import FeaturePrefix
from ntkprefix.prefixes.tokens import TokenPrefix

# Steps of the accelerated projected gradient for k, whose error falls with their square.
_STEPS = 500


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
    $m(q) = e^{LSE(q)} + \sum_r e^{\beta q \cdot p_r}$, so that an error counts by what it does to the output:

    $$ \min_Z \sum_q \Big\| \frac{\phi(q)^T Z - num(q)}{m(q)} \Big\|^2 + \lambda \|Z\|^2 \qquad
       \min_{k \ge 0} \sum_q \Big( \frac{\phi(q) \cdot k - den(q)}{m(q)} \Big)^2 + \lambda \|k\|^2 $$

    A fit of k without its sign can vanish between the queries that it was fitted on, and the output with it.

    Args:
        tokens: the prefix, [M, K, H] and [M, K, Hv].
        query: that it should answer, [B, T, N, H]; at least as many for a head as there are features, R.
        log_mass: log-sum-exp of the input that each sees, [B, T, N].
        feature_map: phi, without negative features.
        centre: c, as in `FeaturePrefix`.
        log_scale: s, likewise.
        ridge: lambda, relative to the mean diagonal of the normal equations, above 0.

    Returns:
        The state, float32, with k >= 0.

    Raises:
        TypeError: no feature map, a ridge that is no number.
        ValueError: a feature map with negative features, a ridge that is not above 0.

    Source: MATH "What goes wrong": the fit without the sign constraint blew up.
    """
    checks.is_feature_map("fit_state", feature_map)
    checks.nonnegative_features("fit_state", feature_map)
    checks.finite("fit_state", least=0.0, ridge=ridge)
    if ridge == 0:
        raise ValueError("fit_state: expected a ridge above 0, got 0: features of few queries are not independent.")
    width = query.shape[-1]
    beta = 1 / width**0.5
    exact = tokens.partial(query, beta)
    log_total = jnp.logaddexp(log_mass, exact.log_mass())
    phi, log_phi = feature_map(query.astype(jnp.float32) * beta**0.5)
    along = beta * jnp.einsum("btnh,nh->btn", query, centre)
    rows = phi * jnp.exp(log_phi + along + log_scale[None, None] - log_total)[..., None]
    share = jnp.exp(exact.log_scale - log_total)
    flat = [array.reshape(-1, *array.shape[2:]) for array in (rows, exact.num * share[..., None], exact.den * share)]
    Z, k = jax.vmap(bind(_fit_head, ridge=ridge), in_axes=1)(*flat)
    return FeaturePrefix(Z, k, feature_map, log_scale, centre)


def _fit_head(
    rows: Float[Array, "Q R"], num: Float[Array, "Q Hv"], den: Float[Array, " Q"], *, ridge: float
) -> tuple[Float[Array, "R Hv"], Float[Array, " R"]]:
    multiply: Any = bind(jnp.matmul, precision="highest")
    gram = multiply(rows.T, rows)
    damping = ridge * jnp.trace(gram) / gram.shape[0] + jnp.finfo(gram.dtype).tiny
    gram = gram + damping * jnp.eye(gram.shape[0], dtype=gram.dtype)
    Z = jax.scipy.linalg.solve(gram, multiply(rows.T, num), assume_a="pos")
    return Z, _nonnegative(gram, multiply(rows.T, den))


def _nonnegative(gram: Float[Array, "R R"], target: Float[Array, " R"]) -> Float[Array, " R"]:
    """Argmin over k >= 0 of k.G k / 2 - k.t, by accelerated projected gradient with restarts."""
    step = 1 / jnp.linalg.norm(gram, ord=2)

    def advance(_, carry):
        k, ahead, momentum = carry
        gradient = jnp.matmul(gram, ahead, precision="highest") - target
        following = jnp.maximum(ahead - step * gradient, 0)
        uphill = jnp.vdot(gradient, following - k) > 0
        larger = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2)
        push = jnp.where(uphill, 0.0, (momentum - 1) / larger)
        return following, following + push * (following - k), larger

    start = jnp.zeros_like(target)
    return jax.lax.fori_loop(0, _STEPS, advance, (start, start, jnp.ones((), target.dtype)))[0]
