"""Adapters by name and options in one word, as command lines and configuration files have them."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import jax

from ntkprefix.adapters.base import Adapter, Stack
from ntkprefix.adapters.registry import ADAPTERS
from ntkprefix.feature_maps import feature_map


def spelt(text: str) -> Adapter:
    """The adapter that a text names: `features`, `lora:rank=8,targets=query/value`, `lora:rank=4+features:heads=kv`.

    Options are those of the adapter's class. A feature map is a name and perhaps a number, `feature_map=taylor/2` or
    `favor/256`; the latter's directions are drawn with seed 0.

    Args:
        text: NAME, NAME:OPTION=VALUE,OPTION=VALUE, or several of these with + between them, which are stacked.

    Returns:
        The adapter.

    Raises:
        TypeError: an option of the wrong kind.
        ValueError: no such adapter or option, or a value out of range; the message lists what there is.

    Example:
        >>> from ntkprefix.adapters import spelt
        >>> spelt("lora:rank=2,targets=query/up")
        LoraAdapter(rank=2, alpha=16.0, targets=('query', 'up'))
    """
    parts = [_one(part) for part in text.split("+")]
    return parts[0] if len(parts) == 1 else Stack(parts)


def _one(text: str) -> Adapter:
    name, _, rest = text.partition(":")
    if name not in ADAPTERS:
        raise ValueError(f"adapter: unknown name {name!r}; expected one of {', '.join(ADAPTERS)}.")
    kind = ADAPTERS[name]
    known = {field.name: field for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        option, equals, value = pair.partition("=")
        if option not in known or not equals:
            wanted = ", ".join(f"{each}=.." for each in known) or "no options"
            raise ValueError(f"adapter: {name} has no option {pair!r}; expected {wanted}.")
        if option in options:
            raise ValueError(f"adapter: expected {option} once, got it twice in {text!r}.")
        options[option] = _value(option, value)
    return kind(**options)


def _value(option: str, text: str) -> Any:
    if option == "feature_map":
        return _feature_map(text)
    if option == "targets":
        return tuple(text.split("/"))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _feature_map(text: str) -> Any:
    name, _, size = text.partition("/")
    if not size:
        return feature_map(name)
    if not size.isdecimal():
        raise ValueError(f"adapter: expected feature_map=NAME/NUMBER, got {text!r}.")
    if name == "favor":
        return feature_map(name, features=int(size), key=jax.random.key(0))
    return feature_map(name, degree=int(size))
