"""How many numbers each head may keep: the same for all, or more where the error needs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntkprefix._dtypes import accumulator
from ntkprefix.compress import Matching
from ntkprefix.compress.compress import fitted_to
from ntkprefix.compress.problem import Problem, observed
from ntkprefix.compress.report import query_errors
from ntkprefix.hosts import to_host
from ntkprefix.parts import Parts
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts.calibration import Calibration
from ntkprefix.prompts.effects import effects
from ntkprefix.prompts.texts import Texts

# Sizes that a head may get beside that of all its tokens, as parts of what it would get if all got the same.
_PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
_EVEN = _PARTS.index(1)
# Beyond that part of the prompt, fitting costs more than the tokens that it saves.
_FITTED = 1 / 2
# Queries that sizes are fitted to: time goes with their number, and it is not these fits that are kept.
_QUERIES = 1024
_METHOD = Matching(in_context=True)
# Of an even share, in which shares are found.
_UNITS = 64


class Needs(NamedTuple):
    """What each head's error would be at each size.

    Attributes:
        numbers: of a head at each size, ascending, [S]; the last is that of all its tokens, where there are sizes for
            less.
        errors: mean over a kv head's query heads, or what they do to the next tokens' distribution, nats a token,
            [S, L, K].
    """

    numbers: Int[np.ndarray, " S"]
    errors: Float[np.ndarray, "S L K"]


def needs(
    whole: TokenPrefix,
    asked: Calibration,
    even: int,
    *,
    felt: Callable[[], Float[np.ndarray, "L draws B T N Hv"]] | None = None,
    on_layer: Callable[[int], None] = lambda _: None,
    parts: Parts | None = None,
) -> Needs:
    """The errors of Attention Matching at a sixteenth to eight times the size that each head gets if all get the same.

    Sizes are those up to half of the prompt, and that of the whole prompt, of which nothing is lost but what rounding
    to few bits may lose: the heads that look single tokens up, a few of each model, answer badly until they have
    nearly all.

    It is fitted to queries of one half of those that methods are fitted to, and its errors are those of the other half:
    of what it was fitted to, the errors of large sizes would be too small. The held-out queries stay what they are.

    Args:
        whole: the prompt's keys and values, [L, M, K, H].
        asked: of the same layers.
        even: numbers of each head if all got the same.
        felt: gives the `scores` of the texts of `judging`, for `effects` in place of errors; called where it is needed.
        on_layer: called with the number of layers done.
        parts: where the errors of layers are kept, and those of a call that was stopped are found.

    Returns:
        Sizes and errors; a size is left out where a head could not have it.

    Source: heads that need all tokens where others need few, DuoAttention (arXiv 2410.10819), which trains to find
        them.
    """
    layers, length, heads, _ = whole.keys.shape
    most = everything(whole)
    numbers = np.array([int(part * even) for part in _PARTS])
    small = (numbers <= _FITTED * most) | (np.arange(len(numbers)) <= _EVEN)
    numbers = numbers[(numbers >= most // length) & small]
    fitted = fitted_to(asked.queries.shape[1])
    errors = np.zeros((len(numbers), layers, heads))
    parts = parts or Parts()
    for layer in range(layers):
        tokens, of_layer = jax.tree.map(lambda leaf, at=layer: leaf[at], (whole, asked))
        of_fitted = jax.tree.map(lambda leaf: leaf[:fitted], of_layer)

        name, of_heads = ("need", asked.queries.shape[2]) if felt is None else ("effect", heads)
        dtype = accumulator(tokens.keys.dtype, tokens.values.dtype)
        found = parts.find(f"{name}-{layer}", jax.ShapeDtypeStruct((len(numbers), of_heads), dtype))
        if found is None:
            scores = None if felt is None else felt()[layer]
            pair = _halves(tokens, of_fitted, None if scores is None else scores.shape[1:3])
            # One after another: programs that devices exchange numbers in must not wait for each other's.
            each = [jax.block_until_ready(_error(*pair, scores, numbers=int(count))) for count in numbers]
            found = jnp.stack(each)
            parts.put(f"{name}-{layer}", found)
        errors[:, layer] = to_host(found).reshape(len(numbers), heads, -1).mean(axis=-1)
        on_layer(layer + 1)
    if most > numbers[-1]:
        numbers, errors = np.append(numbers, most), np.concatenate([errors, np.zeros((1, layers, heads))])
    return Needs(numbers, errors)


def everything(whole: TokenPrefix) -> int:
    """Numbers of a head that keeps all of the prompt's tokens, weighted."""
    _, length, _, width = whole.keys.shape
    return length * (width + whole.values.shape[-1] + 1)


