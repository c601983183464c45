"""The HTML page stands alone and escapes what it shows."""

import re
from html.parser import HTMLParser

import pytest

from ntkprefix.report import Figure, Section, Table, write_report

HOSTILE = "\" onload='x'><script>alert(1)</script>"
PNG = b"\x89PNG\r\n\x1a\n"


def elements(page):
    """What a browser makes of the page: every element with the names of its attributes."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, [name for name, _ in attributes]))
    parser.feed(page)
    return found


def test_page_is_self_contained_and_escaped(tmp_path):
    (tmp_path / "plot.png").write_bytes(PNG)
    sections = [
        Section(
            "A <title>",
            text="1 < 2",
            table=Table([HOSTILE], [[HOSTILE], ["pass"], ["failed"]]),
            notes=[HOSTILE],
            figures=[Figure(tmp_path / "plot.png", HOSTILE)],
        )
    ]
    records = {HOSTILE: {"classes": [HOSTILE, "</pre>"]}}
    page = write_report(tmp_path / "r.html", title=HOSTILE, lead=HOSTILE, sections=sections, records=records)
    text = page.read_text()
    tags = elements(text)
    assert "script" not in [tag for tag, _ in tags]
    assert not [name for _, names in tags for name in names if name.startswith("on")]
    assert text.count("&lt;script&gt;") == 10
    assert "1 &lt; 2" in text
    assert 'class="pass"' in text
    assert 'class="failed"' in text
    assert "data:image/png;base64,iVBORw0KGgo=" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_a_missing_figure_leaves_no_page(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_report(
            tmp_path / "r.html",
            title="T",
            lead="",
            sections=[Section("S", figures=[Figure(tmp_path / "none.png", "c")])],
            records={},
        )
    assert not list(tmp_path.iterdir())


def test_the_page_forbids_scripts_and_fetching(tmp_path):
    text = write_report(tmp_path / "r.html", title="T", lead="", sections=[], records={}).read_text()
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text


def test_names_that_are_no_text_do_not_stop_the_page(tmp_path):
    page = write_report(tmp_path / "r.html", title="caf\udce9", lead="", sections=[], records={"a": {"b": "\udce9"}})
    assert "caf\\udce9" in page.read_text()
