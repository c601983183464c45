"""The guaranteed bound on the loss: how far a run of training exceeds it, and when it asks for enough to be a test."""

from __future__ import annotations

import math

import numpy as np

from theory.intervals import Numbers

# Training is long enough to say that a prefix suffices once the bound demands a loss this many times the first.
DEMANDED = 0.1
# Training is too short for the bound to be a test of it while more than this share of the first loss is allowed.
LAX = 0.9
# The bound is compared in float32: rounding of the loss itself.
_SLACK = 1e-5


def bound_excess(loss: np.ndarray, guaranteed_rate: float) -> float:
    """Largest ratio, over all steps, of the loss to its bound (1 - eta lambda/2)^t L(0); NaN after a divergence.

    Example:
        >>> import numpy as np
        >>> from theory.bound import bound_excess
        >>> float(bound_excess(np.array([8.0, 4.0, 4.0]), guaranteed_rate=0.5))
        2.0
    """
    # In logs, because the bound itself may underflow. A rate of 1 or more asks for a loss of 0 after one step.
    decay = math.log1p(-guaranteed_rate) if guaranteed_rate < 1 else -math.inf
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.arange(1, len(loss))
        return float(np.exp(np.max(np.append(0.0, np.log(loss[1:] / loss[0]) - steps * decay))))


def within_bound(excess: Numbers) -> np.ndarray:
    """Whether the guarantee held; False where training diverged.

    Example:
        >>> from theory.bound import within_bound
        >>> within_bound([1.0, 1.2, float("nan")]).tolist()
        [True, False, False]
    """
    return np.asarray(excess, float) <= 1 + _SLACK


def steps_to_demand(share: float, guaranteed_rate: float) -> int:
    """Steps after which the bound demands at most this share of the first loss.

    Example:
        >>> from theory.bound import steps_to_demand
        >>> steps_to_demand(0.1, guaranteed_rate=0.5)
        4
    """
    # A rate above a half asks for more than any share here within a few steps; one of nothing, for nothing, ever.
    return math.ceil(math.log(share) / math.log1p(-min(max(guaranteed_rate, 1e-12), 0.5)))


def allowed_share(steps: int, guaranteed_rate: float) -> float:
    """Share of the first loss that the bound allows after so many steps.

    Example:
        >>> from theory.bound import allowed_share
        >>> allowed_share(3, guaranteed_rate=0.5)
        0.125
    """
    return max(0.0, 1 - guaranteed_rate) ** steps
