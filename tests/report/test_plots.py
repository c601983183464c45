"""What plotly.js is given: groups, colours, intervals, thinned curves."""

import math

import numpy as np
import plotly.graph_objects
import pytest

from ntkprefix.report import Line, Plot, number, short, smooth
from ntkprefix.report.plots import figure, picks, scales, thin

PAPERS = ("#ffffff", "#14181f")


def plot(*lines, **options):
    return Plot("title", "step", "loss", lines, **options)


def test_every_kind_of_line_is_what_plotly_knows():
    lines = [
        Line("band", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0], style="both"),
        Line("bars", [1, 2], [3.0, 4.0], [2.0, 3.0], [4.0, 5.0], style="points", bars=True),
        Line("weak", [1, 2], [3.0, 4.0], group="band", weak=True, off=True),
        Line("grey", [1, 2], [3.0, 4.0], reference=True),
    ]
    rows = [Line("dots", [0.5, 0.7], ["a", "b"], [0.4, 0.6], [0.6, 0.8], style="points", bars=True)]
    for each in (plot(*lines, x_log=True, y_log=True), plot(*rows, x_view=(0.0, 1.0)), plot(*lines, ladder=True)):
        plotly.graph_objects.Figure(figure(each))


def test_groups_share_a_colour_and_a_place():
    lines = [
        Line("a, seed 0", [1], [2], group="a"),
        Line("b", [1], [2], off=True),
        Line("a, seed 1", [1], [2], group="a"),
    ]
    found = figure(plot(*lines))
    assert [trace["legendgroup"] for trace in found["data"]] == ["0", "1", "0"]
    first, other, again = (trace["line"]["color"] for trace in found["data"])
    assert first == again != other
    assert [trace["visible"] for trace in found["data"]] == [True, False, True]
    assert [(pick.name, pick.on) for pick in picks(plot(*lines)).values()] == [("a", True), ("b", False)]


def test_many_groups_differ_in_colour_or_dash():
    chosen = picks(plot(*(Line(f"method {index}", [1], [2]) for index in range(28)))).values()
    assert len({(pick.colour, pick.dash) for pick in chosen}) == 28


def luminance(colour):
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("ladder", [False, True])
def test_lines_can_be_told_from_light_and_dark_paper(ladder):
    """WCAG 2.1, 1.4.11: a contrast of 3 for graphics."""
    lines = [Line(f"{index}", [1], [2]) for index in range(15)] + [Line("grey", [1], [2], reference=True)]
    for pick in picks(plot(*lines, ladder=ladder)).values():
        for paper in PAPERS:
            dark, light = sorted((luminance(pick.colour), luminance(paper)))
            assert (light + 0.05) / (dark + 0.05) > 3.0, (pick, paper)


def test_intervals_are_distances_from_the_number():
    bars = Line("a", [1, 2], [3.0, None], [2.0, 1.0], [7.0, 1.0], bars=True)
    error = figure(plot(bars))["data"][0]["error_y"]
    assert (error["arrayminus"], error["array"]) == ([1.0, None], [4.0, None])
    rows = Line("a", [0.5], ["method"], [0.25], [1.0], bars=True)
    error = figure(plot(rows))["data"][0]["error_x"]
    assert (error["arrayminus"], error["array"]) == ([0.25], [0.5])
    band, line = figure(plot(Line("a", [1, 2, 3], [5, 6, 7], [4, None, 6], [6, 7, 8])))["data"]
    assert (band["x"], band["y"]) == ([1, 3, 3, 1], [6, 8, 6, 4])
    assert line["customdata"] == [[4, 6], [None, 7], [6, 8]]


def test_names_are_rows_from_the_top_and_groups_do_not_hide_each_other():
    lines = [Line(group, [0.1, 0.2], ["first", "second <b>"], style="points") for group in ("a", "b")]
    found = figure(plot(*lines))
    assert found["layout"]["yaxis"]["ticktext"] == ["first", "second &lt;b&gt;"]
    assert found["layout"]["yaxis"]["tickvals"] == [0, -1]
    upper, lower = (trace["y"] for trace in found["data"])
    assert 0.5 > upper[0] > lower[0] > -0.5 > upper[1] > lower[1] > -1.5


def test_what_cannot_be_drawn_is_a_gap():
    values = [1.0, math.nan, math.inf, -math.inf, None, 1e300, 10**400, 1e-320, 5]
    drawn = figure(plot(Line("a", list(range(9)), values)))["data"][0]["y"]
    assert drawn == [1.0, None, None, None, None, None, None, 0.0, 5]


def test_long_curves_are_thinned_and_keep_their_extremes():
    random = np.random.default_rng(0)
    losses = random.normal(size=100_000)
    losses[[34_567, 23_456, 99_990]] = 50.0, -50.0, np.nan
    kept = thin(range(len(losses)), losses.tolist(), 2000)
    assert 1000 < len(kept) < 3000
    assert {0, 34_567, 23_456, 99_990, 99_999} <= set(kept)
    assert kept == sorted(kept)
    # The first steps, which a logarithmic axis spreads out, stay one by one.
    assert kept[:10] == list(range(10))
    # Neighbours are never further apart than a screen's few points.
    assert np.diff(kept).max() <= len(losses) / 250
    assert np.diff(np.log(np.array(kept)[1:])).max() <= np.log(2)
    assert thin([1, 2], [1, 2], 2000) == [0, 1]


def test_a_plot_of_many_long_runs_stays_small():
    losses = np.random.default_rng(0).random(5000).tolist()
    lines = [Line(f"run {index}", range(5000), losses) for index in range(40)]
    assert 20_000 < sum(len(trace["x"]) for trace in figure(plot(*lines))["data"]) < 80_000


def test_axes_that_can_be_logarithmic_have_positive_numbers():
    assert scales(plot(Line("a", [0, 1], [-1.0, 0.0]))) == ["x"]
    assert scales(plot(Line("a", [0.5], ["method"]))) == ["x"]


def test_smoothing_is_a_running_mean():
    for steps, window in ((59, 4), (60, 5)):
        losses = np.random.default_rng(0).random(steps)
        means = [losses[max(0, end - window) : end].mean() for end in range(1, steps + 1)]
        np.testing.assert_allclose(smooth(losses), means)
    np.testing.assert_allclose(smooth([1.0, np.nan, np.inf, *[3.0] * 33])[:4], [1.0, 1.0, 1.0, 3.0])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-1e-15, "0"),
        (0.123456, "0.123"),
        (1234.5, "1,234"),
        (-20000, "-20,000"),
        (1e9, "1e+09"),
        (math.nan, "nan"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_names_of_any_length():
    assert short("a" * 60) == "a" * 60
    assert short("a" * 500 + "b" * 500) == "a" * 29 + "…" + "b" * 29