def judging(texts: Texts) -> Texts:
    """The later half of the texts that methods are fitted to, on which sizes are judged; of a single one, its part."""
    fitted = texts.fitted()
    return fitted.some(slice(-max(len(fitted.tokens) // 2, 1), None))


@partial(jax.jit, static_argnames="numbers")
def _error(fitting, judged, felt, *, numbers):
    """Of each query head, [N], the mean over queries that Attention Matching is not fitted to; or effects, [K]."""
    prefix = _METHOD(fitting, numbers, jax.random.key(0))
    if felt is None:
        return jnp.mean(query_errors(judged, prefix), axis=0)
    return effects(judged, felt, prefix)


@partial(jax.jit, static_argnames="judged_by")
def _halves(tokens, asked, judged_by):
    """With queries that are fitted to, and with those on which sizes are judged: of B texts of T tokens, or half."""
    dtype = accumulator(tokens.keys.dtype, tokens.values.dtype)
    tokens, asked = jax.tree.map(lambda leaf: leaf.astype(dtype), (tokens, asked))
    count = len(asked.queries)
    rows, length = judged_by or (max(count // 2, 1), 1)
    last = count // length * length
    places = np.arange(count)
    judged = (places >= last - rows * length) & (places < last)

    def some(which: Int[np.ndarray, " q"]) -> Problem:
        queries, beside = jax.tree.map(lambda leaf: leaf[which], (asked.queries, asked.beside))
        scale = tokens.keys.shape[-1] ** -0.5
        return observed(Problem(tokens.keys, tokens.values, queries, beside, scale, tokens.log_weights))

    # Of one text or two there are too few others: then it is fitted to all.
    others = ~judged if 2 * judged.sum() <= count else np.ones(count, bool)
    spread = np.linspace(0, others.sum() - 1, min(others.sum(), _QUERIES)).astype(int)
    return some(np.flatnonzero(others)[spread]), some(np.flatnonzero(judged))


def shared_out(found: Needs, total: int) -> Int[np.ndarray, "L K"]:
    r"""Numbers of each head, at most `total` together, that make the sum of all heads' errors smallest.

    $$ \min \sum_{h,s} e_{sh} x_{sh}, \qquad \sum_s x_{sh} = 1, \quad \sum_{h,s} n_s x_{sh} \le total, \quad
       x_{sh} \in \{0, 1\}, $$

    a knapsack from which each head takes one size. Steps in order of what they save would not do: where nothing but all
    of its tokens helps a head, and there is no room for these, it should have what there is room for.

    Args:
        found: sizes and errors.
        total: numbers for all heads, at least the smallest size of each.

    Returns:
        Numbers of each head; of sizes with the same error the smallest.

    Raises:
        ValueError: there is no room for the smallest sizes.

    Example:
        >>> import numpy as np
        >>> from ntkprefix.prompts.sizes import Needs, shared_out
        >>> errors = np.array([[[0.9, 0.1]], [[0.4, 0.09]], [[0.1, 0.08]]])
        >>> shared_out(Needs(np.array([10, 20, 40]), errors), total=55)
        array([[40, 10]])

    Source: dynamic programming over the heads, in 64ths of what each would get if all got the same, to which sizes are
        rounded up.
    """
    sizes, heads = len(found.numbers), found.errors[0].size
    errors = found.errors.reshape(sizes, heads)
    room = _UNITS * heads
    # Sizes of whole units are a little less, since numbers are rounded down.
    costs = np.ceil(found.numbers * (room / total) - 1e-9).astype(int)
    if heads * costs[0] > room:
        raise ValueError(
            f"shared_out: expected room for {found.numbers[0]} numbers for each of {heads} heads, got {total}."
        )
    least, chosen = np.zeros(room + 1), np.zeros((heads, room + 1), np.int8)
    for head in range(heads):
        # Of the heads up to this one, for each size of this one and all that they may take together.
        sums = np.full((sizes, room + 1), np.inf)
        for size, cost in enumerate(costs[costs <= room]):
            sums[size, cost:] = least[: room + 1 - cost] + errors[size, head]
        chosen[head] = np.argmin(sums, axis=0)
        least = np.min(sums, axis=0)
    shares, left = np.zeros(heads, int), room
    for head in reversed(range(heads)):
        shares[head] = chosen[head, left]
        left -= costs[shares[head]]
    return found.numbers[shares].reshape(found.errors.shape[1:])


def meeting(found: Needs, error: float) -> Int[np.ndarray, "L K"]:
    """The smallest numbers at which each head's error is at most this; the largest where none is."""
    met = found.errors <= error
    return found.numbers[np.where(met.any(axis=0), met.argmax(axis=0), len(found.numbers) - 1)]
