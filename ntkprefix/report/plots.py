"""Interactive plots as plotly.js draws them: lines, points and intervals in groups that a reader picks on and off."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ntkprefix.report.text import short

# Each has a contrast of at least 3.8 with white and with the dark page, in an order in which neighbours differ also for
# those who see no red or no green; with lines of several kinds, colours need not be told apart alone.
_COLOURS = ("#2f80c8", "#d55e00", "#0a8f68", "#c2528b", "#9a7d0a", "#8a63c9", "#14919b")
_DASHES = ("solid", "dash", "dot", "dashdot")
# A ladder of sizes, from small to large.
_LADDER = ("#8a63c9", "#2f80c8", "#14919b", "#0a8f68", "#9a7d0a", "#d55e00", "#d1495b")
_GREY = "#808080"
# Points of all lines of a plot together: more than any screen shows, and still quick to draw.
_POINTS = 40_000
_FEWEST = 200
# Beyond these, an axis's length overflows, or is nothing.
_LARGEST, _SMALLEST = 1e100, 1e-100
# Letters of a name in one row beside an axis.
_ROW = 20

# A number, none at all, or on an axis of names a name.
Value: TypeAlias = float | str | None


@dataclass(frozen=True)
class Line:
    """What is drawn of one run or method.

    Attributes:
        name: shown beside the pointer.
        x: numbers; None, NaN and infinities are gaps.
        y: likewise; or names, one row each.
        low: lower ends of the intervals of y, or of x where y are names.
        high: upper ends.
        group: lines of one group have one colour and are picked on and off together; the line itself if empty.
        style: "line", "points", or "both".
        bars: intervals are bars, not a band.
        weak: thin and pale, behind what it is the detail of.
        reference: grey and dashed, something to compare with.
        off: not shown until it is picked.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[Value]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    group: str = ""
    style: Literal["line", "points", "both"] = "line"
    bars: bool = False
    weak: bool = False
    reference: bool = False
    off: bool = False


@dataclass(frozen=True)
class Plot:
    """A title, labelled axes and lines.

    Attributes:
        title: above it.
        x: label of the axis, with its unit.
        y: likewise; empty where lines have names as y.
        lines: in the order of their groups' buttons.
        caption: below it.
        x_log: begin with a logarithmic axis; a reader can change it.
        y_log: likewise.
        ladder: groups are sizes in rising order, and coloured so.
        x_view: what the axis of x shows at first, where a few numbers far out would squeeze all others.
    """

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    caption: str = ""
    x_log: bool = False
    y_log: bool = False
    ladder: bool = False
    x_view: tuple[float, float] | None = None


@dataclass(frozen=True)
class Pick:
    """A group's button: its name, colour, and whether it is on."""

    name: str
    colour: str
    dash: str
    on: bool


