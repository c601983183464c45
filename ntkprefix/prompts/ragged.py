"""Heads of several lengths: as long as the longest while they are made and changed, and as they are in files."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ntkprefix.prefixes import TokenPrefix

# How many times more tokens may be in memory than in a file, so that a damaged one cannot ask for more memory than
# there is: where a head keeps all of its tokens, they are as many times more as the file is smaller than the prompt.
_MOST_FILLED = 256


def filled(prefix: Any, length: int) -> TokenPrefix:
    """As many tokens as `length`: those that are not there are copies of the first one that weigh nothing.

    Args:
        prefix: tokens of one layer, [C, K, ...].
        length: at least C.

    Returns:
        Weighted tokens.

    Raises:
        TypeError: a prefix of another kind, which cannot be filled up.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts.ragged import filled
        >>> filled(TokenPrefix(*jnp.ones((2, 2, 1, 4))), 3).log_weights[:, 0].tolist()
        [0.0, 0.0, -inf]
    """
    if not isinstance(prefix, TokenPrefix):
        raise TypeError(
            f"compress_prompt: heads of several sizes need a method that makes tokens, got {type(prefix).__name__}. "
            "Share the budget evenly, and ask for no error."
        )
    missing = length - prefix.keys.shape[0]
    weights = prefix.log_weights
    if weights is None:
        weights = jnp.zeros(prefix.keys.shape[:2], prefix.keys.dtype)
    copies = [jnp.repeat(array[:1], missing, axis=0) for array in (prefix.keys, prefix.values)]
    nothing = jnp.full((missing, weights.shape[1]), -jnp.inf, weights.dtype)
    pairs = zip((prefix.keys, prefix.values, weights), (*copies, nothing), strict=True)
    return TokenPrefix(*(jnp.concatenate(pair) for pair in pairs))


def counted(log_weights: Float[np.ndarray, "L C K"]) -> Int[np.ndarray, "L K"]:
    """How many tokens of each head weigh something; at least one, so that there is something to fill up with."""
    return np.maximum(np.sum(~np.isneginf(log_weights), axis=1), 1)


def flat(prefix: TokenPrefix) -> dict[str, np.ndarray]:
    """The tokens that weigh something, head by head and layer by layer: S of them.

    Args:
        prefix: of all layers, [L, C, K, ...], weighted.

    Returns:
        `counts`, [L, K]; `keys`, [S, H]; `values`, [S, Hv]; and `log_weights`, [S], where one is not 0.
    """
    keys, values, weights = (
        np.asarray(array, np.float32) for array in (prefix.keys, prefix.values, prefix.log_weights)
    )
    counts = counted(weights)
    # Tokens of no weight go last; the others keep their order.
    order = np.argsort(np.isneginf(weights), axis=1, kind="stable")
    there = np.arange(weights.shape[1])[None, None] < counts[..., None]
    rows = {"keys": keys, "values": values, "log_weights": weights[..., None]}
    found = {
        name: np.moveaxis(np.take_along_axis(array, order[..., None], axis=1), 1, 2)[there]
        for name, array in rows.items()
    }
    found["log_weights"] = found["log_weights"][:, 0]
    if not found["log_weights"].any():
        del found["log_weights"]
    return {"counts": counts.astype(np.int32)} | found


def starts_of(counts: Int[np.ndarray, "*layers K"]) -> Int[np.ndarray, "*layers K"]:
    """Where each head's tokens begin among those of all."""
    return (np.cumsum(counts.ravel()) - counts.ravel()).reshape(counts.shape)


def padded(
    counts: Int[np.ndarray, "L K"],
    keys: Float[np.ndarray, "S H"],
    values: Float[np.ndarray, "S Hv"],
    log_weights: Float[np.ndarray, " S"] | None = None,
) -> TokenPrefix:
    """What `flat` made flat, filled up to the longest head.

    Raises:
        ValueError: counts below 1, that do not add up to S, or that would fill up memory with copies.
    """
    total = len(keys)
    if counts.size == 0 or counts.min() < 1 or counts.sum(dtype=np.int64) != total:
        raise ValueError(f"expected counts of at least 1 that add up to its {total} tokens")
    longest = int(counts.max())
    if longest * counts.size > _MOST_FILLED * total:
        raise ValueError(f"its longest head has {longest} of {total} tokens")
    starts = starts_of(counts).reshape(-1, 1)
    places = np.arange(longest)[None] < counts.reshape(-1, 1)
    # Beyond a head's own tokens, its first one.
    rows = np.where(places, starts + np.arange(longest)[None], starts)
    weights = np.zeros(total, np.float32) if log_weights is None else log_weights
    weights = np.where(places, weights[rows], -np.inf)

    def of_layers(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array.reshape(*counts.shape, longest, *array.shape[2:]), 2, 1)

    return TokenPrefix(*(jnp.asarray(of_layers(array)) for array in (keys[rows], values[rows], weights)))
