"""From paths to records: each recognised by its content, checked, and named."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.registry import KINDS
from ntkprefix.records.shape import check
from ntkprefix.run_folder import SETTINGS
from ntkprefix.runs import read_json, read_json_lines

_RESULTS, _METRICS = "results.json", "metrics.jsonl"
# Folders that are named when a folder of them was given.
_NAMED = 5


def read_all(paths: Sequence[Path]) -> list[Record]:
    """Read run folders and result files; what is given twice is read once.

    Args:
        paths: in the order in which they are shown.

    Returns:
        A record of each.

    Raises:
        FileNotFoundError: there is no such file or folder, or no results in it.
        ValueError: a file is no result of ours, or damaged; the message names it and what was expected.
    """
    files = dict.fromkeys(_file(path).resolve() for path in paths)
    read = []
    for file, name in zip(files, _names(list(files)), strict=True):
        try:
            content = read_json(file)
        except ValueError as error:
            # read_json speaks to those who can make the file again.
            raise ValueError(
                f"{file}: expected a result file of ntkprefix, which is a JSON object "
                f"({error.__cause__ or 'found other JSON'}). Give the folder that a command's --out named, or the "
                "results.json in it."
            ) from error
        kind = _kind(file, content)
        check(content, kind.shape, file=file, maker=kind.name)
        lines = _lines(file, kind) if kind.line else []
        read.append(Record(name, file, content, kind, lines))
    return read


def _file(path: Path) -> Path:
    if path.is_dir():
        if (path / _RESULTS).is_file():
            return path / _RESULTS
        raise FileNotFoundError(f"{path}: expected a run folder, with {_RESULTS} in it, found none.{_hint(path)}")
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a run folder or a result file here, found none. A command's --out names the folder."
        )
    return path


def _hint(folder: Path) -> str:
    if any((folder / name).exists() for name in (SETTINGS, _METRICS, "pieces")):
        return " The run has not finished: the command that began it goes on with it."
    inside = sorted(
        str(each.parent if each.name == _RESULTS else each)
        for each in itertools.chain(folder.glob(f"*/{_RESULTS}"), folder.glob("*.json"))
        if _is_of_results(each)
    )
    more = f" and {len(inside) - _NAMED} more" if len(inside) > _NAMED else ""
    return f" Give what is in it: {', '.join(inside[:_NAMED])}{more}." if inside else " A command's --out names one."


def _is_of_results(file: Path) -> bool:
    try:
        _kind(file, read_json(file))
    except (OSError, ValueError):
        return False
    return True


def _kind(file: Path, content: dict) -> Kind:
    for kind in KINDS:
        if all(mark in content for mark in kind.marks):
            return kind
    keys = ", ".join(repr(key)[:40] for key in list(content)[:10]) or "none"
    known = "; ".join(dict.fromkeys(kind.name for kind in KINDS))
    raise ValueError(f"{file}: expected results of one of: {known}. Got an object with the keys {keys}.")


def _lines(file: Path, kind: Kind) -> list[dict]:
    path = file.with_name(_METRICS)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the steps of the run here, beside {file.name}, found none.")
    lines = read_json_lines(path)
    check(lines, [kind.line], file=path, maker=kind.name)
    return lines


def _names(files: Sequence[Path]) -> list[str]:
    """The shortest ends of their paths that tell them apart."""
    parts = [(file.parent if file.name == _RESULTS else file).parts for file in files]
    names = []
    for each in parts:
        length = 1
        while length < len(each) and sum(other[-length:] == each[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(each[-length:]))
    return names
