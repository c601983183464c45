"""The kinds of runs and result files, in the order in which they are recognised and shown."""

from __future__ import annotations

from collections.abc import Sequence

from ntkprefix.records import comparison, compression, kernels, many_shot, measured, tables, train, verify
from ntkprefix.records.base import Kind, Record
from ntkprefix.report import Section

KINDS: tuple[Kind, ...] = (
    train.KIND,
    comparison.KIND,
    verify.KIND,
    tables.KIND,
    compression.KIND,
    many_shot.KIND,
    kernels.KIND,
    *measured.KINDS,
)


def sections(records: Sequence[Record]) -> list[Section]:
    """A page's sections, kind by kind."""
    return [
        section for kind in KINDS for section in kind.sections([record for record in records if record.kind is kind])
    ]
