"""Tables of a field: rows that are missing, rows of several machines, shares and losses."""

import pytest

from experiments import field_table
from experiments.fields import OURS

LORA, TOKENS = "LoRA, r = 8", "P-Tuning v2, 10 tokens"
EPYC, H200 = "EPYC, 2 cores", "NVIDIA H200"


def row(method, rights, losses, machine=EPYC):
    tests = [{"right": right, "loss": loss} for right, loss in zip(rights, losses, strict=True)]
    sizes = {"adapter_parameters": 1234, "head_parameters": 0, "step_megabytes": 5.0, "data": "8 rows", "tried": {}}
    return {"method": method, "machine": machine, "tests": tests, **sizes}


TABLES = [
    {
        "task": "first",
        "model": "a model",
        "seeds": [0, 1],
        "rows": [
            row(LORA, ["1100", "1100"], [2.0, 2.0]),
            row(TOKENS, ["1000", "1100"], [1.0, 3.0], machine=H200),
            row(OURS, ["1110", "1111"], [1.0, 1.5]),
        ],
    },
    {
        "task": "second",
        "model": "a model",
        "seeds": [0, 1],
        "rows": [row(LORA, ["11", "11"], [1.0, 1.0]), row(OURS, ["11", "10"], [1.5, 1.5])],
    },
]
for table in TABLES:
    table["environment"] = {"commit": "x", "platform": "cpu", "device": "cpu", "processor": "EPYC", "cores": 2}


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    monkeypatch.setattr(field_table, "field_results", lambda _: TABLES)


def lines_of(what):
    return field_table.field_table("language-smollm2", what).splitlines()


def cells_of(lines, method):
    found = next(line for line in lines if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_what_is_not_measured_is_empty_and_has_no_mean():
    lines = lines_of("right")
    assert lines[0] == "| method | trained numbers | first | second | mean | MB |"
    # the methods' order is the field's, and those that nobody measured are not there
    assert [cells_of(lines, name)[0] for name in (LORA, TOKENS, OURS)] == [
        line.split("|")[1].strip() for line in lines[2:5]
    ]
    assert cells_of(lines, TOKENS)[3:5] == ["", ""]
    assert cells_of(lines, LORA) == [LORA, "1,234", "0.500 ± 0.000", "1.000 ± 0.000", "0.750 ± 0.000", "5"]
    # by hand: 0.75 and 1 on the first, 1 and 0.5 on the second
    assert cells_of(lines, OURS)[2].startswith("0.875 ± ")
    assert cells_of(lines, OURS)[4].startswith("0.812 ± ")


def test_pairs_are_on_the_tasks_that_both_have():
    lines = lines_of("right")
    against_lora = next(line for line in lines if f"{LORA}:" in line)
    assert "+6.2 points in the mean over 2 tasks" in against_lora  # (0.375 + -0.25) / 2
    against_tokens = next(line for line in lines if f"{TOKENS}:" in line)
    assert "+50.0 points on first" in against_tokens


def test_a_smaller_loss_is_ahead():
    lines = lines_of("loss")
    assert cells_of(lines, LORA)[2] == "2.000 ± 0.000"
    against_lora = next(line for line in lines if f"{LORA}:" in line)
    assert "+0.125 nats, by which its loss is smaller, in the mean over 2 tasks" in against_lora  # (0.75 - 0.5) / 2
    assert lines[-1].endswith("exactly right: 1.000 on first, 1.000 on second.")


def test_how_many_seeds_chose_is_told(monkeypatch):
    assert "held back, by one seed." in "\n".join(lines_of("right"))
    monkeypatch.setitem(TABLES[0]["rows"][0], "tried", {"seeds": [7, 8]})
    assert "held back, by 2 seeds on first and one seed on second." in "\n".join(lines_of("right"))
    monkeypatch.setitem(TABLES[1]["rows"][0], "tried", {"seeds": [7, 8]})
    assert "held back, by 2 seeds." in "\n".join(lines_of("right"))


def test_over_how_many_seeds_means_are_is_told(monkeypatch):
    assert "mean over 2 seeds and half" in "\n".join(lines_of("right"))
    monkeypatch.setitem(TABLES[1], "seeds", [0, 1, 2])
    for row in TABLES[1]["rows"]:
        monkeypatch.setitem(row, "tests", [*row["tests"], None])
    assert "mean over 2 seeds on first and 3 seeds on second and half" in "\n".join(lines_of("right"))


def test_fields_stand_side_by_side_with_what_ntk_attention_is_ahead_by():
    lines = field_table.fields_table([("language-smollm2", "texts", "right"), ("mathematics", "problems", "loss")])
    lines = lines.splitlines()
    assert lines[0].split("|")[3:7] == [
        " texts: accuracy ",
        f" {OURS} ahead by ",
        " problems: loss ",
        f" {OURS} ahead by ",
    ]
    assert not any(line.startswith(f"| {TOKENS} |") for line in lines)  # the second task lacks it
    cells = cells_of(lines, LORA)
    assert cells[2] == "0.750 ± 0.000"
    assert cells[3].startswith("+6.2 (")
    assert cells[5].startswith("+0.125 (")
    assert cells_of(lines, OURS)[3] == ""


def test_machines_are_told_with_their_rows():
    assert f"Made on {EPYC}; on {H200}: first, {TOKENS}." in "\n".join(lines_of("right"))
