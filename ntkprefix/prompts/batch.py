"""Prompts beside one another: a batch in which each row goes on from a prompt of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ntkprefix.prefixes import JoinedPrefix, MeasurePrefix, TokenPrefix
from ntkprefix.prompts.algebra import checked
from ntkprefix.prompts.ragged import filled


class BatchedPrompts(NamedTuple):
    """What stands for a prompt in every row.

    Attributes:
        prefixes: for a model's or `generate`'s `prefixes=`: arrays with leading axes of layers and rows.
        start: for `generate`'s `start=`: position of what comes after each row's prompt, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import JoinedPrompt, batch_prompts
        >>> short, long = (JoinedPrompt(TokenPrefix(*jnp.ones((2, 3, M, 1, 4))), M) for M in (1, 2))
        >>> prefixes, start = batch_prompts([short, long])
        >>> prefixes.log_weights[0, :, :, 0].tolist(), start.tolist()  # of the first layer: rows, tokens
        ([[0.0, -inf], [0.0, 0.0]], [1, 2])
    """

    prefixes: Any
    start: Int[Array, " B"]


def batch_prompts(prompts: Sequence[Any]) -> BatchedPrompts:
    """One prompt for each row of a batch, so that requests behind several prompts are answered at once.

    Prompts may be of several sizes: tokens and clouds are filled up to the most of any row by such that weigh nothing.
    `packed` leaves those of tokens out again, for use. They are of one kind and for one model.

    Args:
        prompts: one for each row: of `compress_prompt`, `load_prompt` or `merge_prompts`.

    Returns:
        Prefixes and starts of B rows.

    Raises:
        TypeError: something that is no prompt.
        ValueError: no prompts; prefixes of several kinds, of several models' layers, heads or widths, or states of
            several feature maps; the message says which row.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import JoinedPrompt, batch_prompts
        >>> short, long = (JoinedPrompt(TokenPrefix(*jnp.ones((2, 3, M, 1, 4))), 10 * M) for M in (5, 7))
        >>> both = batch_prompts([short, long])
        >>> both.prefixes.keys.shape, both.start.tolist()
        ((3, 2, 7, 1, 4), [50, 70])
    """
    if not prompts:
        raise ValueError("batch_prompts: expected at least one prompt, got none.")
    for prompt in prompts:
        checked("batch_prompts", prompt)
    rows = _alike([prompt.prefixes for prompt in prompts])
    first, *others = rows
    for number, other in enumerate(others, start=1):
        if _sizes(other) != _sizes(first):
            raise ValueError(
                "batch_prompts: expected prompts of one kind and for one model, got one in row "
                f"{number} that is {_told(prompts[number].prefixes)}, where row 0 is {_told(prompts[0].prefixes)}."
            )
    stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays, axis=1), *rows)
    return BatchedPrompts(stacked, jnp.asarray([prompt.start for prompt in prompts], jnp.int32))


def _alike(rows: list[Any]) -> list[Any]:
    """The same prefixes, as long as the longest where they can be."""
    if all(isinstance(row, JoinedPrefix) for row in rows) and len({len(row.parts) for row in rows}) == 1:
        parts = [_alike(list(each)) for each in zip(*(row.parts for row in rows), strict=True)]
        return [JoinedPrefix(tuple(each)) for each in zip(*parts, strict=True)]
    if all(isinstance(row, TokenPrefix) for row in rows):
        longest = max(row.keys.shape[1] for row in rows)
        weighted = any(row.log_weights is not None or row.keys.shape[1] < longest for row in rows)
        return [jax.vmap(lambda layer: filled(layer, longest))(row) for row in rows] if weighted else rows
    if all(isinstance(row, MeasurePrefix) for row in rows):
        most = max(row.mean.shape[1] for row in rows)
        return [_with_empty_clouds(row, most - row.mean.shape[1]) for row in rows]
    return rows


def _with_empty_clouds(prefix: MeasurePrefix, missing: int) -> MeasurePrefix:
    more = jax.tree.map(lambda array: jnp.repeat(array[:, :1], missing, axis=1), prefix)
    more = replace(more, log_weight=jnp.full_like(more.log_weight, -jnp.inf))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, axis=1), prefix, more)


def _sizes(prefix: Any) -> Any:
    return jax.tree.structure(prefix), [array.shape for array in jax.tree.leaves(prefix)]


def _told(prefix: Any) -> str:
    """A prefix in words: its kind and what its arrays measure."""
    if isinstance(prefix, JoinedPrefix):
        return " and ".join(_told(part) for part in prefix.parts)
    arrays = ((name, getattr(prefix, name)) for name in prefix.axes)
    return f"a {type(prefix).__name__} with " + ", ".join(
        f"{name} {list(array.shape)}" for name, array in arrays if array is not None
    )
