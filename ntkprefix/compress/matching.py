"""Attention Matching: chosen keys, masses by non-negative least squares, values by ridge regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Problem, attention_masses, by_kv_head, gather, tokens_within
from ntkprefix.compress.pursuit import pursue
from ntkprefix.nonnegative import nonnegative_least_squares
from ntkprefix.partial import merge
from ntkprefix.prefixes import TokenPrefix

_PRECISE: Any = "highest"
# A token of no weight keeps this share of the heaviest one's: its logarithm is then a number, and can be trained.
_LEAST = 1e-9


@dataclasses.dataclass(frozen=True)
class Matching:
    r"""Some of the prompt's tokens, with masses and values refitted to all of it.

    With $a_{qc} = e^{\beta q \cdot p_c}$ of the chosen keys, for each head

    $$ \min_{w \ge 0} \sum_q \Big( \frac{\sum_c a_{qc} w_c - den(q)}{m(q)} \Big)^2, \qquad
       \min_u \sum_q \Big\| \sum_c \frac{a_{qc} w_c}{\sum_c a_{qc} w_c} u_c - out(q) \Big\|^2, $$

    both with a ridge, that of the values towards the tokens' own. m(q) is the prompt's own mass, as in the paper; with
    `in_context`, all that the query sees, and out(q) is its output with everything else beside the prompt, so that
    queries which look elsewhere count for less. This is our reading of the paper, not a copy of its authors' code.

    Attributes:
        choose: which tokens: `attention`, those that get most of it on average; `pursuit`, one after another the one
            that helps most beside those that are chosen (`ntkprefix.compress.pursuit`).
        in_context: see above.
        ridge: of both fits, relative to the mean diagonal of their normal equations, above 0.
        stored: what a file of few bits makes of tokens. Masses and values are then fitted to the keys that it will give
            back, and make up for what rounding does to these.

    Raises:
        TypeError: no number, no flag.
        ValueError: a ridge that is not above 0, an unknown choice.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import Matching, Prune, compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 2, 4))
        >>> kept, matched = (
        ...     compress(keys, values, method=method, budget="8x", queries=queries).report.error
        ...     for method in (Prune("attention"), Matching())
        ... )
        >>> bool((matched < kept / 3).all())
        True

    Source: Attention Matching (arXiv 2602.16284).
    """

    choose: str = "attention"
    in_context: bool = False
    ridge: float = 1e-4
    stored: Callable[[TokenPrefix], TokenPrefix] | None = None
    needs_queries = True
    takes_weights = True

    def __post_init__(self):
        checks.one_of("Matching", "choice", self.choose, ("attention", "pursuit"))
        checks.yes_or_no("Matching", in_context=self.in_context)
        checks.finite("Matching", least=1e-12, ridge=self.ridge)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:  # noqa: ARG002
        """Weighted tokens."""
        count = tokens_within(numbers, problem, weighted=True)
        if self.choose == "pursuit":
            chosen = pursue(problem, count)
        else:
            chosen = jax.lax.top_k(attention_masses(problem), count)[1]
        tokens = gather(problem, chosen)
        if self.stored is not None:
            tokens = dataclasses.replace(tokens, keys=self.stored(tokens).keys)
        return match(problem, tokens, in_context=self.in_context, ridge=self.ridge)


class _Head(NamedTuple):
    """One kv head's part: keys and values to be refitted, its queries, and what they should see.

    Sums are divided by all that a query sees.
    """

    keys: Float[Array, "C H"]
    values: Float[Array, "C Hv"]
    queries: Float[Array, "Q H"]
    log_total: Float[Array, " Q"]
    mass: Float[Array, " Q"]
    out: Float[Array, "Q Hv"]
    other_num: Float[Array, "Q Hv"]
    other_den: Float[Array, " Q"]


def match(problem: Problem, tokens: TokenPrefix, *, in_context: bool, ridge: float) -> TokenPrefix:
    """The tokens' keys with masses and values that answer the problem's queries as the whole prompt does."""
    exact = problem.exact()
    beside = problem.beside if in_context and problem.beside is not None else jax.tree.map(jnp.zeros_like, exact)
    together = merge(exact, beside)
    log_total = together.log_mass()
    other = jnp.exp(beside.log_scale - log_total)
    of_queries = (
        problem.queries * problem.scale,
        log_total,
        exact.den * jnp.exp(exact.log_scale - log_total),
        together.normalise(),
        beside.num * other[..., None],
        beside.den * other,
    )
    keys, values = (jnp.moveaxis(array, 1, 0) for array in (tokens.keys, tokens.values))
    heads = _Head(keys, values, *(by_kv_head(array, problem.heads) for array in of_queries))
    log_weights, values = jax.lax.map(lambda head: _fit(head, ridge), heads)
    return TokenPrefix(tokens.keys, jnp.moveaxis(values, 0, 1), log_weights.T)


def _fit(head: _Head, ridge: float) -> tuple[Float[Array, " C"], Float[Array, "C Hv"]]:
    weights = jnp.exp(jnp.matmul(head.queries, head.keys.T, precision=_PRECISE) - head.log_total[:, None])
    target = jnp.matmul(weights.T, head.mass, precision=_PRECISE)
    masses = nonnegative_least_squares(_damped(weights, ridge), target)
    masses = jnp.maximum(masses, _LEAST * jnp.max(masses))
    weights = weights * masses[None]
    den = jnp.sum(weights, axis=1) + head.other_den
    weights = weights / den[:, None]
    missing = head.out - head.other_num / den[:, None] - jnp.matmul(weights, head.values, precision=_PRECISE)
    normal, target = _damped(weights, ridge), jnp.matmul(weights.T, missing, precision=_PRECISE)
    return jnp.log(masses), head.values + jax.scipy.linalg.solve(normal, target, assume_a="pos")


def _damped(rows: Float[Array, "Q C"], ridge: float) -> Float[Array, "C C"]:
    """The normal equations' matrix, with its ridge."""
    gram, precise = jnp.matmul(rows.T, rows, precision=_PRECISE), jnp.finfo(rows.dtype)
    # Below eps * trace, rounding can make the matrix of dependent columns indefinite, and its Cholesky factor NaN.
    damping = jnp.trace(gram) * jnp.maximum(ridge / len(gram), precise.eps) + precise.tiny
    return gram + damping * jnp.eye(len(gram), dtype=gram.dtype)
