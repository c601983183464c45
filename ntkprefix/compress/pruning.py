"""Tokens kept by a score, unweighted and unchanged: what cache pruning does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Problem, attention_masses, by_kv_head, gather, tokens_within
from ntkprefix.prefixes import TokenPrefix

# How many tokens on each side of a key share in its attention (SnapKV pools over 7, and 5).
_NEIGHBOURS = 3


@dataclasses.dataclass(frozen=True)
class Prune:
    """The tokens with the highest scores.

    Attributes:
        score: `attention`, what the queries pay a key; `pooled`, the most that they pay a key or one of its six
            neighbours (SnapKV); `expected`, the attention that Gaussian queries of the queries' mean and covariance
            would pay, times the length of the value; `norm`, short keys first; `distinct`, keys that are least like
            the mean key.
        first: the first tokens, which are kept whatever their score.

    Raises:
        TypeError: `first` is no integer.
        ValueError: an unknown score, or `first` below 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.compress import Prune, compress
        >>> tokens = jnp.array([5.0, 4.0, 3.0, 2.0, 1.0])[:, None, None]  # one head of width 1
        >>> compress(tokens, tokens, method=Prune("norm", first=1), budget=3).prefix.keys.ravel().tolist()
        [5.0, 1.0, 2.0]

    Source: SnapKV (arXiv 2404.14469); expected attention (arXiv 2510.00636); key norms (arXiv 2406.11430); KeyDiff
    (arXiv 2504.15364).
    """

    score: str = "pooled"
    first: int = 4

    def __post_init__(self):
        checks.one_of("Prune", "score", self.score, tuple(_SCORES))
        checks.at_least(0, "Prune", first=self.first)

    @property
    def needs_queries(self) -> bool:
        """Whether the score looks at them."""
        return self.score in ("attention", "pooled", "expected")

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:  # noqa: ARG002
        """The tokens that are kept, unweighted."""
        count = tokens_within(numbers, problem, weighted=False)
        scores = _SCORES[self.score](problem)
        scores = jnp.where(jnp.arange(problem.length)[None] < min(self.first, count), jnp.inf, scores)
        return gather(problem, jax.lax.top_k(scores, count)[1])


def _pooled(problem: Problem) -> Float[Array, "K M"]:
    window = 2 * _NEIGHBOURS + 1
    masses = attention_masses(problem)
    return jax.lax.reduce_window(masses, -jnp.inf, jax.lax.max, (1, window), (1, 1), "same")


def _expected(problem: Problem) -> Float[Array, "K M"]:
    queries = by_kv_head(problem.queries, problem.heads) * problem.scale
    mean = jnp.mean(queries, axis=1)
    spread = queries - mean[:, None]
    covariance = jnp.einsum("kqh,kqi->khi", spread, spread) / queries.shape[1]
    logits = jnp.einsum("mkh,kh->km", problem.keys, mean)
    logits = logits + jnp.einsum("mkh,khi,mki->km", problem.keys, covariance, problem.keys) / 2
    return jax.nn.softmax(logits, axis=1) * jnp.linalg.norm(problem.values, axis=-1).T


def _norm(problem: Problem) -> Float[Array, "K M"]:
    return -jnp.linalg.norm(problem.keys, axis=-1).T


def _distinct(problem: Problem) -> Float[Array, "K M"]:
    directions = problem.keys / jnp.maximum(jnp.linalg.norm(problem.keys, axis=-1, keepdims=True), 1e-12)
    mean = jnp.mean(directions, axis=0)
    return -jnp.einsum("mkh,kh->km", directions, mean)


_SCORES = {
    "attention": attention_masses,
    "pooled": _pooled,
    "expected": _expected,
    "norm": _norm,
    "distinct": _distinct,
}
