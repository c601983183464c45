"""Pages of the documentation in a real browser: nothing is cut off, however wide the window."""

import subprocess
import sys
from pathlib import Path

import pytest
from report import browser as browsers

STYLE = Path(__file__).parents[1] / "docs" / "_static"
CHROMIUM = browsers.program()
# A page with a list of sections beside it, long lines and a wide table.
PAGE = f"""
Title
=====
{"words " * 100}

Section
-------
{"words " * 100}

.. list-table::

   * - {(chr(10) + "     - ").join(["wordword"] * 12)}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "index.rst").write_text(PAGE)
    settings = ("html_theme=furo", f"html_static_path={STYLE}", "html_css_files=site.css", "project=ntkprefix")
    options = [word for setting in settings for word in ("-D", setting)]
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "-C", *options, str(source), str(out)], check=True)
    return out / "index.html"


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_no_page_is_cut_off(page, tmp_path):
    browser = browsers.Browser(CHROMIUM, tmp_path)
    for width in (360, 700, 900, *range(1000, 1600, 20), 1900, 2500):
        browser.open(page, width=width)
        shown = browser.ask("document.documentElement.clientWidth")
        assert browser.ask("document.documentElement.scrollWidth") <= shown, width
        assert browser.ask("document.querySelector('article').getBoundingClientRect().right") <= shown, width
    browser.close()
