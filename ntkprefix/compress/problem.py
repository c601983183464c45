"""What a compression method is, and what it is given: one layer's prompt, and queries that its answer should suit."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ntkprefix._pytree import Leaf, pytree, static_field
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prefixes.base import Prefix

# Keys looked at at a time where every query meets every key.
_CHUNK = 1024


@pytree
class Known:
    """What a problem's queries see, where it has been found already: for methods that are tried one after another.

    Attributes:
        exact: as `Problem.exact` gives it.
        masses: as `attention_masses` gives them.

    Example:
        >>> import jax
        >>> from ntkprefix.compress.problem import Problem, observed
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 8, 2, 4))
        >>> known = observed(Problem(keys, values, queries, beside=None, scale=0.5)).known
        >>> known.exact.den.shape, known.masses.shape  # of queries and heads; of heads and tokens
        ((8, 2), (2, 8))
    """

    exact: Partial
    masses: Leaf


@pytree
class Problem:
    """A prompt's keys and values in one layer, and who will ask for them.

    Attributes:
        keys: p, [M, K, H], float32 or wider.
        values: u, [M, K, Hv].
        queries: [Q, N, H], with positions turned into them where the model does so; Q may be 0.
        beside: the share of attention of everything else that each query sees, [Q, N, ...]; None for nothing.
        scale: beta.
        log_weights: of tokens that stand for others already, [M, K]; None for 0.
        known: what need not be computed again.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix.compress.problem import Problem
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 8, 2, 4))
        >>> problem = Problem(keys, values, queries, beside=None, scale=0.5)
        >>> problem.length, problem.heads
        (8, 2)
        >>> wanted = jax.jit(Problem.exact)(problem).normalise()
        >>> out = jax.nn.dot_product_attention(queries, keys, values)
        >>> bool(jnp.allclose(wanted, out, atol=1e-5))
        True
    """

    keys: Leaf
    values: Leaf
    queries: Leaf
    beside: Partial | None
    scale: float = static_field()
    log_weights: Leaf | None = None
    known: Known | None = None

    @property
    def heads(self) -> int:
        """K."""
        return self.keys.shape[1]

    @property
    def length(self) -> int:
        """M."""
        return self.keys.shape[0]

    def exact(self) -> Partial:
        """The prompt's own share for every query, [Q, N, ...]: what is to be approximated."""
        if self.known is not None:
            return self.known.exact
        return answer(TokenPrefix(self.keys, self.values, self.log_weights), self.queries, self.scale)

    def added(self) -> Float[Array, "M K"]:
        """What is added to the logits of every token: its log-weight, or 0."""
        if self.log_weights is None:
            return jnp.zeros(self.keys.shape[:2], self.keys.dtype)
        return self.log_weights

    def centred_keys(self) -> Float[Array, "M K H"]:
        """Keys less their mean: weights among them are the same."""
        return self.keys - jnp.mean(self.keys, axis=0)[None]


@runtime_checkable
class Method(Protocol):
    """How a layer's prompt becomes a small prefix: a hashable value, under whose options one program is compiled.

    One that minds the log-weights of tokens that have been compressed before says so by `takes_weights = True`.

    Example:
        >>> import dataclasses
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.compress import Method, compress
        >>> @dataclasses.dataclass(frozen=True)
        ... class KeepEvery:
        ...     step: int
        ...     needs_queries = False
        ...
        ...     def __call__(self, problem, numbers, key):
        ...         most = numbers // (problem.keys.shape[-1] + problem.values.shape[-1])
        ...         kept = slice(None, most * self.step, self.step)
        ...         return TokenPrefix(problem.keys[kept], problem.values[kept])
        >>> isinstance(KeepEvery(2), Method)
        True
        >>> tokens = jnp.arange(10.0)[:, None, None]
        >>> compress(tokens, tokens, method=KeepEvery(3), budget=3).prefix.keys.ravel().tolist()
        [0.0, 3.0, 6.0]
    """

    @property
    def needs_queries(self) -> bool:
        """Whether it fits the prefix to queries."""
        ...

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> Any:
        """A prefix of at most `numbers` numbers for each kv head.

        Raises:
            ValueError: so few hold none.
        """
        ...


def answer(prefix: Prefix, queries: Float[Array, "Q N H"], scale: float) -> Partial:
    """A prefix's share for queries without a batch, [Q, N, ...]."""
    return jax.tree.map(lambda array: array[0], prefix.partial(queries[None], scale))


def by_kv_head(array: Float[Array, "Q N *rest"], heads: int) -> Float[Array, "K QG *rest"]:
    """What belongs to each kv head: its G query heads' queries behind one another."""
    count, query_heads, *rest = array.shape
    grouped = jnp.moveaxis(array.reshape(count, heads, query_heads // heads, *rest), 1, 0)
    return grouped.reshape(heads, count * (query_heads // heads), *rest)


def attention_masses(problem: Problem) -> Float[Array, "K M"]:
    r"""How much attention every key gets: the mean over queries of its weight over all that the query sees.

    What else a query sees takes its part of it, so that a head that looks elsewhere counts for little.
    """
    if problem.known is not None:
        return problem.known.masses
    exact = problem.exact()
    seen = exact if problem.beside is None else merge(exact, problem.beside)
    log_total = by_kv_head(seen.log_mass(), problem.heads)
    queries = by_kv_head(problem.queries, problem.heads) * problem.scale

    def of_head(parts: tuple[Array, Array, Array, Array]) -> Array:
        keys, added, queries, log_total = parts

        def of_token(token: tuple[Array, Array]) -> Array:
            key, added = token
            return jnp.mean(jnp.exp(queries @ key + added - log_total))

        return jax.lax.map(of_token, (keys, added), batch_size=min(_CHUNK, len(keys)))

    return jax.lax.map(of_head, (jnp.moveaxis(problem.keys, 1, 0), problem.added().T, queries, log_total))


def observed(problem: Problem) -> Problem:
    """The same problem, which knows what its queries see."""
    return dataclasses.replace(problem, known=Known(problem.exact(), attention_masses(problem)))


def gather(problem: Problem, chosen: Array, log_weights: Array | None = None) -> TokenPrefix:
    """The tokens of each head whose numbers are `chosen`, [K, C], with weights [K, C] if there are some."""
    rows = jnp.moveaxis(chosen, 0, 1)[..., None]
    keys, values = (jnp.take_along_axis(array, rows, axis=0) for array in (problem.keys, problem.values))
    return TokenPrefix(keys, values, None if log_weights is None else jnp.moveaxis(log_weights, 0, 1))


def tokens_within(numbers: int, problem: Problem, *, weighted: bool) -> int:
    """C, how many tokens of each head are at most `numbers` numbers, and no more than there are.

    Raises:
        ValueError: none, where the budget has room for a token and not for its weight.
    """
    each = _numbers_of_one(problem, weighted=weighted)
    if numbers < each:
        raise ValueError(
            f"budget: expected room for a token with its weight, {each} numbers for each head, got {numbers}. Ask for "
            "more, such as '2 tokens'."
        )
    return min(numbers // each, problem.length)


def weighted_tokens(numbers: int, problem: Problem) -> int:
    """How many there would be, which may be none."""
    return min(numbers // _numbers_of_one(problem, weighted=True), problem.length)


def _numbers_of_one(problem: Problem, *, weighted: bool) -> int:
    return problem.keys.shape[-1] + problem.values.shape[-1] + weighted
