"""The page in a real browser: nothing on the console, plots drawn, and buttons that do what they say.

Pictures are left in `build/report`.
"""

import math
from pathlib import Path

import pytest
from report import browser as browsers
from report.pages import train_run

from experiments import RESULTS
from ntkprefix.cli import main

PICTURES = Path(__file__).parents[2] / "build" / "report"
CHROMIUM = browsers.program()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><b>%{x}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = browsers.Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def written(folder, *runs):
    assert main(["report", *map(str, runs), "--out", str(folder / "page.html")]) == 0
    return folder / "page.html"


def ordinary(folder):
    """Four methods; one of them has three seeds."""
    falling = [2.0 * math.exp(-step / 80) for step in range(3000)]
    runs = [train_run(folder / f"lora-{seed}", losses=falling, seed=seed) for seed in range(3)]
    others = ("features:share=0.1", "tokens:length=10", "full")
    return [*runs, *(train_run(folder / name[:5], adapter=name, losses=falling[:200]) for name in others)]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return written(folder, *ordinary(folder))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Of a run with hostile names and numbers and of committed results, too."""
    folder = tmp_path_factory.mktemp("large")
    odd = [math.nan, math.inf, 1e308, -1e308, 1e-320, 0.0, 1e90, -5.0]
    hostile = train_run(folder / "hostile", adapter=HOSTILE, model=HOSTILE, losses=odd, validation=odd[2:6])
    files = [RESULTS / "verify.json", RESULTS / "compression.json", RESULTS / "tables" / "vision" / "digits.json"]
    return written(folder, *ordinary(folder), hostile, *files)


@pytest.fixture
def opened(browser, page):
    yield from seen(browser, page)


@pytest.fixture
def opened_large(browser, large):
    yield from seen(browser, large)


def seen(browser, path, **options):
    """A page, whose console has to stay empty whatever is done with it."""
    browser.open(path, **options)
    browser.wait("document.documentElement.dataset.drawn")
    yield browser
    assert browser.complaints() == []
    assert browser.ask("window.hacked") is None


def drawn(browser):
    """Lines of the first plot that are in the picture."""
    return browser.ask("document.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length")


def test_every_plot_is_drawn(opened_large):
    figures = opened_large.ask("document.querySelectorAll('figure').length")
    assert figures > 10
    assert opened_large.ask("document.documentElement.dataset.drawn") == str(figures)
    shapes = opened_large.ask(
        "[...document.querySelectorAll('.plot')].map((plot) => ["
        "plot.data.filter((trace) => trace.visible && [...trace.y].some((y) => y !== null)).length, "
        "plot.querySelectorAll('.scatterlayer .trace').length, "
        "[...plot.querySelectorAll('path.js-line, path.point, path.js-fill')]"
        ".filter((path) => (path.getAttribute('d') || '').length > 5).length])"
    )
    for wanted, lines, paths in shapes:
        assert wanted >= 1
        assert lines >= wanted
        assert paths >= wanted
    opened_large.screenshot(PICTURES / "light.png")


def test_everything_that_can_be_pressed_has_a_name(opened_large):
    names = opened_large.ask(
        "[...document.querySelectorAll('nav a, .buttons button, summary, .plot, [role=region]')]"
        ".map((each) => (each.ariaLabel || each.textContent).trim())"
    )
    assert names
    assert all(names)


def test_hostile_names_are_words(opened_large):
    assert HOSTILE[:20] in opened_large.ask("document.body.innerText")
    assert opened_large.ask("document.querySelectorAll('img').length") == 0
    ours = "2 + document.querySelectorAll('figure').length"
    assert opened_large.ask("document.querySelectorAll('script').length") == opened_large.ask(ours)


def test_a_run_is_picked_off_and_on_by_mouse_and_keyboard(opened):
    before = drawn(opened)
    opened.click("[data-group='0']")
    opened.wait("document.querySelector('[data-group=\"0\"]').getAttribute('aria-pressed') === 'false'")
    opened.wait(f"document.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length === {before - 6}")
    opened.ask("document.querySelector('[data-group=\"0\"]').focus()")
    opened.press("Enter", 13)
    opened.wait(f"document.querySelector('.plot').querySelectorAll('.scatterlayer .trace').length === {before}")


def test_all_and_none(opened):
    place = opened.ask("[...document.querySelectorAll('figure')].findIndex((f) => f.querySelector('[data-all]'))")
    figure = f"document.querySelectorAll('figure')[{place}]"
    for state in ("false", "true"):
        opened.ask(f"{figure}.querySelector('[data-all={state}]').click()")
        opened.wait(f"{figure}.querySelector('.plot').data.every((trace) => trace.visible === {state})")
        pressed = f"[...{figure}.querySelectorAll('[data-group]')].every((b) => b.ariaPressed === '{state}')"
        assert opened.ask(pressed)


def test_axes_turn_logarithmic_and_back(opened):
    assert opened.ask("document.querySelector('.plot')._fullLayout.xaxis.type") == "linear"
    spacing = (
        "(() => { const axis = document.querySelector('.plot')._fullLayout.xaxis; "
        "return axis.l2p(axis.d2l(2000)) - axis.l2p(axis.d2l(1000)) })()"
    )
    linear = opened.ask(spacing)
    opened.click("[data-log='x']")
    opened.wait("document.querySelector('.plot')._fullLayout.xaxis.type === 'log'")
    assert 0 < opened.ask(spacing) < linear
    assert opened.ask("document.querySelector('[data-log=x]').ariaPressed") == "true"
    opened.click("[data-log='x']")
    opened.wait("document.querySelector('.plot')._fullLayout.xaxis.type === 'linear'")
    assert opened.ask(spacing) == pytest.approx(linear, rel=0.05)


def test_dragging_zooms_and_the_button_resets(opened):
    opened.centre(".plot")
    box = opened.ask(
        "(() => { const b = document.querySelector('.plot .nsewdrag').getBoundingClientRect(); "
        "return [b.x, b.y, b.width, b.height] })()"
    )
    x, y, width, height = box
    shown = "document.querySelector('.plot')._fullLayout.xaxis.range"
    whole = opened.ask(shown)
    opened.drag((x + 0.25 * width, y + 0.2 * height), (x + 0.5 * width, y + 0.8 * height))
    opened.wait(f"{shown}[1] - {shown}[0] < {0.5 * (whole[1] - whole[0])}")
    low, high = opened.ask(shown)
    assert (high - low) / (whole[1] - whole[0]) == pytest.approx(0.25, abs=0.02)
    opened.click("[data-reset]")
    opened.wait(f"Math.abs({shown}[1] - {whole[1]}) < 1e-6 * {whole[1]}")


def test_the_pointer_tells_run_and_values(opened):
    opened.centre(".plot")
    place = opened.ask(
        "(() => { const plot = document.querySelector('.plot'), box = plot.getBoundingClientRect(), "
        "{ xaxis, yaxis } = plot._fullLayout, trace = plot.data.find((each) => each.name.includes('running mean')), "
        "at = Math.floor(trace.x.length / 2); "
        "return [box.x + xaxis._offset + xaxis.l2p(xaxis.d2l(trace.x[at])), "
        "box.y + yaxis._offset + yaxis.l2p(yaxis.d2l(trace.y[at])), trace.name] })()"
    )
    opened.mouse("mouseMoved", *place[:2])
    opened.wait("document.querySelector('.hoverlayer .hovertext')")
    told = opened.ask("document.querySelector('.hoverlayer').textContent")
    assert "lora:rank=2, seed" in told
    assert "step" in told
    assert "loss (nats)" in told


def test_dark_is_dark_and_paper_is_light(opened):
    background = "getComputedStyle(document.body).backgroundColor"
    sheet = "document.querySelector('.plot').layout.paper_bgcolor"
    assert opened.ask(background) == "rgb(255, 255, 255)"
    opened.prefer(dark=True)
    opened.wait(f"{sheet} === '#14181f'")
    assert opened.ask(background) == "rgb(20, 24, 31)"
    opened.screenshot(PICTURES / "dark.png")
    opened.ask("dispatchEvent(new Event('beforeprint'))")
    opened.wait(f"{sheet} === '#fff'")
    opened.ask("dispatchEvent(new Event('afterprint'))")
    opened.wait(f"{sheet} === '#14181f'")


def test_a_narrow_screen_shows_all_of_it(browser, large):
    for narrow in seen(browser, large, width=390, finger=True):
        assert narrow.ask("document.documentElement.scrollWidth") <= 390
        edges = "[...document.querySelectorAll('.plot .main-svg')].map((plot) => plot.getBoundingClientRect().right)"
        assert max(narrow.ask(edges)) <= 390
        # A finger that drags scrolls the page.
        assert narrow.ask("document.querySelector('.plot').layout.dragmode") is False
        narrow.screenshot(PICTURES / "narrow.png")
