"""The HTML page stands alone and escapes what it shows."""

import re

import pytest

from ntkprefix.report import Figure, Section, Table, write_report

PNG = b"\x89PNG\r\n\x1a\n"


def test_page_is_self_contained_and_escaped(tmp_path):
    (tmp_path / "plot.png").write_bytes(PNG)
    sections = [
        Section(
            "A <title>",
            text="1 < 2",
            table=Table(["method"], [["<script>alert(1)</script>"], ["pass"]]),
            figures=[Figure(tmp_path / "plot.png", "a caption")],
        )
    ]
    page = write_report(tmp_path / "r.html", title="T", lead="L", sections=sections, records={"config": {"a": 1}})
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert 'class="pass"' in text
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
