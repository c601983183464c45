"""Complaints about what a text model is given: what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ntkprefix.models.adaptation import Adaptation


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
        ValueError: prefixes given twice.
    """
    if adapter is None:
        return prefixes, None, None
    if not isinstance(adapter, Adaptation):
        raise TypeError(f"adapter: expected an Adaptation, got {type(adapter).__name__}. Call the adapter's `adapt`.")
    if prefixes is not None and adapter.prefixes is not None:
        raise ValueError("prefixes: expected them once, got prefixes= and those of adapter=.")
    return (prefixes if adapter.prefixes is None else adapter.prefixes), adapter.low_rank, adapter.prompt


def enough_positions(length: int, config: Any) -> None:
    """A text no longer than the model's trained positions.

    Raises:
        ValueError: it is longer.
    """
    if config.positions and length > config.positions:
        raise ValueError(f"tokens: expected at most {config.positions} positions, got {length}. Cut the text.")


def can_extend(config: Any, adapter: Adaptation | None) -> None:
    """A model and an adapter that can decode from a cache.

    Raises:
        ValueError: the model is not causal, or the adapter has a prompt.
    """
    if not config.block.causal:
        raise ValueError("extend: expected a causal model, got an encoder, whose tokens see those after them.")
    if adapter is not None and adapter.prompt is not None:
        raise ValueError("extend: expected an adapter without a prompt. Put the prompt's states into the cache first.")


def generation(shape: tuple[int, ...], new: Any, temperature: Any, top_p: Any, key: Any, config: Any) -> None:
    """Settings of `generate`.

    Raises:
        ValueError: one is out of range, the model has no head or too few positions, or the key is missing.
    """
    if config.head == "none":
        raise ValueError("generate: expected a model with a head, got an encoder.")
    if type(new) is not int or new < 1:
        raise ValueError(f"generate: expected at least 1 new token, got {new!r}.")
    if shape[1] < 1:
        raise ValueError(
            "generate: expected prompts of at least one token, got none. Start with the model's first token."
        )
    for name, value, least, most in (("temperature", temperature, 0.0, float("inf")), ("top_p", top_p, 0.0, 1.0)):
        if not isinstance(value, jax.core.Tracer) and not least <= value <= most:
            raise ValueError(f"generate: expected {name} within {least:g}..{most:g}, got {value}.")
    if key is None and (isinstance(temperature, jax.core.Tracer) or temperature > 0):
        raise ValueError("generate: expected a key to draw tokens with, got none. Give key=jax.random.key(0).")
    enough_positions(shape[1] + new, config)
