"""Ours: Attention Matching in context, and then keys, values and masses trained on the queries."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.matching import Matching
from ntkprefix.compress.problem import Problem, answer
from ntkprefix.partial import merge
from ntkprefix.prefixes import TokenPrefix


@dataclasses.dataclass(frozen=True)
class Refined:
    r"""Weighted tokens that need not be any of the prompt's: C (H + Hv + 1) free numbers for each head.

    From `Matching(in_context=True)` on, Adam minimises the error of the outputs that queries get with all else they
    see beside the prefix, each head's relative to the size of its outputs,

    $$ \sum_n \frac{\sum_q \| \tilde{out}_n(q) - out_n(q) \|^2}{\sum_q \| out_n(q) \|^2}, $$

    over keys and values in units of their own spread, and over log-weights.

    Attributes:
        steps: of Adam on all queries.
        step_size: at the start; it falls to 0 along a cosine.

    Raises:
        TypeError: no integer, no number.
        ValueError: below 0.
    """

    steps: int = 200
    step_size: float = 0.03
    needs_queries = True

    def __post_init__(self):
        checks.at_least(0, "Refined", steps=self.steps)
        checks.finite("Refined", least=0.0, step_size=self.step_size)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        start = Matching(in_context=True)(problem, numbers, key)
        exact = problem.exact()
        wanted = (exact if problem.beside is None else merge(exact, problem.beside)).normalise()
        size = jnp.sum(wanted * wanted, axis=(0, 2))
        spreads = TokenPrefix(_spread(problem.keys), _spread(problem.values), jnp.ones(()))

        def moved(by: TokenPrefix) -> TokenPrefix:
            return jax.tree.map(lambda at, unit, many: at + unit * many, start, spreads, by)

        def loss(by: TokenPrefix) -> Float[Array, ""]:
            share = answer(moved(by), problem.queries, problem.scale)
            out = (share if problem.beside is None else merge(share, problem.beside)).normalise()
            return jnp.sum(jnp.sum((out - wanted) ** 2, axis=(0, 2)) / jnp.maximum(size, jnp.finfo(size.dtype).tiny))

        adam = optax.scale_by_adam()
        sizes = self.step_size * (1 + np.cos(np.pi * np.arange(self.steps) / max(self.steps, 1))) / 2

        def step(carry: tuple[TokenPrefix, Any], size: Array) -> tuple[tuple[TokenPrefix, Any], None]:
            by, state = carry
            gradient = jax.grad(loss)(by)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, state = adam.update(gradient, state)
            return (jax.tree.map(lambda at, update: at - size * update, by, updates), state), None

        still = jax.tree.map(jnp.zeros_like, start)
        (by, _), _ = jax.lax.scan(step, (still, adam.init(still)), jnp.asarray(sizes, problem.keys.dtype))
        return moved(by)


def _spread(tokens: Float[Array, "M K H"]) -> Float[Array, "1 K 1"]:
    """Root mean square distance of a head's tokens from their mean, per channel."""
    deviations: Array = tokens - jnp.mean(tokens, axis=0)[None]
    return jnp.sqrt(jnp.mean(deviations * deviations, axis=(0, 2)) + 1e-12)[None, :, None]
