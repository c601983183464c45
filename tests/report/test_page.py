"""The HTML page stands alone and escapes what it shows."""

import base64
import hashlib
import json
import re

import pytest
from report.pages import read

from ntkprefix.report import Line, Plot, Section, Table, page, write_report

HOSTILE = "\" onload='x'></script><script>alert(1)</script><!--"


def written(path, **options):
    return write_report(path / "r.html", **({"title": "T", "lead": "", "sections": [], "records": {}} | options))


def test_page_is_self_contained_and_escaped(tmp_path):
    lines = [Line(HOSTILE, [1, 2], [3, 4], group=HOSTILE), Line("other", [1.0], [HOSTILE])]
    section = Section(
        HOSTILE,
        text="1 < 2",
        table=Table([HOSTILE], [[HOSTILE, "pass"], ["a", "failed"]], caption=HOSTILE),
        notes=[HOSTILE],
        plots=[Plot(HOSTILE, HOSTILE, HOSTILE, lines, HOSTILE)],
    )
    records = {HOSTILE: {"classes": [HOSTILE, "</pre>"]}}
    path = written(tmp_path, title=HOSTILE, lead=HOSTILE, sections=[section] * 3, records=records)
    found, text = read(path), path.read_text(encoding="utf-8")
    # plotly.js, our own, and one of data for each plot; the parser sees no other.
    assert [tag for tag, _ in found.tags].count("script") == 2 + 3
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert found.headings.count(HOSTILE) == 6
    assert "alert(1)" not in "".join(found.scripts[:2])
    assert found.figures[0]["data"][0]["name"] == HOSTILE.replace("<", "&lt;").replace(">", "&gt;")
    assert found.tables[0] == [[HOSTILE], [HOSTILE, "pass"], ["a", "failed"]]
    assert "1 < 2" in found.text
    assert 'class="pass"' in text
    assert 'class="failed"' in text
    urls = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("src", "href")]
    assert urls == ["#section-1", "#section-2", "#section-3"]


def test_the_page_allows_its_own_scripts_alone_and_fetches_nothing(tmp_path):
    path = written(tmp_path, sections=[Section("S", plots=[Plot("P", "x", "y", [Line("a", [1], [2])])])])
    found = read(path)
    policy = next(attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in found.scripts]
    assert len(hashes) == 2
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data: blob:"]
    rules += ["style-src 'unsafe-inline'", f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'"]
    assert policy.split("; ") == rules


def test_a_page_without_plots_has_no_script(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_plotly", lambda: pytest.fail("plotly is not needed"))
    found = read(written(tmp_path, sections=[Section("S", table=Table(["a"], [["b"]]))]))
    assert "script" not in [tag for tag, _ in found.tags]
    assert "script-src" not in str(found.tags)


def test_what_cannot_be_drawn_leaves_no_page(tmp_path):
    plot = Plot("P", "x", "y", [Line("a", [1, 2], [3])])
    with pytest.raises(ValueError, match=r"as many x as y and interval ends, got \[2, 1\] and \[0, 0\] of 'a'"):
        written(tmp_path, sections=[Section("S", plots=[plot])])
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text_do_not_stop_the_page(tmp_path):
    plots = [Plot("caf\udce9", "x", "y", [Line("\udce9", [1], [2])])]
    path = written(tmp_path, title="caf\udce9", sections=[Section("S", plots=plots)], records={"a": {"b": "\udce9"}})
    assert "caf\\udce9" in path.read_text(encoding="utf-8")
    assert read(path).figures[0]["data"][0]["name"] == "\udce9"


def test_long_tables_are_folded_and_others_not(tmp_path):
    for rows, folded in ((5, 0), (50, 1)):
        found = read(written(tmp_path, sections=[Section("S", table=Table(["a"], [["b"]] * rows))]))
        assert [tag for tag, _ in found.tags].count("details") == folded
        assert len(found.tables[0]) == rows + 1


def test_plots_are_valid_json_for_a_browser(tmp_path):
    """Which knows no NaN."""
    line = Line("a", [1, 2, 3], [float("nan"), float("inf"), 1.0], [None, 0.5, 0.5], [1.0, 1.0, float("-inf")])
    text = written(tmp_path, sections=[Section("S", plots=[Plot("P", "x", "y", [line])])]).read_text(encoding="utf-8")
    block = re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    json.loads(block, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
