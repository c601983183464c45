"""Which of a prompt's tokens, with values and masses of their own choice, answer for all of it: forward selection."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkprefix.compress.problem import Problem, by_kv_head
from ntkprefix.partial import merge

_PRECISE: Any = "highest"
# Queries that are looked at, spread over all: every step reads a table of queries by tokens.
_MOST_QUERIES = 1024
# A token whose weights are this near, relatively, to a combination of the chosen ones' adds nothing but rounding.
_DEPENDENT = 1e-5


def pursue(problem: Problem, count: int) -> Int[Array, "K C"]:
    r"""Tokens chosen one after another, each the one with which least squares come nearest to the prompt's sums.

    With $a_r$ the column of $a_{qr} = e^{\beta q \cdot p_r} / m(q)$ over queries, m(q) all that a query sees, and S the
    chosen tokens, the next one is

    $$ \arg\min_r \; \min_X \Big\| \sum_{c \in S \cup r} a_c x_c^T - \sum_r a_r (s, u_r)^T \Big\|_F^2, $$

    the sums of masses and of values, with s the values' size so that both count alike. Tokens that are much looked at
    but like one another are not chosen twice, as they are by their attention alone. O(Q M) for each.

    Args:
        problem: with queries.
        count: C, at most M.

    Returns:
        Numbers of the chosen tokens, in the order in which they were chosen.

    Source: orthogonal least squares (Chen, Billings and Luo, 1989), for several targets; Attention Matching
    (arXiv 2602.16284) chooses keys by matching pursuit on the masses.
    """
    seen = problem.exact() if problem.beside is None else merge(problem.exact(), problem.beside)
    log_total = by_kv_head(seen.log_mass(), problem.heads)
    queries = by_kv_head(problem.queries, problem.heads) * problem.scale
    stride = -(-queries.shape[1] // _MOST_QUERIES)
    per_head = jnp.moveaxis(problem.keys, 1, 0), jnp.moveaxis(problem.values, 1, 0), problem.added().T

    def of_head(parts: tuple[Array, ...]) -> Array:
        keys, values, added, queries, log_total = parts
        size = jnp.sqrt(jnp.mean(values * values))
        weights = jnp.matmul(queries, keys.T, precision=_PRECISE) + added[None] - log_total[:, None]
        weights = jnp.exp(weights)
        targets = jnp.concatenate([jnp.full((len(values), 1), size, values.dtype), values], axis=1)
        return _forward(weights, targets, count)

    return jax.lax.map(of_head, (*per_head, queries[:, ::stride], log_total[:, ::stride]))


def _forward(columns: Float[Array, "Q M"], coefficients: Float[Array, "M D"], count: int) -> Int[Array, " C"]:
    """Columns that come nearest to spanning `columns @ coefficients`, chosen greedily."""
    targets = jnp.matmul(columns, coefficients, precision=_PRECISE)
    squares = jnp.sum(columns * columns, axis=0)

    def choose(step, carry):
        # What the chosen ones' span leaves: of every column its square, and its products with what is left of targets.
        left, products, basis, chosen, taken = carry
        useful = (left > _DEPENDENT * squares) & ~taken
        gain = jnp.sum(products * products, axis=1) / jnp.where(useful, left, 1)
        # With nothing useful left, any other column will do.
        best = jnp.argmax(jnp.where(useful, gain, jnp.where(taken, -2.0, -1.0)))
        column = columns[:, best]
        for _ in range(2):  # once is not enough in float32: Gram-Schmidt loses orthogonality
            column = column - jnp.matmul(basis.T, jnp.matmul(basis, column, precision=_PRECISE), precision=_PRECISE)
        length = jnp.linalg.norm(column)
        direction = jnp.where(useful[best], column / jnp.where(length > 0, length, 1), 0)
        along = jnp.matmul(direction, columns, precision=_PRECISE)
        products = products - jnp.outer(along, jnp.matmul(direction, targets, precision=_PRECISE))
        return (
            jnp.maximum(left - along * along, 0),
            products,
            basis.at[step].set(direction),
            chosen.at[step].set(best),
            taken.at[best].set(True),
        )

    start = (
        squares,
        jnp.matmul(columns.T, targets, precision=_PRECISE),
        jnp.zeros((count, columns.shape[0]), columns.dtype),
        jnp.zeros(count, int),
        jnp.zeros(columns.shape[1], bool),
    )
    return jax.lax.fori_loop(0, count, choose, start)[3]
