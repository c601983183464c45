"""Names and reasons, fit for a message."""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 10


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{list(names[:_LISTED])}{more}"


def said(error: Exception) -> str:
    """What an error says, or its type when it says nothing."""
    return str(error) or type(error).__name__
