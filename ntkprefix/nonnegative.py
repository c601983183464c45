"""Least squares with coefficients that are not below zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of the power iteration that bounds the matrix's norm.
_POWER = 20
# Steps of the accelerated projected gradient, whose error falls with their square.
_STEPS = 500


def nonnegative_least_squares(gram: Float[Array, "R R"], target: Float[Array, " R"]) -> Float[Array, " R"]:
    """The k >= 0 that minimises k.G k / 2 - k.t, to the accuracy of 500 accelerated steps with restarts.

    Args:
        gram: G, symmetric and positive definite: A^T A of a problem |A k - b|^2, with a ridge.
        target: t, A^T b there.

    Returns:
        k, of the type of G.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.nonnegative import nonnegative_least_squares
        >>> nonnegative_least_squares(jnp.eye(2), jnp.array([2.0, -1.0])).tolist()
        [2.0, 0.0]

    Source: FISTA (Beck and Teboulle, 2009) with gradient restarts (O'Donoghue and Candes, arXiv 1204.3982).
    """
    step = 1 / _norm_bound(gram)

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


def _norm_bound(gram: Float[Array, "R R"]) -> Float[Array, ""]:
    """At least the largest eigenvalue, and near it where entries are of one sign: without an eigendecomposition.

    For every x > 0, the largest entry of |G| x / x is at least the spectral radius of |G| (Collatz and Wielandt).
    """
    sizes = jnp.abs(gram)
    x = jax.lax.fori_loop(0, _POWER, lambda _, x: _unit(jnp.matmul(sizes, x)), jnp.ones(len(gram), gram.dtype))
    # Entries of nothing would make the bound infinite.
    x = jnp.maximum(x, 1e-3)
    return jnp.max(jnp.matmul(sizes, x) / x)


def _unit(x: Float[Array, " R"]) -> Float[Array, " R"]:
    return x / jnp.maximum(jnp.max(x), jnp.finfo(x.dtype).tiny)
