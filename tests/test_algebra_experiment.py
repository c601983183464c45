"""What joined prompts cost: what is written, and that its numbers mean what they say."""

from string import ascii_lowercase

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import algebra, algebra_table, plots
from experiments.algebra import ALONE, AlgebraConfig, main
from experiments.questions import own_words
from ntkprefix.runs import read_json

# A letter, or a letter behind a space.
SPELT = [*ascii_lowercase, *(f" {letter}" for letter in ascii_lowercase), "\n", "."]


class Letters:
    """A tokeniser with a token for every letter, and for every letter that begins a word."""

    def encode(self, text):
        tokens = []
        while text:
            piece = next(spelt for spelt in (text[:2], text[:1]) if spelt in SPELT)
            tokens.append(SPELT.index(piece))
            text = text[len(piece) :]
        return tokens

    def decode(self, tokens):
        return "".join(SPELT[int(token)] for token in tokens)


@pytest.fixture
def measure(monkeypatch, tmp_path, loaded):
    """`main` with a tiny model, two short texts and few ways."""
    random = np.random.default_rng(0)
    for name in ("one", "two"):
        words = ["".join(random.choice(list(ascii_lowercase), 6)) for _ in range(40)]
        (tmp_path / f"{name}.txt").write_text("a" + " ".join(f"{word}" for word in words))
    monkeypatch.setattr(algebra, "load_text_model", lambda _: loaded("llama"))
    monkeypatch.setattr(algebra, "load_tokenizer", lambda _: Letters())
    for module in (algebra, algebra_table):
        monkeypatch.setattr(module, "PATH", tmp_path / "algebra.json")
    options = {"tokens": 48, "continuation": 12, "rows": 8, "length": 6, "places": (0.0,), "questions": 3, "cue": 4}
    options |= {"texts": ("one.txt", "two.txt"), "budget": "4x", "out": tmp_path / "pieces"}

    def run(ways=(), **changes):
        for module in (algebra, algebra_table):
            monkeypatch.setattr(module, "WAYS", {way: algebra.WAYS[way] for way in (ALONE, *ways)})
        return main(AlgebraConfig(data_root=tmp_path, **options | changes))

    return run


def test_rows_say_what_is_kept(measure, tmp_path, loaded):
    ways = ("small: merged, the other one subtracted", "small: the document alone")
    results = measure(ways)
    assert results == read_json(tmp_path / "algebra.json")
    found = {(row["way"], row["document"]): row for row in results["rows"]}
    assert len(found) == len(results["rows"]) == 2 * 4
    # By the model itself, which reads document and what follows at once.
    model = loaded("llama")
    tokens = jnp.asarray([Letters().encode((tmp_path / "two.txt").read_text())[:61]], jnp.int32)
    logits = np.asarray(model.logits(model(tokens))[0], float)
    said = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    wanted = np.mean([said[place - 1, tokens[0, place]] for place in range(49, 61)])
    assert found[ALONE, "two.txt"]["text"] == pytest.approx(wanted, abs=1e-4)
    for document in ("one.txt", "two.txt"):
        alone, left, small = (found[way, document] for way in (ALONE, *ways))
        assert (alone["text_kept"], alone["words_kept"], alone["ratio"]) == (1, 1, 2)
        assert left["ratio"] == small["ratio"] == pytest.approx(8.6, abs=0.8)
        assert small["error"] > 0
        assert left["text"] == pytest.approx(small["text"], abs=1e-3)
        assert left["words"] == pytest.approx(small["words"], abs=1e-3)
    assert "| small: the document alone | 8" in algebra_table.algebra()
    labels = plots.algebra(results).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [ALONE, *ways]


def test_words_are_a_document_s_own():
    tokenizer = Letters()
    document = "abc shared elephant giraffe twice. twice kangaroo"
    tokens = np.array(tokenizer.encode(document))
    found = own_words(tokenizer, tokens, "never shared giraffes", questions=2, cue=3)
    words = [tokenizer.decode(row[asked]) for row, asked in zip(found.tokens, found.asked, strict=True)]
    assert words == [" elephant", " kangaroo"]  # giraffe begins a word of the other, twice is there twice and short
    assert tokenizer.decode(found.tokens[0][:3]) == "red"
    with pytest.raises(ValueError, match="expected 9 words of a document's own, got 2"):
        own_words(tokenizer, tokens, "never shared giraffes", questions=9, cue=3)


def test_what_is_measured_is_not_measured_again(measure, monkeypatch):
    first = measure()
    monkeypatch.setattr(algebra, "read_prompt", None)
    assert measure()["rows"] == first["rows"]


def test_what_cannot_be_measured(measure):
    with pytest.raises(FileNotFoundError, match=r"none\.txt: expected a text here"):
        measure(texts=("one.txt", "none.txt"))
    with pytest.raises(ValueError, match=r"one\.txt: expected 1,013 tokens after the first 0%"):
        measure(tokens=1000)
