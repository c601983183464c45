"""How options are told."""

from __future__ import annotations

import tyro


def default_told(words: str) -> object:
    """For an option whose default is empty: what its help says in place of that.

    Example:
        >>> from typing import Annotated
        >>> from ntkprefix._options import default_told
        >>> option = Annotated[str, default_told("one device")]
    """
    return tyro.conf.arg(help_behavior_hint=f"(default: {words})")
