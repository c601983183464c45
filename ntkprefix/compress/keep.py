"""Keep the prompt's first tokens and its last ones, as a sliding window with sinks does; or all of them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Problem, gather, tokens_within
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class KeepEnds:
    """The first few tokens, which many heads rest on, and as many of the last as the budget allows.

    Attributes:
        first: how many of the first ones, at least 0; all of the budget where it is less.

    Raises:
        TypeError: no integer.
        ValueError: below 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.compress import KeepEnds, compress
        >>> tokens = jnp.arange(10.0)[:, None, None]  # one head of width 1
        >>> compress(tokens, tokens, method=KeepEnds(first=2), budget=5).prefix.keys.ravel().tolist()
        [0.0, 1.0, 7.0, 8.0, 9.0]

    Source: attention sinks (StreamingLLM, arXiv 2309.17453).
    """

    first: int = 4
    needs_queries = False

    def __post_init__(self):
        checks.at_least(0, "KeepEnds", first=self.first)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:  # noqa: ARG002
        """The tokens that are kept, unweighted."""
        count = tokens_within(numbers, problem, weighted=False)
        first = min(self.first, count)
        last = jnp.arange(problem.length - (count - first), problem.length)
        chosen = jnp.concatenate([jnp.arange(first), last])
        return gather(problem, jnp.broadcast_to(chosen[None], (problem.heads, count)))


@dataclasses.dataclass(frozen=True)
class KeepAll:
    """All tokens, whatever the budget is: for a head whose share of a larger one has room for them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.compress.keep import KeepAll
        >>> from ntkprefix.compress.problem import Problem
        >>> keys, values, queries = jnp.ones((3, 5, 2, 4))
        >>> KeepAll()(Problem(keys, values, queries, None, 0.5), 1, jax.random.key(0)).log_weights.shape
        (5, 2)
    """

    needs_queries = False
    takes_weights = True

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:  # noqa: ARG002
        """The tokens, weighted."""
        weights = problem.log_weights
        if weights is None:
            weights = jnp.zeros(problem.keys.shape[:2], problem.keys.dtype)
        return TokenPrefix(problem.keys, problem.values, weights)
