"""WildCat: keys picked by a randomly pivoted Cholesky factorisation, and the Nystrom projection onto them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix.compress.problem import Problem, tokens_within
from ntkprefix.prefixes import TokenPrefix

# Where a projected mass is negative or nearly nothing, it is this share of the mean one instead.
_LEAST = 1e-3
_JITTER = 1e-5


@dataclasses.dataclass(frozen=True)
class Wildcat:
    r"""Keys S drawn one after another by what the earlier ones leave unexplained; no query is looked at.

    With the kernel $\kappa(p, p') = e^{\beta p \cdot p'}$ of the recentred keys and
    $W = \kappa(P_S, P_S)^{-1} \kappa(P_S, P)$, sums over the prompt become

    $$ num(q) \approx \kappa(q, P_S)\, W U, \qquad den(q) \approx \kappa(q, P_S)\, W 1. $$

    Projected masses W 1 can be negative; those are raised to a thousandth of the mean one, which a softmax can weigh,
    and the numerator is left as it is.

    Example:
        >>> import jax, numpy as np
        >>> from ntkprefix.compress import Wildcat, compress
        >>> keys, values = np.repeat(jax.random.normal(jax.random.key(0), (2, 4, 1, 4)), 16, axis=1)
        >>> small, _ = compress(keys, values, method=Wildcat(), budget="36 numbers")
        >>> np.exp(small.log_weights[:, 0]).round(1).tolist()  # four tokens, each 16 times
        [16.0, 16.0, 16.0, 16.0]

    Source: WildCat (arXiv 2602.10056); randomly pivoted Cholesky (arXiv 2207.06503).
    """

    needs_queries = False

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        count = tokens_within(numbers, problem, weighted=True)
        centred = jnp.moveaxis(problem.centred_keys(), 1, 0) * problem.scale**0.5
        values = jnp.moveaxis(problem.values, 1, 0)

        def of_head(parts: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            key, keys, values = parts
            chosen = _pivots(key, keys, count)
            log_masses, values = _project(keys, values, chosen)
            return chosen, log_masses, values

        keys = jax.random.split(key, problem.heads)
        chosen, log_masses, values = jax.lax.map(of_head, (keys, centred, values))
        picked = jnp.take_along_axis(problem.keys, chosen.T[..., None], axis=0)
        # e^{beta q.p} is e^{beta q.(p - mean)} times a factor that all tokens share.
        return TokenPrefix(picked, jnp.moveaxis(values, 0, 1), log_masses.T)


def _gaussian(a: Float[Array, "A H"], b: Float[Array, "B H"]) -> Float[Array, "A B"]:
    """The kernel e^{a.b}, less a factor e^{|a|^2/2} and e^{|b|^2/2}: within 0 and 1 however long the keys are."""
    squares = jnp.sum(a * a, axis=1)[:, None] + jnp.sum(b * b, axis=1)[None]
    return jnp.exp(jnp.minimum(jnp.matmul(a, b.T, precision="highest") - squares / 2, 0))


def _pivots(key: PRNGKeyArray, keys: Float[Array, "M H"], count: int) -> Array:
    """Numbers of the drawn keys, [C]: each with probability proportional to its residual diagonal."""
    length = len(keys)
    log_diagonal = jnp.sum(keys * keys, axis=1)

    def draw(step, carry):
        factor, residual, chosen = carry
        # Of two kernels that differ by factors of rows and columns, the factorisations do too.
        log_odds = jnp.where(residual > _JITTER, jnp.log(jnp.maximum(residual, _JITTER)) + log_diagonal, -jnp.inf)
        # With nothing left to explain, any other key will do.
        unseen = jnp.ones(length, bool).at[chosen].set(jnp.arange(count) >= step, mode="drop")
        log_odds = jnp.where(jnp.any(log_odds > -jnp.inf), log_odds, jnp.where(unseen, 0.0, -jnp.inf))
        pivot = jax.random.categorical(jax.random.fold_in(key, step), log_odds)
        column = _gaussian(keys, keys[pivot][None])[:, 0] - factor @ factor[pivot]
        column = column / jnp.sqrt(jnp.maximum(column[pivot], _JITTER))
        residual = jnp.maximum(residual - column * column, 0).at[pivot].set(0.0)
        return factor.at[:, step].set(column), residual, chosen.at[step].set(pivot)

    start = (jnp.zeros((length, count), keys.dtype), jnp.ones(length, keys.dtype), jnp.full(count, length))
    return jax.lax.fori_loop(0, count, draw, start)[2]


def _project(
    keys: Float[Array, "M H"], values: Float[Array, "M Hv"], chosen: Array
) -> tuple[Float[Array, " C"], Float[Array, "C Hv"]]:
    picked = keys[chosen]
    log_factor = jnp.sum(keys * keys, axis=1) / 2
    largest = jnp.max(log_factor)
    kernel = _gaussian(picked, picked) + _JITTER * jnp.eye(len(picked), dtype=keys.dtype)
    ones = jnp.ones((len(keys), 1), keys.dtype)
    sums = _gaussian(picked, keys) @ (jnp.concatenate([values, ones], axis=1) * jnp.exp(log_factor - largest)[:, None])
    solved = jax.scipy.linalg.solve(kernel, sums, assume_a="pos")
    # Masses are those of e^{beta q.p_c}: the factor of each picked key is taken out again, in logarithms.
    masses = jnp.maximum(solved[:, -1], _LEAST * jnp.mean(jnp.abs(solved[:, -1])))
    return jnp.log(masses) + largest - log_factor[chosen], solved[:, :-1] / masses[:, None]
