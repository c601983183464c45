"""Many examples as a prompt: what is asked behind them, against the whole text read at once."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from models.tiny_text import golden

from experiments import many_shot
from experiments.many_shot import ManyShotConfig, examples, main
from ntkprefix.models.tokenizers import Tokenizer
from ntkprefix.texts import Example


class Letters(Tokenizer):
    """A tokeniser with a token for every letter."""

    def __init__(self):
        self.size = int(golden("llama")["tokens"].max())

    def encode(self, text, *, special=True):  # noqa: ARG002
        return [ord(letter) % self.size for letter in text if letter != " "]


ROWS = [{"sentence": "abcdefgh"[place : place + 3], "label": place % 2} for place in range(6)]


@pytest.fixture
def measure(monkeypatch, tmp_path, loaded):
    folder = tmp_path / "sst2"
    folder.mkdir()
    for name, rows in (("train", ROWS), ("validation", ROWS[1:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(many_shot, "load_text_model", lambda _: loaded("llama"))
    monkeypatch.setattr(many_shot, "load_tokenizer", lambda _: Letters())
    monkeypatch.setattr(many_shot, "PATH", tmp_path / "many_shot.json")
    options = {"tokens": 90, "rows": 4, "length": 6, "tasks": ("sst2",), "longest": 40, "budget": "4x", "epochs": 1}
    return lambda **changes: main(ManyShotConfig(data_root=tmp_path, out=tmp_path / "pieces", **options | changes))


def test_examples_are_whole_and_in_a_random_order():
    train = [Example("q" * length + "?", "a") for length in (3, 5, 2, 4)]
    held, shown = examples(train, Letters(), 26, seed=1)
    order = np.random.default_rng(1).permutation(4)
    texts = ["q" * (3, 5, 2, 4)[index] + "?a\n\n" for index in order]
    lengths = np.cumsum([len(text) for text in texts])
    assert shown == np.sum(lengths <= 26) < 4
    assert held.tolist() == Letters().encode("".join(texts[:shown]))


def test_answers_are_as_likely_as_behind_the_text_itself(measure, loaded):
    results = measure(methods=("snapkv",))
    (task,) = results["tasks"]
    rows = {row["method"]: row for row in task["rows"]}
    assert list(rows) == ["none", "all", "snapkv"]
    assert (task["classes"], task["test_rows"]) == (2, 3)
    assert rows["snapkv"]["ratio"] >= 4
    model, letters = loaded("llama"), Letters()
    choices = (" negative", " positive")
    train = [
        Example(f"Review: {row['sentence']}\nSentiment:", choices[row["label"]], label=row["label"]) for row in ROWS
    ]
    held, shown = examples(train, letters, 90, seed=0)
    assert task["examples"] == shown
    assert task["tokens"] == len(held)
    for method, before in (("none", []), ("all", held.tolist())):
        likelihoods, right = [], ""
        for row in train[1:4]:
            question, answer = letters.encode(row.prompt), letters.encode(row.answer)
            tokens = [*before, *question, *answer]
            said = np.asarray(model.logits(model(jnp.asarray([tokens], jnp.int32))), np.float64)[0]
            said = said - np.log(np.exp(said).sum(axis=1, keepdims=True))
            places = range(len(before) + len(question), len(tokens))
            likelihoods.append(sum(said[place - 1, tokens[place]] for place in places))
            heard = said[places[0] - 1, [letters.encode(choice)[0] for choice in choices]]
            right += "01"[int(np.argmax(heard)) == row.label]
        assert rows[method]["log_likelihood"] == pytest.approx(np.mean(likelihoods), abs=2e-3)
        assert rows[method]["right"] == right


def test_what_cannot_be_measured(measure):
    with pytest.raises(ValueError, match=r"expected methods among ends, .*, got magic"):
        measure(methods=("magic",))
