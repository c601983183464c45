"""Rows of text files become questions and answers, and those become arrays."""

import json

import pytest
from places import SHARED
from texts.words import WORDS, word_tokenizer

from ntkprefix.texts import TEMPLATES, Example, for_decoder, for_encoder, load_texts


def write(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


GOOD, BAD = {"text": "güt", "label": 1}, {"text": "bad", "label": 0}


def test_rows_of_ones_own(tmp_path):
    write(tmp_path, train=[GOOD, BAD], test=[BAD])
    data = load_texts("text", tmp_path)
    assert data.train == (Example("güt\nLabel:", " 1", ("güt",), 1), Example("bad\nLabel:", " 0", ("bad",), 0))
    assert data.test == data.train[1:]
    assert data.choices == (" 0", " 1")
    (tmp_path / "labels.json").write_text('["worse", "better"]')
    assert load_texts("text", tmp_path).train[0].answer == " better"
    write(tmp_path, train=[{"prompt": "2 + 2 =", "answer": " 4", "more": 1}], test=[{"prompt": "1", "answer": "2"}])
    free = load_texts("prompt", tmp_path)
    assert free.train == (Example("2 + 2 =", " 4"),)
    assert free.choices == ()


def test_braces_in_a_text_are_text(tmp_path):
    write(tmp_path, train=[{"text": "{label} {0}", "label": 0}], test=[{"text": "{", "label": 0}])
    assert load_texts("text", tmp_path).train[0].prompt == "{label} {0}\nLabel:"


def test_a_passage_has_many_rows(tmp_path):
    questions = [
        {"question": "who?", "answers": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]},
        {"question": "why?", "answers": [{"text": "c", "label": 0}]},
    ]
    write(tmp_path, train=[{"passage": "p", "questions": questions}], validation=[])
    (tmp_path / "validation.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    data = load_texts("multirc", tmp_path)
    assert [(row.label, row.answer, row.texts) for row in data.train] == [
        (1, " yes", ("who? a", "p")),
        (0, " no", ("who? b", "p")),
        (0, " no", ("why? c", "p")),
    ]


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data sets")
@pytest.mark.parametrize("task", sorted(set(TEMPLATES) - {"text", "pair", "prompt", "aqua"}))
def test_known_sets_are_read(task):
    data = load_texts(task, SHARED / "data" / task)
    assert len(data.train) > 50
    assert all(row.prompt and row.answer.strip() for row in (*data.train, *data.test))
    if data.choices:
        assert {row.label for row in data.train} == set(range(len(data.choices)))


LINES = {
    "no JSON": (b'{"text": "a", "label": 0', "train.jsonl, line 2: expected a JSON object, but it does not parse"),
    "no object": (b"[1]", "line 2: expected an object with text, label, got a list"),
    "no label": (b'{"text": "a"}', "line 2: expected an object with text, label, got the fields text"),
    "no text": (b'{"label": 0}', "expected an object with text, label, got the fields label"),
    "nothing": (b"{}", "got the fields none"),
    "null as text": (b'{"text": null, "label": 0}', "line 2: expected a text or a number as text, got None"),
    "a list as text": (b'{"text": ["a"], "label": 0}', r"expected a text or a number as text, got \['a'\]"),
    "a word as label": (b'{"text": "a", "label": "0"}', "expected an integer from 0 to 29999 as label, got '0'"),
    "true as label": (b'{"text": "a", "label": true}', "as label, got True"),
    "below zero": (b'{"text": "a", "label": -1}', "as label, got -1"),
    "more classes than there are": (b'{"text": "a", "label": 30000}', "line 2: .* 0 to 29999 as label, got 30000"),
    "no unicode": (b'{"text": "\xff", "label": 0}', "does not parse"),
    "half a letter": (rb'{"text": "a\ud800", "label": 0}', r"train.jsonl, line 2: expected text, got '\\ud800' as its"),
    "too deep": (b"[" * 100_000, "does not parse"),
}


@pytest.mark.parametrize("case", LINES)
def test_bad_lines_are_named(case, tmp_path):
    line, message = LINES[case]
    write(tmp_path, train=[GOOD], test=[GOOD])
    with (tmp_path / "train.jsonl").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=message):
        load_texts("text", tmp_path)


