"""A command's options as they are given: from a file, and in the ways that their parser would quietly pass over."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ntkprefix.runs import read_json


def checked_options(options: Sequence[str], config: type) -> list[str]:
    """What the parser is given: with what is in the file of `--config FILE`, and lists of one value or more, each once.

    What is in the file is spelt out in front, so that the command line's own, which is last, wins.

    Args:
        options: of a command.
        config: the dataclass of its settings.

    Returns:
        Options without `--config`.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a device or a pipe.
        ValueError: no file is named, or several are, or it is no JSON object of texts, numbers, flags and lists of
            them by the names of settings; or a list without values or given twice, or an empty path.

    Example:
        >>> from ntkprefix.commands.plan import Config
        >>> from ntkprefix.given_options import checked_options
        >>> checked_options(["--meshes", "data=2", "--meshes", "data=4"], Config)
        Traceback (most recent call last):
        ValueError: --meshes: expected it once, got it 2 times. Give all values behind one.
    """
    _check_repeats(options, config)
    options = _with_file(options, config)
    _check_lists(options, config)
    _check_paths(options, config)
    return options


def _with_file(options: Sequence[str], config: type) -> list[str]:
    options = [part for option in options for part in _apart(option)]
    if "--config" not in options:
        return options
    place = options.index("--config")
    if place + 1 == len(options):
        raise ValueError("--config: expected a file, got nothing. Give a JSON object of settings, or leave it out.")
    path, rest = options[place + 1], [*options[:place], *options[place + 2 :]]
    if "--config" in rest:
        raise ValueError("--config: expected one file, got several. Put their settings into one.")
    settings = read_json(path, advice="Mend it.")
    known = [field.name for field in dataclasses.fields(config)]
    names = [name.replace("-", "_") for name in settings]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ValueError(f"{path}: expected {twice} once, got it twice, with - and with _. Leave one out.")
    for name in settings:
        if name.replace("-", "_") not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{path}: expected settings of this command, got {name!r}.{hint}")
    spelt, kinds = spelt_out(settings, path), get_type_hints(config)
    for name, value in settings.items():
        _check_kind(path, name, value, kinds[name.replace("-", "_")])
    return [*spelt, *rest]


def spelt_out(settings: Mapping[str, Any], source: str) -> list[str]:
    """Settings as a command's options.

    Args:
        settings: texts, numbers, flags and lists of them by their names; what is None is left out.
        source: named in messages.

    Raises:
        ValueError: a setting of another kind, a number that is not finite, or a text in a list that reads as an option.

    Example:
        >>> from ntkprefix.given_options import spelt_out
        >>> spelt_out({"batch_size": 8, "remat": True, "meshes": ["data=2", "data=4"]}, "here")
        ['--batch-size', '8', '--remat', '--meshes', 'data=2', 'data=4']
    """
    spelt: list[str] = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"{source}: expected a finite number as {name}, got {each}.")
            if isinstance(each, str) and each.startswith("-") and isinstance(value, list):
                raise ValueError(f"{source}: expected texts that do not begin with a dash as {name}, got {each!r}.")
        if isinstance(value, bool):
            spelt.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, str) and value.startswith("-"):
            spelt.append(f"{flag}={value}")  # else it would be an option
        elif isinstance(value, str | int | float):
            spelt += [flag, str(value)]
        elif isinstance(value, list) and all(isinstance(each, str | int | float) for each in value):
            spelt += [flag, *map(str, value)]
        elif value is not None:
            raise ValueError(f"{source}: expected a text, a number, a flag or a list of them as {name}, got {value!r}.")
    return spelt


def _check_repeats(options: Sequence[str], config: type) -> None:
    """That no list is given twice, of which the last would quietly be all there is."""
    kinds = get_type_hints(config)
    given = [option.partition("=")[0] for option in options if option.startswith("--")]
    settings = [_setting(option) for option in given]
    for option, setting in zip(given, settings, strict=True):
        if get_origin(kinds.get(setting)) is tuple and settings.count(setting) > 1:
            raise ValueError(
                f"{option}: expected it once, got it {settings.count(setting)} times. Give all values behind one."
            )


def _check_lists(options: Sequence[str], config: type) -> None:
    """That no list is empty, which would quietly be the default: a shell's variable that is not set, perhaps."""
    kinds = get_type_hints(config)
    for option, value in itertools.pairwise([*options, "--"]):
        if get_origin(kinds.get(_setting(option))) is tuple and value.startswith("--"):
            raise ValueError(f"{option}: expected at least one value, got none. Give some, or leave the option out.")


def _check_paths(options: Sequence[str], config: type) -> None:
    """That no path is empty, which would quietly be the folder that the shell is in: another such variable."""
    kinds = get_type_hints(config)
    option, left = "", 0.0  # and how many of the next words are its values
    for word in options:
        value = word
        if word.startswith("--"):
            option, within, value = word.partition("=")
            kind = kinds.get(_setting(option))
            left = math.inf if get_origin(kind) is tuple else 0 if within or kind is bool else 1
            if not within:
                continue
        elif left:
            left -= 1
        else:
            option = ""  # its place says what it is, and only paths have one
        kind = kinds.get(_setting(option)) if option else Path
        if value == "" and Path in (kind, *get_args(kind)):
            where = f"{option}: " if option else ""
            raise ValueError(f"{where}expected a path, got an empty text. Give one, or leave it out.")


def _check_kind(path: str, name: str, value: Any, kind: Any) -> None:
    """That a file's setting is what its option takes, as far as numbers, flags and choices go."""
    several = get_origin(kind) is tuple
    if value is None:
        return
    if isinstance(value, list) and not several:
        raise ValueError(f"{path}: expected one value as {name}, got {value!r}.")
    if value == []:
        raise ValueError(f"{path}: expected at least one value as {name}, got none. Give some, or leave it out.")
    kind = get_args(kind)[0] if several else kind
    for each in value if isinstance(value, list) else [value]:
        if each == "" and Path in (kind, *get_args(kind)):
            raise ValueError(f"{path}: expected a path as {name}, got an empty text. Give one, or leave it out.")
        if isinstance(each, bool) != (kind is bool):
            wanted = "true or false" if kind is bool else "a value that is no flag"
            raise ValueError(f"{path}: expected {wanted} as {name}, got {json.dumps(each)}.")
        if get_origin(kind) is Literal and each not in get_args(kind):
            wanted = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"{path}: expected one of {wanted} as {name}, got {json.dumps(each)}.")
        try:
            if kind in (int, float):
                kind(str(each))
        except ValueError as error:
            number = "a whole number" if kind is int else "a number"
            raise ValueError(f"{path}: expected {number} as {name}, got {json.dumps(each)}.") from error


def _setting(option: str) -> str:
    return option.removeprefix("--").replace("-", "_") if option.startswith("--") else ""


def _apart(option: str) -> list[str]:
    return option.split("=", 1) if option.startswith("--config=") else [option]
