"""Complaints about what a text model is given: what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.checks.describe import is_int
from ntkprefix.models.adaptation import Adaptation

# Positions are int32 numbers.
_MOST_POSITIONS = 2**31 - 1


def tokens(tokens: Any, mask: Any, config: Any) -> None:
    """Numbers of tokens, and which of them are padding.

    Raises:
        TypeError: tokens that are not integers, a mask that is not boolean.
        ValueError: shapes that do not match.
    """
    if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
        found = getattr(tokens, "dtype", type(tokens).__name__)
        raise TypeError(f"tokens: expected an array of integers below {config.vocabulary}, got {found}.")
    if tokens.ndim != 2:
        raise ValueError(f"tokens: expected [B, T], got shape {list(tokens.shape)}. Add a batch axis to one text.")
    if mask is None:
        return
    if mask.dtype != bool:
        raise TypeError(f"mask: expected booleans, True for tokens and False for padding, got {mask.dtype}.")
    if mask.shape != tokens.shape:
        raise ValueError(f"mask: expected the shape of the tokens, {list(tokens.shape)}, got {list(mask.shape)}.")


def adaptation(prefixes: Any, adapter: Adaptation | None) -> tuple[Any, Any, Any]:
    """Prefixes, low-rank updates and prompt of one call.

    Raises:
        TypeError: something else as adapter.
        ValueError: prefixes given twice, or a prompt of another shape.
    """
    if adapter is None:
        return prefixes, None, None
    if not isinstance(adapter, Adaptation):
        raise TypeError(f"adapter: expected an Adaptation, got {type(adapter).__name__}. Call the adapter's `adapt`.")
    if prefixes is not None and adapter.prefixes is not None:
        raise ValueError("prefixes: expected them once, got prefixes= and those of adapter=.")
    if adapter.prompt is not None and adapter.prompt.ndim != 2:
        raise ValueError(f"prompt: expected [P, width], one for all rows, got shape {list(adapter.prompt.shape)}.")
    return (prefixes if adapter.prefixes is None else adapter.prefixes), adapter.low_rank, adapter.prompt


def enough_positions(length: int, config: Any) -> None:
    """A text, with the prompt in front of it, no longer than the model's trained positions, or those that there are.

    Raises:
        ValueError: it is longer.
    """
    if length > _MOST_POSITIONS:
        raise ValueError(f"tokens: expected at most {_MOST_POSITIONS:,} positions, got {length:,}. Ask for fewer.")
    if config.positions and length > config.positions:
        raise ValueError(f"tokens: expected at most {config.positions} positions, got {length}. Cut the text.")


def can_extend(length: int, cache: Any, config: Any) -> None:
    """A model that can decode from a cache, and room for `length` tokens in it.

    Raises:
        ValueError: the model is not causal, or the cache or the trained positions are too few.
    """
    if not config.block.causal:
        raise ValueError("extend: expected a causal model, got an encoder, whose tokens see those after them.")
    # How many it holds already may be known at run time alone.
    if length > cache.capacity:
        raise ValueError(
            f"extend: expected at most {cache.capacity} tokens, the cache's room, got {length} with the prompt. Make a "
            "larger one with Cache.empty."
        )
    enough_positions(length, config)


def generation(shape: tuple[int, ...], new: Any, lengths: Any, stop: Any, before: int, config: Any) -> None:
    """What `generate` continues, and how far.

    Args:
        shape: of the tokens, [B, T].
        new: tokens to make.
        lengths: of the rows, or None.
        stop: the token that ends a row, or None.
        before: tokens of the adapter's prompt.
        config: of the model.

    Raises:
        TypeError: lengths that are not integers.
        ValueError: a number out of range, or the model is no decoder, has no head or too few positions.
    """
    if not config.block.causal or config.head == "none":
        raise ValueError("generate: expected a causal model with a head, got an encoder. Load another.")
    new_tokens(new)
    if shape[1] < 1:
        raise ValueError(
            "generate: expected texts of at least one token, got none. Start with the model's first token."
        )
    if stop is not None and not (is_int(stop) and 0 <= stop < config.vocabulary):
        raise ValueError(f"generate: expected stop to be a token, an integer below {config.vocabulary}, got {stop!r}.")
    enough_positions(before + shape[1] + new, config)
    if lengths is None:
        return
    if not hasattr(lengths, "dtype") or not jnp.issubdtype(lengths.dtype, jnp.integer):
        found = getattr(lengths, "dtype", type(lengths).__name__)
        raise TypeError(f"lengths: expected an array of integers, got {found}.")
    if lengths.shape != shape[:1]:
        raise ValueError(f"lengths: expected one for each text, [{shape[0]}], got shape {list(lengths.shape)}.")
    if not isinstance(lengths, jax.core.Tracer) and not bool(((lengths >= 1) & (lengths <= shape[1])).all()):
        raise ValueError(f"lengths: expected each within 1..{shape[1]}, got {lengths.tolist()}.")


def new_tokens(new: Any) -> None:
    """How many tokens `generate` makes.

    Raises:
        ValueError: none, or more than there are positions.
    """
    if not is_int(new) or new < 1:
        raise ValueError(f"generate: expected at least 1 new token, got {new!r}.")
    if new > _MOST_POSITIONS:
        raise ValueError(f"generate: expected at most {_MOST_POSITIONS:,} new tokens, got {new:,}.")


def starting(start: Any, length: int, rows: int, config: Any) -> None:
    """The position of a text's first token: a number, or one for each row.

    Raises:
        TypeError: not integers.
        ValueError: another shape, below 0, or more positions than are trained.
    """
    if not is_int(start):
        if not hasattr(start, "dtype") or not jnp.issubdtype(start.dtype, jnp.integer):
            found = getattr(start, "dtype", type(start).__name__)
            raise TypeError(f"start: expected an integer, or an array of them, got {found}.")
        if start.shape not in ((), (rows,)):
            raise ValueError(f"start: expected one for all texts, or [{rows}], got shape {list(start.shape)}.")
    if isinstance(start, jax.core.Tracer):
        return
    # By NumPy: within a traced function, JAX would make a tracer of it.
    starts = np.asarray(start)
    if starts.min() < 0:
        raise ValueError(f"start: expected positions of at least 0, got {start}.")
    enough_positions(length + int(starts.max()), config)


def drawing(temperature: Any, top_p: Any, key: Any) -> None:
    """How `generate` chooses a token.

    Raises:
        ValueError: one is out of range, or the key is missing.
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature >= 0:
        raise ValueError(f"generate: expected a temperature of at least 0, got {temperature}.")
    if not isinstance(top_p, jax.core.Tracer) and not 0 < top_p <= 1:
        raise ValueError(f"generate: expected top_p above 0 and up to 1, got {top_p}.")
    if key is None and (isinstance(temperature, jax.core.Tracer) or temperature > 0):
        raise ValueError("generate: expected a key to draw tokens with, got none. Give key=jax.random.key(0).")
