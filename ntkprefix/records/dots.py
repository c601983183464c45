"""One number with its interval for every method: a plot with a row for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ntkprefix.report import Line, Plot, number
from theory.intervals import Estimate


class Dot(NamedTuple):
    """A number of one method.

    Attributes:
        method: names the row.
        estimate: value and ends of its interval, NaN where there is none.
        parts: what it is the mean of.
    """

    method: str
    estimate: Estimate
    parts: Sequence[float] = ()


def dots(
    title: str,
    label: str,
    groups: Mapping[str, Sequence[Dot]],
    caption: str,
    *,
    log: bool = False,
    lowest: float = -math.inf,
) -> Plot:
    """Every group's numbers, with what they are means of as small points beside them.

    Args:
        title: of the plot.
        label: of the numbers.
        groups: what is picked on and off together.
        caption: of the plot.
        log: whether the axis is logarithmic at first.
        lowest: where the axis begins at first, if there are numbers below.
    """
    lines = []
    for group, found in groups.items():
        if not found:
            continue
        methods = [dot.method for dot in found]
        means, low, high = zip(*(dot.estimate for dot in found), strict=True)
        lines.append(Line(name=group, x=means, y=methods, low=low, high=high, group=group, style="points", bars=True))
        parts = [(part, dot.method) for dot in found for part in dot.parts if len(dot.parts) > 1]
        if parts:
            x, y = zip(*parts, strict=True)
            lines.append(Line(name=group, x=x, y=y, group=group, style="points", weak=True))
    values = [value for found in groups.values() for dot in found for value in (dot.estimate.value, *dot.parts)]
    view = None
    if min(values, default=lowest) < lowest:
        most = max((value for value in values if math.isfinite(value)), default=lowest)
        view = (lowest, most + 0.1 * abs(most - lowest))
        caption += f" Numbers below {number(lowest)} are out of view: reset the zoom to see them."
    return Plot(title, label, "", lines, caption, x_log=log, x_view=view)