def picks(plot: Plot) -> dict[str, Pick]:
    """Groups of a plot in order, with how each is drawn."""
    names = list(dict.fromkeys(line.group or line.name for line in plot.lines))
    grey = {line.group or line.name for line in plot.lines if line.reference}
    coloured = [name for name in names if name not in grey]
    on = {line.group or line.name for line in plot.lines if not line.off}
    found = {}
    for name in names:
        place = coloured.index(name) if name in coloured else 0
        if name in grey:
            colour, dash = _GREY, "dash"
        elif plot.ladder:
            colour, dash = _between(place / max(1, len(coloured) - 1)), "solid"
        else:
            colour = _COLOURS[place % len(_COLOURS)]
            dash = _DASHES[place // len(_COLOURS) % len(_DASHES)]
        found[name] = Pick(short(name), colour, dash, name in on)
    return found


def figure(plot: Plot) -> dict[str, Any]:
    """What `Plotly.newPlot` takes: JSON-ready `data` and `layout`.

    plotly.js reads markup in names, so they are escaped once for it; the page escapes the JSON as a whole once more.

    Raises:
        ValueError: a line whose x, y or interval ends are not as many.
    """
    chosen = picks(plot)
    places = {name: place for place, name in enumerate(chosen)}
    most = max(_FEWEST, _POINTS // max(1, len(plot.lines)))
    data = []
    rows = _rows(plot)
    for line in plot.lines:
        group = line.group or line.name
        place = places[group]
        # Groups' points of one row stand one below the other.
        shift = 0.36 * (0.5 - (place + 0.5) / len(places))
        traces = _traces(plot, line, chosen[group], most, rows, shift)
        data += [trace | {"legendgroup": str(place)} for trace in traces]
    layout: dict[str, Any] = {
        "height": 380 if not rows else 110 + 34 * len(rows),
        "margin": {"l": 56, "r": 12, "t": 10, "b": 48},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "showlegend": False,
        "xaxis": _axis(plot.x, plot.x_log),
        "yaxis": _axis(plot.y, plot.y_log),
    }
    if plot.x_view:
        layout["xaxis"]["range"] = list(plot.x_view)
    if rows:
        # Names stand at 0, -1, .., the first on top.
        ticks = {"tickvals": [-place for place in rows.values()], "ticktext": [_wrapped(name) for name in rows]}
        layout["yaxis"] = {"type": "linear", "automargin": True, "zeroline": False, "range": [0.6 - len(rows), 0.6]}
        layout["yaxis"] |= ticks
    return {"data": data, "layout": layout}


def scales(plot: Plot) -> list[str]:
    """Axes that can be made linear or logarithmic: those that have positive numbers."""
    return [
        axis
        for axis in ("x", "y")
        if any(isinstance(value, (int, float)) and value > 0 for line in plot.lines for value in getattr(line, axis))
    ]


def thin(x: Sequence[Value], y: Sequence[Value], most: int) -> list[int]:
    """Which points to keep of a curve that has more than a screen can show.

    The curve is cut in pieces that are short both on a linear and on a logarithmic axis, and of each its smallest and
    largest value are kept, and one that is not finite.

    Args:
        x: of the curve, in order.
        y: of the curve.
        most: so many points, about.

    Returns:
        Indices in rising order.

    Example:
        >>> from ntkprefix.report.plots import thin
        >>> y = [0.0] * 50_000
        >>> y[12_345] = 9.0
        >>> kept = thin(range(50_000), y, most=1000)
        >>> len(kept) < 1500, 12_345 in kept
        (True, True)
    """
    if len(x) <= most:
        return list(range(len(x)))
    pieces = max(1, most // 4)
    even, rising = np.linspace(0, len(x), pieces + 1), np.geomspace(1, len(x), pieces + 1)
    edges = np.unique(np.concatenate([even, rising]).astype(int))
    values = np.array([_number(value) for value in y])
    kept = {0, len(x) - 1}
    for start, stop in itertools.pairwise(edges.tolist()):
        piece = values[start:stop]
        finite = np.isfinite(piece)
        if finite.any():
            kept |= {start + int(np.nanargmin(piece)), start + int(np.nanargmax(piece))}
        if not finite.all():
            kept.add(start + int(np.argmin(finite)))
    return sorted(kept)


def smooth(losses: Sequence[float] | np.ndarray) -> np.ndarray:
    """Running mean over a twelfth of the run; the first values average what there is, and all what is finite.

    Example:
        >>> from ntkprefix.report import smooth
        >>> smooth([3.0, 1.0, 2.0]).tolist()
        [3.0, 1.0, 2.0]
    """
    losses = np.asarray(losses, float)
    known = np.isfinite(losses)
    window = max(1, len(losses) // 12)
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(0, ends - window)
    sums, counts = (np.cumsum(np.append(0.0, each)) for each in (np.where(known, losses, 0.0), known))
    with np.errstate(invalid="ignore", over="ignore"):
        return (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])


def _traces(plot: Plot, line: Line, pick: Pick, most: int, rows: dict[str, int], shift: float) -> list[dict[str, Any]]:
    """A line, behind it its band if it has one."""
    parts = [part for part in (line.x, line.y, line.low, line.high) if len(part)]
    if len({len(part) for part in parts}) > 1 or bool(len(line.low)) != bool(len(line.high)):
        raise ValueError(
            f"Line: expected as many x as y and interval ends, got {[len(line.x), len(line.y)]} and "
            f"{[len(line.low), len(line.high)]} of {short(line.name)!r}."
        )
    named = _named(line)
    kept = list(range(len(line.x))) if named else thin(line.x, line.y, most)
    x = [_drawn(line.x[index]) for index in kept]
    y = [shift - rows[str(line.y[index])] if named else _drawn(line.y[index]) for index in kept]
    low, high = ([_drawn(ends[index]) for index in kept] if len(ends) else [] for ends in (line.low, line.high))
    visible = {"visible": pick.on}
    stroke = {"color": pick.colour, "width": 1 if line.weak else 2, "dash": pick.dash}
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": {"line": "lines", "points": "markers", "both": "lines+markers"}[line.style],
        "name": _escaped(short(line.name, 100)),
        "x": x,
        "y": y,
        "line": stroke,
        "marker": {"color": pick.colour, "size": 6 if line.weak else 8},
        "opacity": 0.45 if line.weak else 1.0,
        "hovertemplate": _beside_the_pointer(plot, named, bool(low)),
        **visible,
    }
    if named:
        trace["text"] = [_escaped(short(str(name))) for name in line.y]
    if not low:
        return [trace]
    trace["customdata"] = [list(ends) for ends in zip(low, high, strict=True)]
    if line.bars:
        centre = x if named else y
        up, down = (
            [
                None if end is None or value is None else abs(end - value)
                for end, value in zip(ends, centre, strict=True)
            ]
            for ends in (high, low)
        )
        bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 5}
        return [trace | {f"error_{'x' if named else 'y'}": bars}]
    known = [index for index in range(len(x)) if None not in (x[index], low[index], high[index])]
    there, back = [x[index] for index in known], [x[index] for index in reversed(known)]
    band = {
        "type": "scatter",
        "mode": "lines",
        "x": there + back,
        "y": [high[index] for index in known] + [low[index] for index in reversed(known)],
        "fill": "toself",
        "fillcolor": _faint(pick.colour),
        "line": {"width": 0},
        "hoverinfo": "skip",
        **visible,
    }
    return [band, trace]


def _beside_the_pointer(plot: Plot, named: bool, interval: bool) -> str:
    x, y = _escaped(plot.x), _escaped(plot.y)
    ends = " [%{customdata[0]:.4~g}, %{customdata[1]:.4~g}]" if interval else ""
    where = f"%{{text}}<br>{x} %{{x:.4~g}}{ends}" if named else f"{x} %{{x:,}}<br>{y} %{{y:.4~g}}{ends}"
    return f"%{{fullData.name}}<br>{where}<extra></extra>"


def _axis(label: str, log: bool) -> dict[str, Any]:
    title = {"text": _escaped(label)}
    return {"title": title, "type": "log" if log else "linear", "automargin": True, "exponentformat": "power"}


def _named(line: Line) -> bool:
    return isinstance(next((value for value in line.y if value is not None), None), str)


def _rows(plot: Plot) -> dict[str, int]:
    """Rows of an axis of names, from the top."""
    names = dict.fromkeys(str(name) for line in plot.lines if _named(line) for name in line.y)
    return {name: place for place, name in enumerate(names)}


def _wrapped(name: str) -> str:
    """A name in rows that leave room for the plot on a narrow screen."""
    rows = [""]
    for word in short(name, 40).split(" "):
        if rows[-1] and len(rows[-1]) + len(word) > _ROW:
            rows.append(word)
        else:
            rows[-1] = f"{rows[-1]} {word}".strip()
    return "<br>".join(map(_escaped, rows))


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _drawn(value: Value) -> float | int | None:
    """A number with as many digits as can be seen; None for what cannot be drawn."""
    if isinstance(value, int) and abs(value) < 1e15:
        return value
    known = _number(value)
    return None if math.isnan(known) else float(f"{known:.6g}")


def _number(value: Value) -> float:
    """NaN for what cannot be drawn."""
    if value is None or isinstance(value, str) or not -_LARGEST <= value <= _LARGEST:
        return math.nan
    return float(value) if abs(value) >= _SMALLEST else 0.0


def _parts(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def _faint(colour: str) -> str:
    return f"rgba({', '.join(map(str, _parts(colour)))}, 0.18)"


def _between(share: float) -> str:
    """A colour of the ladder."""
    place = share * (len(_LADDER) - 1)
    first = min(int(place), len(_LADDER) - 2)
    ends = zip(_parts(_LADDER[first]), _parts(_LADDER[first + 1]), strict=True)
    return "#" + "".join(f"{round(a + (place - first) * (b - a)):02x}" for a, b in ends)
