"""What a compressed prompt costs, and how wrong it is on queries that it was not fitted to."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.bounds import taylor_error_bound
from ntkprefix.compress.problem import Problem, answer, by_kv_head
from ntkprefix.feature_maps import Taylor
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import FeaturePrefix

# On either side. Chosen on a page of Middlemarch: of what the book goes on to ask, the middle nine tenths of held-out
# errors held eight tenths for methods that fit nothing; this holds nine.
_OUTSIDE = 0.025


@pytree
class Report:
    r"""Sizes and errors of one layer, or of all layers with an axis of layers in front.

    The error of a query is $\|\tilde{out}(q) - out(q)\| / \|out(q)\|$ of its attention output with everything else that
    it sees. Held-out queries are ones that nothing was fitted to; without any, errors are NaN.

    Attributes:
        error: mean over held-out queries, [N].
        low: with `high` what holds nine of ten queries of a new text: 2.5 % of the held-out queries have a smaller
            error, [N].
        high: 2.5 % have a larger one, [N]. 19 of 20 queries of the same kind lie between the two; those of a text that
            somebody wrote differ more from the model's own, by as much as `experiments.compression` finds.
        mass_error: mean of $|\log \tilde{den}(q) - \log den(q)|$, [N]; infinite where a denominator is not positive.
        radius: rho, the largest |beta q.(p_r - p_mean)|, [N]: what a-priori bounds depend on.
        value_bound: the largest absolute entry of the prompt's values, [N].
        held_out: number of queries that were not fitted to.
        numbers: stored for every kv head, on average.
        itemsize: bytes of one, on average.
        prompt_numbers: of the prompt's own keys and values, likewise.
        prompt_itemsize: bytes of one of those.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import Sums, compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 2, 4)) / 2
        >>> state, report = compress(keys, values, method=Sums("taylor"), budget="2x", queries=queries)
        >>> report.error.shape, report.held_out, round(report.ratio, 1)
        ((2,), 16, 2.8)
        >>> bool(report.error.max() < 0.1), report.above(0.1)
        (True, [])
    """

    error: Leaf
    low: Leaf
    high: Leaf
    mass_error: Leaf
    radius: Leaf
    value_bound: Leaf
    held_out: int = static_field()
    numbers: float = static_field()
    itemsize: float = static_field()
    prompt_numbers: int = static_field()
    prompt_itemsize: float = static_field()

    @property
    def ratio(self) -> float:
        """How many times smaller than the prompt's keys and values, in bytes."""
        return self.prompt_numbers / self.numbers * (self.prompt_itemsize / self.itemsize)

    def above(self, error: float) -> list[tuple[int, ...]]:
        """The heads whose error is larger, worst first: (head,), or (layer, head) of a report of all layers."""
        found = np.asarray(self.error)
        worst = np.argsort(-found, axis=None)[: np.sum(found > error)]
        return [tuple(map(int, head)) for head in np.stack(np.unravel_index(worst, found.shape), axis=1)]

    def bound(self, prefix: Any) -> float | None:
        """The a-priori bound on the error of an output's entries, over all heads; None where there is none.

        Args:
            prefix: the one that the report is about.

        Returns:
            `taylor_error_bound` for a state of Taylor features, if no query leaves the radius and no value in sight is
            larger than the prompt's; infinity where it says nothing.
        """
        if not isinstance(prefix, FeaturePrefix) or not isinstance(prefix.feature_map, Taylor):
            return None
        radius, values = float(jnp.max(self.radius)), float(jnp.max(self.value_bound))
        return math.inf if math.isnan(radius) else taylor_error_bound(radius, prefix.feature_map.degree, values)


def measured(problem: Problem, prefix: Any) -> Report:
    """How wrong a prefix answers the problem's queries, none of which it was fitted to."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(prefix)) / problem.heads
    itemsize = problem.keys.dtype.itemsize
    weighted = problem.log_weights is not None
    prompt = problem.length * (problem.keys.shape[-1] + problem.values.shape[-1] + weighted)
    queries, query_heads, _ = problem.queries.shape
    value_bound = jnp.repeat(jnp.max(jnp.abs(problem.values), axis=(0, 2)), query_heads // problem.heads)
    static = {"held_out": queries, "numbers": numbers, "prompt_numbers": prompt}
    static |= {"itemsize": itemsize, "prompt_itemsize": itemsize}
    if not queries:
        unknown = jnp.full(query_heads, jnp.nan, problem.keys.dtype)
        return Report(unknown, unknown, unknown, unknown, unknown, value_bound, **static)
    exact, share = problem.exact(), answer(prefix, problem.queries, problem.scale)
    errors = _errors(problem, exact, share)
    positive = share.den > 0
    log_den = jnp.where(positive, jnp.log(jnp.where(positive, share.den, 1.0)) + share.log_scale, -jnp.inf)
    low, high = jnp.quantile(errors, jnp.array([_OUTSIDE, 1 - _OUTSIDE], errors.dtype), axis=0)
    return Report(
        jnp.mean(errors, axis=0),
        low,
        high,
        jnp.mean(jnp.abs(log_den - exact.log_mass()), axis=0),
        _radius(problem),
        value_bound,
        **static,
    )


def query_errors(problem: Problem, prefix: Any) -> Float[Array, "Q N"]:
    r"""How wrong a prefix answers each of the problem's queries: what `Report.error` is the mean of.

    $$ \|\tilde{out}(q) - out(q)\| / \|out(q)\| $$

    Args:
        problem: one layer's prompt, and queries with all else that they see beside it.
        prefix: of the same layer.

    Returns:
        Relative errors of attention outputs, [Q, N].

    Raises:
        TypeError: as for the prefix.
        ValueError: as for the prefix.

    Example:
        >>> import jax
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.compress.problem import Problem
        >>> from ntkprefix.compress.report import query_errors
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 2, 16))
        >>> problem = Problem(keys, values, queries, beside=None, scale=0.25)
        >>> float(query_errors(problem, TokenPrefix(keys, values)).max())
        0.0
    """
    return _errors(problem, problem.exact(), answer(prefix, problem.queries, problem.scale))


def _errors(problem: Problem, exact: Partial, share: Partial) -> Float[Array, "Q N"]:
    """`query_errors` of shares that are known."""
    both = [each if problem.beside is None else merge(each, problem.beside) for each in (exact, share)]
    wanted, out = (each.normalise() for each in both)
    size = jnp.linalg.norm(wanted, axis=-1)
    return jnp.linalg.norm(out - wanted, axis=-1) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)


def _radius(problem: Problem) -> Float[Array, " N"]:
    queries = by_kv_head(problem.queries, problem.heads) * problem.scale
    keys = jnp.moveaxis(problem.centred_keys(), 1, 0)

    def of_head(parts: tuple[Array, Array]) -> Array:
        queries, keys = parts
        reach = jax.lax.map(lambda query: jnp.max(jnp.abs(keys @ query)), queries, batch_size=min(256, len(queries)))
        # by_kv_head puts a query's G heads next to each other.
        return jnp.max(reach.reshape(problem.queries.shape[0], -1), axis=0)

    return jax.lax.map(of_head, (queries, keys)).reshape(-1)
