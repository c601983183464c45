"""One layer's arrays -> a small prefix and a report."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix.compress.budget import numbers_within
from ntkprefix.compress.problem import Method, Problem
from ntkprefix.compress.registry import METHODS
from ntkprefix.compress.report import Report, measured
from ntkprefix.partial import Partial
from ntkprefix.prefixes.base import Prefix


class Compressed(NamedTuple):
    """A small prefix, and what is known about it.

    Attributes:
        prefix: for the `prefix=` of `ntkprefix.attention`.
        report: what it costs, and how wrong it is.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import compress
        >>> keys, values = jax.random.normal(jax.random.key(0), (2, 64, 2, 4))
        >>> small = compress(keys, values, method="ends", budget="8x")
        >>> small.prefix.keys.shape, small.report.ratio
        ((8, 2, 4), 8.0)
        >>> small.report.error.tolist()  # without queries it is not known
        [nan, nan]
    """

    prefix: Any
    report: Report


def compress(
    keys: Float[Array, "M K H"],
    values: Float[Array, "M K Hv"],
    *,
    log_weights: Float[Array, "M K"] | None = None,
    method: str | Method = "refined",
    budget: int | str,
    queries: Float[Array, "Q N H"] | None = None,
    beside: Partial | None = None,
    scale: float | None = None,
    seed: int = 0,
) -> Compressed:
    """A small prefix that answers nearly as a prompt's keys and values do.

    Args:
        keys: p, [M, K, H], as attention sees them: with positions turned into them where the model does so.
        values: u, [M, K, Hv].
        log_weights: of tokens that have been compressed before, [M, K]; 0 if None. Only methods whose `takes_weights`
            is true mind them.
        method: a name among `METHODS`, or one of its classes with options of its own.
        budget: tokens for each head as an integer, or a text: `"32x"` for a 32nd of the prompt's size, `"128 tokens"`,
            or, for all heads together, `"20000 numbers"` or `"64 KiB"` (in the type of `keys`).
        queries: such as will be asked, [Q, N, H]: methods that fit are fitted to the first three quarters of them, and
            the report is measured on the rest. Neighbours in a text are alike, so put other texts' last.
        beside: share of attention of all else that each query sees, [Q, N, ...]; nothing if None.
        scale: beta; 1/sqrt(H) if None.
        seed: of what is random.

    Returns:
        The prefix, float32 or wider, and the report.

    Raises:
        TypeError: arrays that are not floating point, a budget or seed of another type.
        ValueError: shapes that do not fit, no tokens, an unknown method, one that needs queries without any or does not
            mind weights where there are some, a budget that is too small for the method, a scale that is not above 0.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 512, 2, 16))
        >>> small, report = compress(keys, values, method="matching", budget="8x", queries=queries)
        >>> small.keys.shape, round(report.ratio, 1)
        ((62, 2, 16), 8.0)
        >>> bool(report.error.mean() < 0.7)
        True

    Source: each method's class names its own.
    """
    chosen = method_of(method)
    checks.fit_together(
        "compress",
        {"keys": "M K H", "values": "M K Hv", "log_weights": "M K", "queries": "Q N H"},
        {"keys": keys, "values": values, "log_weights": log_weights, "queries": queries},
        optional=("log_weights", "queries"),
    )
    if keys.ndim != 3:
        raise ValueError(f"compress: expected keys [M, K, H], got shape {list(keys.shape)}. Use a loop, or jax.vmap.")
    length, heads, width = keys.shape
    checks.at_least(1, "compress", tokens=length)
    checks.random_seed("compress", seed)
    if log_weights is not None and not getattr(chosen, "takes_weights", False):
        raise ValueError(
            f"compress: {method!r} is for tokens that all weigh the same, and these have log-weights. Choose matching, "
            "matching-in-context or refined."
        )
    if queries is None:
        if chosen.needs_queries:
            raise ValueError(
                f"compress: {method!r} is fitted to queries, and there are none. Give queries=, such as will be asked."
            )
        queries = jnp.zeros((0, heads, width), keys.dtype)
    if queries.shape[1] % heads:
        raise ValueError(f"compress: expected queries of a multiple of {heads} heads, got {queries.shape[1]}.")
    token = width + values.shape[-1] + (log_weights is not None)
    numbers = numbers_within(budget, length=length, heads=heads, token=token, itemsize=keys.dtype.itemsize)
    beta = checks.positive_scale(scale, width)
    if beside is not None and beside.den.shape != queries.shape[:2]:
        raise ValueError(
            f"compress: expected `beside` of the queries' shape {list(queries.shape[:2])}, got "
            f"{list(beside.den.shape)}."
        )
    dtype = accumulator(keys.dtype, values.dtype)
    arrays = jax.tree.map(lambda array: jnp.asarray(array, dtype), (keys, values, log_weights, queries, beside))
    return Compressed(*_run(*arrays, jax.random.key(seed), method=chosen, numbers=numbers, scale=float(beta)))


def judge(
    prefix: Prefix,
    keys: Float[Array, "M K H"],
    values: Float[Array, "M K Hv"],
    *,
    log_weights: Float[Array, "M K"] | None = None,
    queries: Float[Array, "Q N H"],
    beside: Partial | None = None,
    scale: float | None = None,
) -> Report:
    """The report of a prefix that stands for given keys and values, wherever it comes from.

    Args:
        prefix: of one layer.
        keys: as for `compress`.
        values: likewise.
        log_weights: likewise.
        queries: none of which it was fitted to, [Q, N, H].
        beside: as for `compress`.
        scale: likewise.

    Returns:
        The report.

    Raises:
        TypeError: as for the prefix.
        ValueError: as for the prefix, or a scale that is not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.compress import judge
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 8, 2, 4))
        >>> once = TokenPrefix(keys, values, jnp.full((8, 2), jnp.log(2.0)))  # each as heavy as two
        >>> report = judge(once, jnp.repeat(keys, 2, axis=0), jnp.repeat(values, 2, axis=0), queries=queries)
        >>> round(report.ratio, 2), bool(report.error.max() < 1e-5)
        (1.78, True)
    """
    beta = float(checks.positive_scale(scale, keys.shape[-1]))
    return _judge(prefix, Problem(keys, values, queries, beside, beta, log_weights))


def fitted_to(queries: int) -> int:
    """Of so many queries, how many of the first are fitted to: all but the last quarter."""
    return queries - queries // 4


def method_of(method: str | Method) -> Method:
    """A method by its name, or itself.

    Raises:
        ValueError: no such name.
    """
    if isinstance(method, str):
        checks.one_of("compress", "method", method, tuple(METHODS))
        return METHODS[method]
    return method


@partial(jax.jit, static_argnames=("method", "numbers", "scale"))
def _run(keys, values, log_weights, queries, beside, key, *, method, numbers, scale):
    fitted = fitted_to(queries.shape[0])
    asked, held = ((queries[part], _part(beside, part)) for part in (slice(None, fitted), slice(fitted, None)))
    prefix = method(Problem(keys, values, *asked, scale, log_weights), numbers, key)
    return prefix, measured(Problem(keys, values, *held, scale, log_weights), prefix)


@jax.jit
def _judge(prefix: Prefix, problem: Problem) -> Report:
    return measured(problem, prefix)


def _part(beside: Partial | None, part: slice) -> Partial | None:
    return jax.tree.map(lambda array: array[part], beside)