def test_development_rows_train_where_there_are_no_training_rows(tmp_path):
    write(tmp_path, dev=[GOOD], test=[GOOD, GOOD])
    data = load_texts("text", tmp_path)
    assert (len(data.train), len(data.test), data.notes) == (1, 2, "dev.jsonl, test.jsonl")
    write(tmp_path, train=[GOOD] * 3)
    data = load_texts("text", tmp_path)
    assert (len(data.train), len(data.test), data.notes) == (3, 2, "train.jsonl, test.jsonl")


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match="unknown task 'sst3'; expected one of text, pair"):
        load_texts("sst3", tmp_path)
    (tmp_path / "file").touch()
    for name, what in (("", "none of them"), ("absent", "no such folder"), ("file", "a file")):
        told = (
            f"expected a folder with one of validation.jsonl, test.jsonl, dev.jsonl, found {what}. Is the path right?"
        )
        with pytest.raises(FileNotFoundError, match=f"^{tmp_path / name}: {told}"):
            load_texts("text", tmp_path / name)
    write(tmp_path, test=[GOOD])
    with pytest.raises(FileNotFoundError, match=r"train.jsonl: expected a file"):
        load_texts("text", tmp_path)
    write(tmp_path, train=[])
    with pytest.raises(ValueError, match=r"train.jsonl: expected at least one row"):
        load_texts("text", tmp_path)
    (tmp_path / "labels.json").write_text('["no", "yes", "no"]')
    with pytest.raises(ValueError, match=r"labels.json: expected names without repeats, got 'no' more than once"):
        load_texts("text", tmp_path)
    (tmp_path / "labels.json").unlink()
    write(tmp_path, train=[BAD])
    with pytest.raises(ValueError, match=r"expected classes that train.jsonl has too, got \[1\]"):
        load_texts("text", tmp_path)
    write(tmp_path, train=[GOOD, BAD])
    (tmp_path / "labels.json").write_text("{}")
    with pytest.raises(ValueError, match=r"labels.json: expected a list of names"):
        load_texts("text", tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps(["one"] * 30_001))
    with pytest.raises(ValueError, match=r"labels.json: expected at most 30,000 classes, got 30,001"):
        load_texts("text", tmp_path)
    (tmp_path / "labels.json").unlink()
    (tmp_path / "labels.json").symlink_to("/dev/null")
    with pytest.raises(OSError, match=r"labels.json: expected a file, got a folder, a device or a pipe"):
        load_texts("text", tmp_path)
    (tmp_path / "labels.json").unlink()
    (tmp_path / "labels.json").write_text('["one"]')
    with pytest.raises(ValueError, match="expected an integer from 0 to 0 as label, got 1"):
        load_texts("text", tmp_path)


def spelt(tokens):
    return " ".join(WORDS[token] for token in tokens)


def test_answers_follow_questions_which_are_cut_at_their_start():
    rows = [Example("one two three four", "five six"), Example("one", "two")]
    answers = for_decoder(rows, word_tokenizer(), 5)
    assert [spelt(row) for row in answers.tokens] == ["two three four five six", "one two pad pad pad"]
    assert answers.starts.tolist() == [3, 1]
    assert answers.lengths.tolist() == [5, 2]


def test_an_answers_end_is_part_of_it():
    answers = for_decoder([Example("one two", "three"), Example("four", "five")], word_tokenizer(), 4, end=" six")
    assert [spelt(row) for row in answers.tokens] == ["one two three six", "four five six pad"]
    assert (answers.lengths - answers.starts).tolist() == [2, 2]


def test_pairs_have_segments_and_the_longer_text_is_cut():
    rows = [Example("", "", ("one two", "one two three four five six"), 0), Example("", "", ("six",), 1)]
    texts = for_encoder(rows, word_tokenizer(special=True), 8)
    assert [spelt(row) for row in texts.tokens] == ["cls one two sep one two three sep", "cls six sep" + 5 * " pad"]
    assert texts.segments.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8]
    assert texts.mask.sum(axis=1).tolist() == [8, 3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: for_decoder([Example("one", "")], word_tokenizer(), 5), "an answer of 1 to 4 tokens, got 0: ''"),
        (lambda: for_decoder([Example("one", "")], word_tokenizer(), 5, end=" six"), "answer of 1 to 4 tokens, got 0"),
        (lambda: for_decoder([Example("one", "two " * 5)], word_tokenizer(), 5), "got 5: 'two two"),
        (
            lambda: for_decoder([Example("", "two")], word_tokenizer(), 5),
            "a question before the answer 'two', got none",
        ),
        (lambda: for_decoder([], word_tokenizer(), 1), "length of at least 2, got 1"),
        (lambda: for_encoder([Example("one", "two")], word_tokenizer(), 8), "got free answers. Use a decoder"),
        (lambda: for_encoder([Example("", "", ("one",), 0)], word_tokenizer(), 2), "length of at least 8, got 2"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
