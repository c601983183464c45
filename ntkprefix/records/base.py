"""A record, which is a run folder or result file that was read, and a kind of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntkprefix.records.shape import Shape
from ntkprefix.report import Section


@dataclass(frozen=True)
class Record:
    """What was read.

    Attributes:
        name: tells it from the others on one page.
        file: that it was read from.
        content: of the file.
        kind: recognised by the content.
        lines: of `metrics.jsonl` beside it, where its kind has that.
    """

    name: str
    file: Path
    content: Mapping[str, Any]
    kind: Kind
    lines: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Kind:
    """A kind of run or result file.

    Attributes:
        name: what makes it, for messages.
        marks: keys that all of its files have, and those of no other kind before it.
        shape: what it has to hold.
        sections: shows all records of this kind that a page has.
        line: what a line of its `metrics.jsonl` has to hold; it has none if this is empty.
    """

    name: str
    marks: tuple[str, ...]
    shape: Shape
    sections: Callable[[Sequence[Record]], list[Section]]
    line: Mapping[str, Shape] = field(default_factory=dict)
