"""Ours: Attention Matching in context, and then keys, values and masses trained on the queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ntkprefix import checks
from ntkprefix.compress.matching import Matching
from ntkprefix.compress.problem import Problem, answer
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes import TokenPrefix

# How much squares count beside the errors themselves.
_SQUARES = 3.0
# A relative error to which more accuracy is no use; the root has a derivative then.
_SMALL = 1e-3
# Mean square of outputs below which a head says nothing: quotients by it, and their derivatives, must be numbers.
_NOTHING = 1e-20


@dataclasses.dataclass(frozen=True)
class Refined:
    r"""Weighted tokens that need not be any of the prompt's: C (H + Hv + 1) free numbers for each head.

    It starts from `Matching(in_context=True)`, of the tokens that get most attention or of those that are chosen by
    pursuit: each head from those with which the error below is smaller. From there, Adam minimises the error of the
    outputs that queries get with all else they see beside the prefix,

    $$ \sum_n \frac{1}{Q} \sum_q \Big( \frac{\|\delta_n(q)\|}{\|out_n(q)\|}
       + 3\, \frac{\|\delta_n(q)\|^2}{mean_q \|out_n(q)\|^2} \Big), \qquad \delta = \tilde{out} - out, $$

    over keys and values in units of their own spread, and over log-weights: the report's error, and its squares, since
    what is said next feels a few large errors more than many small ones. Every step takes some of the queries, in turn,
    in an order drawn at random.

    Attributes:
        steps: of Adam.
        batch: queries of a step, at least 1; all where there are fewer.
        step_size: at the start; it falls to 0 along a cosine.
        stored: what a file of few bits makes of a prefix. The error is then that of what it makes, and gradients go
            through it as if it changed nothing, so that training finds numbers which are good when rounded.

    Raises:
        TypeError: no integer, no number.
        ValueError: below 0.

    Example:
        >>> import jax
        >>> from ntkprefix.compress import Refined, compress
        >>> keys, values, queries = jax.random.normal(jax.random.key(0), (3, 64, 2, 4))
        >>> _, report = compress(keys, values, method=Refined(steps=100), budget="8x", queries=queries)
        >>> bool(report.error.mean() < 0.3)  # 0.36 with steps=0, which is Matching(in_context=True)
        True
    """

    steps: int = 400
    batch: int = 512
    step_size: float = 0.03
    stored: Callable[[TokenPrefix], TokenPrefix] | None = None
    needs_queries = True
    takes_weights = True

    def __post_init__(self):
        checks.at_least(0, "Refined", steps=self.steps)
        checks.at_least(1, "Refined", batch=self.batch)
        checks.finite("Refined", least=0.0, step_size=self.step_size)

    def __call__(self, problem: Problem, numbers: int, key: PRNGKeyArray) -> TokenPrefix:
        """Weighted tokens."""
        exact = problem.exact()
        wanted = (exact if problem.beside is None else merge(exact, problem.beside)).normalise()
        size = jnp.maximum(jnp.mean(jnp.sum(wanted * wanted, axis=-1), axis=0), _NOTHING)

        def errors(share: Partial, beside: Partial | None, wanted: Array) -> Float[Array, " N"]:
            out = (share if beside is None else merge(share, beside)).normalise()
            missed, squared = (jnp.sum(part * part, axis=-1) for part in (out - wanted, wanted))
            # Outputs of next to nothing cannot be answered to a part of themselves.
            relative = missed / jnp.maximum(squared, _SMALL**2 * size[None])
            return jnp.mean(jnp.sqrt(relative + _SMALL**2) + _SQUARES * missed / size[None], axis=0)

        def of_all(prefix: TokenPrefix) -> Float[Array, " K"]:
            found = errors(answer(prefix, problem.queries, problem.scale), problem.beside, wanted)
            return jnp.sum(found.reshape(problem.heads, -1), axis=1)

        ways = [Matching(choose, in_context=True, stored=self.stored) for choose in ("attention", "pursuit")]
        noticed, pursued = (way(problem, numbers, key) for way in ways)
        start = _of_heads(of_all(pursued) < of_all(noticed), pursued, noticed)
        spreads = TokenPrefix(_spread(problem.keys), _spread(problem.values), jnp.ones(()))

        def moved(by: TokenPrefix) -> TokenPrefix:
            return jax.tree.map(lambda at, unit, many: at + unit * many, start, spreads, by)

        def kept(by: TokenPrefix) -> TokenPrefix:
            return moved(by) if self.stored is None else straight_through(self.stored, moved(by))

        count = len(wanted)
        batch = min(self.batch, count)
        asked = (problem.queries, problem.beside, wanted)
        # A few of the first once more at the end, so that every batch is whole.
        order = jnp.resize(jax.random.permutation(key, count), -(-count // batch) * batch)
        batches = jax.tree.map(lambda leaf: leaf[order].reshape(-1, batch, *leaf.shape[1:]), asked)

        def loss(by: TokenPrefix, at: Array) -> Float[Array, ""]:
            queries, beside, wanted = jax.tree.map(lambda leaf: leaf[at], batches)
            return jnp.sum(errors(answer(kept(by), queries, problem.scale), beside, wanted))

        adam = optax.scale_by_adam()
        sizes = self.step_size * (1 + np.cos(np.pi * np.arange(self.steps) / max(self.steps, 1))) / 2

        def step(carry: tuple[TokenPrefix, Any], now: tuple[Array, Array]) -> tuple[tuple[TokenPrefix, Any], None]:
            (by, state), (size, at) = carry, now
            gradient = jax.grad(loss)(by, at)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, state = adam.update(gradient, state)
            return (jax.tree.map(lambda at, update: at - size * update, by, updates), state), None

        still = jax.tree.map(jnp.zeros_like, start)
        turns = jnp.arange(self.steps) % (-(-count // batch))
        (by, _), _ = jax.lax.scan(step, (still, adam.init(still)), (jnp.asarray(sizes, problem.keys.dtype), turns))
        return moved(by)


def straight_through(change: Callable[[Any], Any], prefix: Any) -> Any:
    """The prefix as changed, with the gradient as if it were not: of rounding, which has none.

    Source: the straight-through estimator (Bengio, Leonard and Courville, arXiv 1308.3432).
    """
    still = jax.tree.map(jax.lax.stop_gradient, prefix)

    def of_leaf(was: Array, before: Array, now: Array) -> Array:
        # What is not changed may be infinite, as the log-weight of a token that is not there.
        return was if now is before else was + (now - before)

    return jax.tree.map(of_leaf, prefix, still, change(still))


def _of_heads(which: Bool[Array, " K"], first: TokenPrefix, second: TokenPrefix) -> TokenPrefix:
    """The first one's tokens in the heads that are told, and the second one's in the others."""
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(1, -1, *[1] * (a.ndim - 2)), a, b), first, second)


def _spread(tokens: Float[Array, "M K H"]) -> Float[Array, "1 K 1"]:
    """Root mean square distance of a head's tokens from their mean, per channel."""
    deviations: Array = tokens - jnp.mean(tokens, axis=0)[None]
    return jnp.sqrt(jnp.mean(deviations * deviations, axis=(0, 2)) + 1e-12)[None, :, None]
