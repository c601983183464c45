"""What compressed prompts lose: what is written, and that its numbers mean what they say."""

import re
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from experiments import compression, compression_table, plots
from experiments.compression import CompressionConfig, main
from ntkprefix.models import TextModel
from ntkprefix.runs import read_json


class Letters:
    """A tokeniser with a token for every letter."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def encode(self, text):
        return [ord(letter) % self.vocabulary for letter in text]


@pytest.fixture
def measure(monkeypatch, tmp_path, loaded):
    """`main` with a tiny model, a short text and few methods."""
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text("".join(map(chr, random.integers(33, 90, 800))))
    monkeypatch.setattr(compression, "load_text_model", lambda _: loaded("llama"))
    monkeypatch.setattr(compression, "load_tokenizer", lambda _: Letters(int(golden("llama")["tokens"].max())))
    monkeypatch.setattr(compression_table, "PATH", tmp_path / "compression.json")
    options = {"tokens": 40, "continuation": 16, "rows": 8, "length": 6, "texts": ("one.txt", "two.txt"), "epochs": 1}
    options |= {"data_root": tmp_path, "out": tmp_path / "pieces", "results": tmp_path / "compression.json"}
    return lambda **changes: main(CompressionConfig(**options | changes))


def test_rows_say_what_is_kept_of_the_gain(measure, monkeypatch, tmp_path, loaded):
    # What is measured again below, and compiles a program for every shape of a prefix.
    monkeypatch.setattr(compression, "pace", lambda *_: 0.5)
    results = measure(methods=("ends", "knorm"), budgets=("1x", "4x"))
    assert results == read_json(tmp_path / "compression.json")
    assert [(row["text"], row["budget"], row["method"]) for row in results["rows"]] == [
        (text, budget, method)
        for text in ("one.txt", "two.txt")
        for budget in ("1x", "4x")
        for method in ("ends", "knorm")
    ]
    trained = measure(methods=("ends", "distilled"), budgets=("4x",))
    for row in results["rows"] + trained["rows"]:
        assert row["seconds_per_token"] == 0.5
        if (row["method"], row["budget"]) == ("ends", "1x"):
            assert (row["kept"], row["ratio"]) == (pytest.approx(1, abs=1e-2), 1)
            assert row["error"] < 1e-4
            assert row["divergence"] < 1e-4
        assert len(row["error_of_layers"]) == loaded("llama").config.layers
        assert np.mean(row["error_of_layers"]) == pytest.approx(row["error"], abs=1e-4)
    # With and without the prompt, by the whole forward.
    model = loaded("llama")
    letters = Letters(int(golden("llama")["tokens"].max())).encode((tmp_path / "one.txt").read_text())[240:297]
    tokens = jnp.asarray([letters], jnp.int32)
    said = np.asarray(model.logits(TextModel.__call__(model, tokens)), np.float64)[0]
    said = said - np.log(np.exp(said).sum(axis=1, keepdims=True))
    full = np.mean([said[place - 1, letters[place]] for place in range(41, 57)])
    assert results["texts"][0]["full"] == pytest.approx(full, abs=1e-4)
    assert "| distilled | 4x |" in compression_table.compression()
    dots = plots.compression(trained).axes[0].lines[:2]
    assert [line.get_ydata().tolist() for line in dots] == [["ends", "distilled"]] * 2
    for text, line in zip(("one.txt", "two.txt"), dots, strict=True):
        kept = [row["kept"] for row in trained["rows"] if row["text"] == text]
        np.testing.assert_array_equal(line.get_xdata(), np.maximum(kept, plots._LOWEST))


def test_several_places(measure, monkeypatch):
    monkeypatch.setattr(compression, "pace", lambda *_: 0.25)
    seeds, read = [], compression.read_and_asked
    monkeypatch.setattr(
        compression, "read_and_asked", lambda model, tokens, how: seeds.append(how.seed) or read(model, tokens, how)
    )
    results = measure(methods=("ends", "knorm"), budgets=("4x",), places=(0.3, 0.6), seed=5)
    assert seeds == [5, 6] * 2
    assert [row["place"] for row in results["rows"]] == [0.3, 0.3, 0.6, 0.6] * 2
    table = compression_table.compression()
    cells = table[table.index("| knorm") :].splitlines()[0].strip("| ").split(" | ")
    of = [row for row in results["rows"] if row["method"] == "knorm"]
    first = [row["kept"] for row in of if row["text"] == "one.txt"]
    # Student's t of two: 12.71 standard errors.
    assert cells[2] == f"{np.mean(first):.2f} ± {12.7062 * abs(first[0] - first[1]) / 2:.2f}"
    assert cells[4] == f"{np.mean([row['kept'] for row in of]):.2f}"
    assert "beginning at 30%, 60% of every text, each with a seed of its own" in table
    assert len(plots.compression(results).axes[0].lines[0].get_xdata()) == 4


def test_the_command_has_every_setting_that_is_not_usual(measure, monkeypatch):
    monkeypatch.setattr(compression, "pace", lambda *_: 0.25)
    measure(methods=("ends",), queries="repeat", places=(0.3, 0.6))
    (command,) = re.findall("`(python .*?)`", compression_table.compression())
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "experiments.compression"]
    given = {words[at][2:].replace("-", "_") for at in range(3, len(words)) if words[at].startswith("--")}
    changed = {"tokens", "continuation", "rows", "length", "texts", "epochs", "queries", "places", "methods"}
    assert given == changed | {"data_root"}


def test_ways_of_our_own(measure, monkeypatch):
    """Of the same part of its bytes 4 bits make more tokens, and scores are found once for all that share by effect."""
    monkeypatch.setattr(compression, "pace", lambda *_: 0.25)
    scored = []
    found = compression.scores
    monkeypatch.setattr(compression, "scores", lambda *args, **options: scored.append(1) or found(*args, **options))
    methods = ("matching", "matching in 4 bits", "matching by effect", "ours in 4 bits")
    rows = measure(methods=methods, budgets=("2x",), texts=("one.txt",), queries="both")["rows"]
    assert [row["method"] for row in rows] == list(methods)
    assert len(scored) == 1
    assert all(row["ratio"] >= 2 for row in rows)
    assert rows[1]["error"] < rows[0]["error"]


def test_what_is_measured_is_not_measured_again(measure, monkeypatch):
    first = measure(methods=("ends",))
    assert {row["seconds_per_token"] > 0 for row in first["rows"]} == {True}
    monkeypatch.setattr(compression, "read_prompt", None)
    again = measure(methods=("ends",))
    assert again["rows"] == first["rows"]
    with pytest.raises(TypeError, match="not callable"):
        measure(methods=("ends", "kmeans"))


def test_what_cannot_be_measured(measure):
    with pytest.raises(ValueError, match=r"expected methods among ends, .*, got magic"):
        measure(methods=("magic",))
    with pytest.raises(FileNotFoundError, match=r"none\.txt: expected a text here"):
        measure(texts=("none.txt",))
    with pytest.raises(ValueError, match=r"one\.txt: expected 1,017 tokens"):
        measure(tokens=1000)


def test_the_committed_intervals_hold_nine_of_ten_queries_of_texts_that_nothing_was_chosen_on():
    """Of every way whose report is about the prefix that is used: distilling comes after it."""
    rows = [row for path in (compression.PATH, compression.SIZES) for row in read_json(path)["rows"]]
    for budget, method in {(row["budget"], row["method"]) for row in rows}:
        found = [row["coverage"] for row in rows if (row["budget"], row["method"]) == (budget, method)]
        if not compression.WAYS[method].distil:
            assert 0.85 <= np.mean(found) <= 0.95, method
