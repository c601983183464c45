"""Questions with answers from JSON Lines files."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntkprefix import checks
from ntkprefix.runs import read_file
from ntkprefix.texts.templates import TEMPLATES, Template

# What is tested on, in this order of preference.
_TEST_FILES = ("validation.jsonl", "test.jsonl", "dev.jsonl")


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        prompt: what a decoder reads before it answers.
        answer: what it should go on with, from the first space on.
        texts: what an encoder reads, one text or a pair; empty where there is no class.
        label: class number; -1 where there is none.

    Example:
        >>> from ntkprefix.texts import Example
        >>> review = Example("Review: a joy. Sentiment:", " positive", texts=("a joy",), label=1)
        >>> review.prompt + review.answer
        'Review: a joy. Sentiment: positive'
        >>> Example("2 + 3 =", " 5").label  # a free answer is of no class
        -1
    """

    prompt: str
    answer: str
    texts: tuple[str, ...] = ()
    label: int = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class TextData:
    """A text task.

    Attributes:
        train: to train and to choose settings on.
        test: to report on.
        choices: the answers by class number; empty where answers are free.
        name: of the task.
        notes: which files they are from.

    Example:
        >>> from ntkprefix.texts import Example, TextData
        >>> joy = Example("a joy:", " good", texts=("a joy",), label=1)
        >>> bore = Example("a bore:", " bad", texts=("a bore",), label=0)
        >>> data = TextData(train=(joy, bore), test=(joy,), choices=(" bad", " good"), name="reviews", notes="made up")
        >>> [data.choices[example.label] == example.answer for example in data.train]
        [True, True]
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    choices: tuple[str, ...]
    name: str
    notes: str


def load_texts(task: str, folder: str | Path) -> TextData:
    r"""Read a task's rows.

    Args:
        task: a name among `TEMPLATES`: a known data set, or `text`, `pair` or `prompt` for rows of one's own.
        folder: with `train.jsonl` and one of `validation.jsonl`, `test.jsonl` and `dev.jsonl`, or with `dev.jsonl`,
            which then trains, and `test.jsonl`: a JSON object per line, UTF-8. `text` and `pair` may have
            `labels.json`, the names of the classes; else these are their numbers.

    Returns:
        The task.

    Raises:
        FileNotFoundError: a file is not there.
        OSError: labels.json is a folder, a device or a pipe.
        ValueError: an unknown task, a line that is no JSON object or lacks a field, a label that is no class number
            (below 30,000), a class's name that another has, no rows, or a test class that is never trained; the message
            names file and line.

    Example:
        >>> import json, pathlib, tempfile
        >>> from ntkprefix.texts import load_texts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "test"):
        ...         rows = [{"sentence": "a joy", "label": 1}, {"sentence": "a bore", "label": 0}]
        ...         text = "\n".join(map(json.dumps, rows))
        ...         _ = pathlib.Path(folder, f"{name}.jsonl").write_text(text)
        ...     data = load_texts("sst2", folder)
        >>> data.train[0].prompt + data.train[0].answer
        'Review: a joy\nSentiment: positive'
    """
    checks.one_of("load_texts", "task", task, tuple(TEMPLATES))
    template, folder = TEMPLATES[task], Path(folder)
    choices = template.choices or (_names(folder / "labels.json") if template.texts else ())
    train_file, test_file = _files(folder)
    train, test = (tuple(_examples(path, template, choices)) for path in (train_file, test_file))
    for path, rows in ((train_file, train), (test_file, test)):
        if not rows:
            raise ValueError(f"{path}: expected at least one row, found none.")
    unseen = {row.label for row in test} - {row.label for row in train}
    if unseen:
        raise ValueError(f"{test_file}: expected classes that {train_file.name} has too, got {sorted(unseen)}.")
    if template.texts and not choices:
        choices = tuple(map(_number, range(1 + max(row.label for row in train))))
    return TextData(train=train, test=test, choices=choices, name=task, notes=f"{train_file.name}, {test_file.name}")


def _files(folder: Path) -> tuple[Path, Path]:
    """What trains, and what is tested on."""
    train, development = folder / "train.jsonl", folder / "dev.jsonl"
    found = [folder / name for name in _TEST_FILES if (folder / name).is_file()]
    if not found:
        what = "none of them" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(
            f"{folder}: expected a folder with one of {', '.join(_TEST_FILES)}, found {what}. Is the path right?"
        )
    if not train.is_file() and development in found[1:]:
        return development, found[0]
    return train, found[0]


def _names(path: Path) -> tuple[str, ...]:
    """Classes by their names, where a file has them."""
    if not path.exists():
        return ()
    try:
        names = json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, but it does not parse ({error}).") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a list of names, one for each class.")
    if len(names) > checks.MOST_CLASSES:
        raise ValueError(f"{path}: expected at most {checks.MOST_CLASSES:,} classes, got {len(names):,}.")
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise ValueError(f"{path}: expected names without repeats, got {repeated[0]!r} more than once.")
    for name in names:
        checks.characters(str(path), name)
    return tuple(f" {name}" for name in names)


def _number(label: int) -> str:
    return f" {label}"


def _examples(path: Path, template: Template, choices: tuple[str, ...]) -> Iterator[Example]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of one JSON object per line, found nothing.")
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected a JSON object, but it does not parse ({error}).") from error
        try:
            for each in template.rows(row):
                yield _example(each, template, choices, where)
        except (AttributeError, KeyError, TypeError) as error:
            found = f"the fields {', '.join(row) or 'none'}" if isinstance(row, dict) else f"a {type(row).__name__}"
            raise ValueError(f"{where}: expected an object with {_wanted(template)}, got {found}.") from error


def _example(row: dict[str, Any], template: Template, choices: tuple[str, ...], where: str) -> Example:
    for field in _fields(template):
        if isinstance(row[field], bool) or not isinstance(row[field], str | int | float):
            raise ValueError(f"{where}: expected a text or a number as {field}, got {row[field]!r:.60}.")
    prompt = template.prompt.format_map(row)
    if not template.texts:
        answer = template.answer.format_map(row)
        checks.characters(where, prompt + answer)
        return Example(prompt, answer)
    checks.characters(where, prompt)
    label = row["label"]
    classes = len(choices) or checks.MOST_CLASSES
    if type(label) is not int or not 0 <= label < classes:
        raise ValueError(f"{where}: expected an integer from 0 to {classes - 1} as label, got {label!r}.")
    texts = tuple(text.format_map(row) for text in template.texts)
    return Example(prompt, choices[label] if choices else _number(label), texts, label)


def _wanted(template: Template) -> str:
    return ", ".join([*_fields(template), *(["label"] if template.texts else [])])


def _fields(template: Template) -> list[str]:
    """What the words of a template name, each once."""
    return list(dict.fromkeys(re.findall(r"{(\w+)}", " ".join([template.prompt, template.answer, *template.texts]))))
