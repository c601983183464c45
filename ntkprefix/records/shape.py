"""What a file has to hold before it is shown: what is missing or damaged is named by its place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias


class Numbers(NamedTuple):
    """Lists of numbers, nested once for each axis.

    Attributes:
        axes: a digit is the axis's length; a capital letter stands for one length throughout a file, a small one within
            one thing of a list.
        gaps: there may be nulls among the numbers.
    """

    axes: str
    gaps: bool = False


class Share:
    """A number from 0 to 1, or none (nan): a part of the test rows, such as those that are right."""


class Bits:
    """A text of digits 0 and 1, one for every test row: whether it is right."""


# A type; an object's keys, of which those that end in "?" may be absent; a list of one kind of things, and perhaps the
# axis that it is as long as; alternatives, of which None is null; or numbers.
Shape: TypeAlias = type | Mapping[str, Any] | list[Any] | tuple[Any, ...] | Numbers | None

_WORDS = {str: "text", float: "a number", int: "an integer", bool: "true or false", dict: "an object", list: "a list"}


def check(content: Any, shape: Shape, *, file: Path, maker: str) -> None:
    """Make sure that a file holds what it is shown from.

    Args:
        content: of the file.
        shape: that it has to have.
        file: for the message.
        maker: what writes such files, likewise.

    Raises:
        ValueError: something is absent or another thing; the message says what and where.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.records.shape import Numbers, check
        >>> shape = {"lengths": Numbers("M"), "error": Numbers("M S")}
        >>> check({"lengths": [2, 4], "error": [[0.5], [0.1]]}, shape, file=Path("a.json"), maker="verify")
        >>> check({"lengths": [2, 4], "error": [[0.5]]}, shape, file=Path("a.json"), maker="verify")
        Traceback (most recent call last):
        ValueError: a.json: expected numbers [M, S] with M = 2 as error, in a file of verify, got numbers [1, 1].
    """
    found = fault(content, shape)
    if found:
        expected, place, came = found
        where = f"{expected} as {place}" if place else expected
        raise ValueError(f"{file}: expected {where}, in a file of {maker}, got {came}.")


def fault(
    content: Any, shape: Shape, place: str = "", lengths: dict[str, int] | None = None
) -> tuple[str, str, str] | None:
    """What was expected, where, and what came; None if all is well.

    Args:
        content: what came.
        shape: what was expected.
        place: of it in the file.
        lengths: of the axes that have been met.
    """
    lengths = {} if lengths is None else lengths
    if isinstance(shape, Numbers):
        return _not_numbers(content, shape, place, lengths)
    if isinstance(shape, tuple):
        faults = [fault(content, each, place, lengths) for each in shape]
        return None if None in faults else faults[0]
    if isinstance(shape, Mapping):
        if not isinstance(content, Mapping):
            return _WORDS[dict], place, _came(content)
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name not in content:
                if key.endswith("?"):
                    continue
                return f"the key {name!r}", place, f"{', '.join(map(_came, content)) or 'none'}"
            found = fault(content[name], inner, f"{place}.{name}" if place else name, lengths)
            if found:
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(content, list):
            return _WORDS[list], place, _came(content)
        if shape[1:] and lengths.setdefault(shape[1], len(content)) != len(content):
            return f"a list of {lengths[shape[1]]}", place, _came(content)
        for index, each in enumerate(content):
            own = dict(lengths)
            found = fault(each, shape[0], f"{place}[{index}]", own)
            if found:
                return found
            lengths.update({axis: size for axis, size in own.items() if axis.isupper()})
        return None
    if shape is None:
        return None if content is None else ("null", place, _came(content))
    if shape is Bits:
        bits = isinstance(content, str) and content != "" and set(content) <= {"0", "1"}
        return None if bits else ("digits 0 and 1", place, _came(content))
    if shape is Share:
        share = _is_number(content) and not (content < 0 or content > 1)
        return None if share else ("a number from 0 to 1", place, _came(content))
    if shape is float:
        return None if _is_number(content) else (_WORDS[float], place, _came(content))
    if isinstance(content, shape) and (shape is bool or not isinstance(content, bool)):
        return None
    return _WORDS[shape], place, _came(content)


def _not_numbers(content: Any, shape: Numbers, place: str, lengths: dict[str, int]) -> tuple[str, str, str] | None:
    axes = shape.axes.split()
    lengths.update({axis: int(axis) for axis in axes if axis.isdigit()})
    bound = ", ".join(f"{axis} = {lengths[axis]}" for axis in axes if axis in lengths and not axis.isdigit())
    expected = f"numbers [{', '.join(axes)}]{f' with {bound}' if bound else ''}"
    sizes = _sizes(content, len(axes), shape.gaps)
    if sizes is None:
        return expected, place, f"something else, {_came(content)}"
    if any(lengths.get(axis, size) != size for axis, size in zip(axes, sizes, strict=True)):
        return expected, place, f"numbers {list(sizes)}"
    lengths.update(zip(axes, sizes, strict=True))
    return None


def _sizes(content: Any, axes: int, gaps: bool) -> tuple[int, ...] | None:
    """Lengths of nested lists of numbers; None if they are of several lengths, or it is something else."""
    if not axes:
        return () if _is_number(content) or (gaps and content is None) else None
    inner = {_sizes(each, axes - 1, gaps) for each in content} if isinstance(content, list) else {None}
    if not inner and axes == 1:
        return (0,)
    return (len(content), *sizes) if len(inner) == 1 and (sizes := inner.pop()) is not None else None


def _is_number(content: Any) -> bool:
    """A number that is a float or can be one."""
    if isinstance(content, float):
        return True
    return isinstance(content, int) and not isinstance(content, bool) and abs(content) <= sys.float_info.max


def _came(content: Any) -> str:
    """What came, in few letters."""
    if isinstance(content, (dict, list)):
        return f"{_WORDS[type(content)]} of {len(content)}"
    text = repr(content)
    return text if len(text) <= 60 else f"{text[:57]}..."
