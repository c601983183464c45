"""How a row of each known data set becomes a question with an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

Row = dict[str, Any]


def _one(row: Row) -> Iterator[Row]:
    yield row


def _each_answer(row: Row) -> Iterator[Row]:
    """MultiRC has one passage per line, with its questions and their answers within."""
    for question in row["questions"]:
        for answer in question["answers"]:
            yield {
                "passage": row["passage"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer["label"],
            }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """One kind of row.

    Attributes:
        prompt: what a decoder reads before it answers; the row's fields stand in braces.
        texts: what an encoder reads, one text or a pair; empty where a row has no class.
        choices: the answers, by class number; empty where the answer is free.
        answer: a free answer.
        rows: the rows of one line of the file.

    Example:
        >>> from ntkprefix.texts import Template
        >>> template = Template(prompt="News: {title}. Topic:", texts=("{title}",), choices=(" art", " sport"))
        >>> row = {"title": "A late goal", "label": 1}
        >>> template.prompt.format_map(row) + template.choices[row["label"]]
        'News: A late goal. Topic: sport'

    Source: the fields are those of the data sets' own files; GLUE and SuperGLUE (arXiv 1804.07461, 1905.00537).
    """

    prompt: str
    texts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: str = ""
    rows: Callable[[Row], Iterator[Row]] = _one


TEMPLATES: dict[str, Template] = {
    # Of one's own: {"text": .., "label": ..}, {"first": .., "second": .., "label": ..} or {"prompt": .., "answer": ..}.
    "text": Template(prompt="{text}\nLabel:", texts=("{text}",)),
    "pair": Template(prompt="{first}\n{second}\nLabel:", texts=("{first}", "{second}")),
    "prompt": Template(prompt="{prompt}", answer="{answer}"),
    "sst2": Template(
        prompt="Review: {sentence}\nSentiment:", texts=("{sentence}",), choices=(" negative", " positive")
    ),
    "agnews": Template(
        prompt="News: {title}. {text}\nTopic:",
        texts=("{title}", "{text}"),
        choices=(" World", " Sports", " Business", " Technology"),
    ),
    "boolq": Template(
        prompt="{passage}\nQuestion: {question}?\nAnswer:", texts=("{question}", "{passage}"), choices=(" no", " yes")
    ),
    "rte": Template(
        prompt="{premise}\nQuestion: {hypothesis} True or False?\nAnswer:",
        texts=("{premise}", "{hypothesis}"),
        choices=(" True", " False"),
    ),
    "cb": Template(
        prompt="{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:",
        texts=("{premise}", "{hypothesis}"),
        choices=(" True", " False", " Neither"),
    ),
    "copa": Template(
        prompt="{premise}\nQuestion: Which is the {question}?\nA: {choice1}\nB: {choice2}\nAnswer:",
        texts=("{premise} {question}?", "{choice1} Or: {choice2}"),
        choices=(" A", " B"),
    ),
    "wic": Template(
        prompt="{sentence1}\n{sentence2}\nQuestion: Does '{word}' mean the same in both?\nAnswer:",
        texts=("{word}: {sentence1}", "{sentence2}"),
        choices=(" no", " yes"),
    ),
    "wsc": Template(
        prompt="{text}\nQuestion: Does '{span2_text}' stand for '{span1_text}'?\nAnswer:",
        texts=("{span2_text}: {span1_text}", "{text}"),
        choices=(" no", " yes"),
    ),
    "multirc": Template(
        prompt="{passage}\nQuestion: {question}\nAnswer: {answer}\nIs this right?",
        texts=("{question} {answer}", "{passage}"),
        choices=(" no", " yes"),
        rows=_each_answer,
    ),
    "svamp": Template(prompt="Question: {question}\nAnswer:", answer=" {final}"),
    "mawps": Template(prompt="Question: {question}\nAnswer:", answer=" {final}"),
    "gsm8k": Template(prompt="Question: {question}\nAnswer:", answer=" {final}"),
    "aqua": Template(
        prompt="Question: {question}\nOptions: {options}\nAnswer:",
        answer=" {correct}",
        rows=lambda row: iter([{**row, "options": " ".join(row["options"])}]),
    ),
}
