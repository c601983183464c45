"""What methods lose at several sizes, of several prompts: what the curves and their table are made of."""

from __future__ import annotations

from typing import Any

import numpy as np


def mean_gain(results: dict[str, Any]) -> float:
    """By how much prompts make what follows them likelier on average, nats a token."""
    return float(np.mean([text["full"] - text["without"] for text in results["texts"]]))


def over_prompts(results: dict[str, Any], method: str, budget: str) -> dict[str, list[float]]:
    """A method's numbers at one size, prompt by prompt.

    `kept` is 1 less what is lost as a share of the mean gain of all prompts. Its mean is the share of all gains
    together, to which a prompt that helps little adds little; it could rule the mean of each prompt's own share.

    Returns:
        `ratio`, `error`, `divergence` and `kept`, one for every prompt.
    """
    rows = [row for row in results["rows"] if (row["method"], row["budget"]) == (method, budget)]
    full = {(text["text"], text["place"]): text["full"] for text in results["texts"]}
    found = {name: [row[name] for row in rows] for name in ("ratio", "error", "divergence")}
    lost = [full[row["text"], row["place"]] - row["log_likelihood"] for row in rows]
    return found | {"kept": [1 - each / mean_gain(results) for each in lost]}
