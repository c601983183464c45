"""How much may be stored: tokens, numbers, bytes, or a fraction of what the prompt itself takes."""

from __future__ import annotations

import math
import re
from typing import Any

from ntkprefix.checks.describe import described, is_int

_UNITS = {"tokens": 1, "numbers": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}
_WANTED = "a number of tokens, or a text like '32x', '128 tokens', '20000 numbers', '64 KiB'"


def numbers_within(
    budget: Any,
    *,
    length: int,
    heads: int,
    token: int,
    itemsize: float,
    prompt_itemsize: float | None = None,
    per_head: float = 0.0,
) -> int:
    """How many numbers a budget leaves to each head.

    Args:
        budget: tokens for each head as an integer, or a text: `"32x"`, that part of what the prompt takes;
            `"128 tokens"` for each head; `"20000 numbers"` or `"64 KiB"` (B, KB, MB, GB, KiB, MiB) for all heads.
        length: M, tokens of the prompt.
        heads: all of them, K of a layer or L K of a model.
        token: numbers of one token and head, H + Hv.
        itemsize: bytes of a number that is stored.
        prompt_itemsize: bytes of one of the prompt's; the same if None.
        per_head: bytes that every head takes beside its numbers, which a ratio and bytes pay for first.

    Returns:
        Numbers for each head, rounded down.

    Raises:
        TypeError: neither an integer nor a text.
        ValueError: a text that is none of these, nothing, or less than one token for each head.

    Example:
        >>> from ntkprefix.compress.budget import numbers_within
        >>> numbers_within("32x", length=4096, heads=3, token=128, itemsize=4)
        16384
        >>> numbers_within("128 tokens", length=4096, heads=3, token=128, itemsize=4)
        16384
        >>> numbers_within("32x", length=4096, heads=3, token=128, itemsize=1, prompt_itemsize=2)
        32768
    """
    amount, unit = amount_of(budget)
    longest = length if prompt_itemsize is None else length * prompt_itemsize / itemsize
    taken = per_head / itemsize
    if unit == "x":
        numbers = longest * token / amount - taken
    elif unit == "tokens":
        numbers = amount * token
    elif unit == "numbers":
        numbers = amount / heads
    else:
        numbers = amount * _UNITS[unit] / heads / itemsize - taken
    if not token <= numbers < math.inf:
        most = math.floor(longest * token / (token + taken))
        more = f"a ratio of at most {most}x" if unit == "x" and most else "'1 tokens' or more"
        advice = more if numbers < token else "less"
        raise ValueError(
            f"budget: expected room for a token for each of {heads} heads, {token} numbers, got {budget!r}, which is "
            f"{max(numbers, 0.0):.3g}. Ask for {advice}."
        )
    return int(numbers)


def amount_of(budget: Any) -> tuple[float, str]:
    """A budget's number and its unit, "x" for a ratio.

    Raises:
        TypeError: neither an integer nor a text.
        ValueError: a text of another form, a ratio of 0.
    """
    if is_int(budget):
        budget = f"{budget} tokens"
    if not isinstance(budget, str):
        raise TypeError(f"budget: expected {_WANTED}, got {described(budget)}.")
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(x|[A-Za-z]+)\s*", budget)
    if found is None or (found[2] != "x" and found[2] not in _UNITS):
        raise ValueError(f"budget: expected {_WANTED}, got {budget!r}.")
    amount = float(found[1])
    if amount == 0 and found[2] == "x":
        raise ValueError(f"budget: expected a ratio above 0, such as '32x', got {budget!r}.")
    return amount, found[2]
