"""The prompt's first tokens as they are, and any method for the others."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.problem import Method, Problem, answer, weighted_tokens
from ntkprefix.partial import merge
from ntkprefix.prefixes import JoinedPrefix, TokenPrefix


@dataclasses.dataclass(frozen=True)
class KeepFirst:
    """A few first tokens, on which many heads rest, in front of what a method makes of the others.

    A head that looks at nothing in particular looks at the first token, whose key is far from all others and whose
    value is nearly nothing. Summed up with others, it takes their values with it.

    Attributes:
        method: for all tokens but the first ones. If it is fitted to queries, these see the first ones beside.
        first: how many are kept, at least 0; fewer where the budget would leave no token to the method.

    Raises:
        TypeError: no integer.
        ValueError: below 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.compress import KeepFirst, Means, compress
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 64, 2, 4))
        >>> small, _ = compress(keys, values, method=KeepFirst(Means(), first=2), budget=8)
        >>> bool((small.keys[:2] == keys[:2]).all())
        True
        >>> jnp.exp(small.log_weights[2:]).sum(axis=0).round(2).tolist()  # the means of the other tokens of each head
        [62.0, 62.0]

    Source: attention sinks (StreamingLLM, arXiv 2309.17453).
    """

    method: Method
    first: int = 4

    def __post_init__(self):
        checks.at_least(0, "KeepFirst", first=self.first)

    @property
    def needs_queries(self) -> bool:
        """Whether the method does."""
        return self.method.needs_queries

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> Any:
        """Weighted tokens if the method makes tokens, and a joined prefix if it makes something else.

        Raises:
            ValueError: as for the method.
        """
        first = min(self.first, weighted_tokens(numbers, problem) - 1)
        if first < 1:
            return self.method(problem, numbers, key)
        weights = jnp.zeros((first, problem.heads), problem.keys.dtype)
        kept = TokenPrefix(problem.keys[:first], problem.values[:first], weights)
        share = answer(kept, problem.queries, problem.scale)
        beside = share if problem.beside is None else merge(share, problem.beside)
        others = Problem(problem.keys[first:], problem.values[first:], problem.queries, beside, problem.scale)
        left = numbers - sum(leaf.size for leaf in jax.tree.leaves(kept)) // problem.heads
        made = self.method(others, left, key)
        if not isinstance(made, TokenPrefix):
            return JoinedPrefix((kept, made))
        if made.log_weights is None:
            made = dataclasses.replace(made, log_weights=jnp.zeros(made.keys.shape[:2], made.keys.dtype))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), kept, made)
