"""Reading a checkpoint's configuration, which may claim anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ntkprefix.models.safetensors_folder import read_object

# Of a size or count: far above any model's, while no product of two of them overflows.
_LARGEST = 1_000_000


T = TypeVar("T")


def read_settings(path: Path, make: Callable[[Settings], T]) -> T:
    """What `make` makes of a configuration file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, or not a configuration that `make` takes; the message names it.
    """
    return make_from(Settings(read_object(path), path), make)


def make_from(settings: Settings, make: Callable[[Settings], T]) -> T:
    """What `make` makes of a configuration.

    Raises:
        ValueError: it is not one that `make` takes; the message names its file.
    """
    try:
        return make(settings)
    except (ValueError, OverflowError) as error:
        if str(settings.path) in str(error):
            raise
        # From the sizes' own checks, which know of no file.
        raise ValueError(f"{settings.path}: not the configuration of a model that is supported ({error}).") from error


class Settings:
    """The keys of a configuration, each checked when it is asked for.

    Attributes:
        content: the configuration.
        path: its file, for messages.

    Example:
        >>> from pathlib import Path
        >>> from ntkprefix.models.families.settings import Settings
        >>> Settings({"n_head": 12}, Path("config.json")).count("num_attention_heads", "n_head")
        12
    """

    def __init__(self, content: Mapping[str, Any], path: Path):
        self.content, self.path = content, path

    def count(self, *names: str, default: int | None = None) -> int:
        """A size or count, under the first of these names that is there.

        Raises:
            ValueError: none is there, or it is not a positive integer.
        """
        name, value = self._find(names, default)
        if type(value) is not int or not 0 < value <= _LARGEST:
            raise ValueError(f"{self.path}: expected {name} to be an integer from 1 to {_LARGEST:,}, got {value!r}.")
        return value

    def side(self, name: str) -> int:
        """The side of a square, given as a number or as two.

        Raises:
            ValueError: it is not there, or not square.
        """
        value = self._find((name,), None)[1]
        sides = value if isinstance(value, list) else [value]
        if len(sides) not in (1, 2) or any(side != sides[0] for side in sides):
            raise ValueError(f"{self.path}: expected {name} to be that of a square, got {value!r}.")
        return Settings({name: sides[0]}, self.path).count(name)

    def number(self, *names: str, default: float | None = None) -> float:
        """A finite number above 0.

        Raises:
            ValueError: none is there, or it is none.
        """
        name, value = self._find(names, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{self.path}: expected {name} to be a finite number above 0, got {value!r}.")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        """True or false.

        Raises:
            ValueError: something else.
        """
        name, value = self._find(names, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.path}: expected {name} to be true or false, got {value!r}.")
        return value

    def choice(self, *names: str, known: Mapping[str, Any], default: str | None = None) -> Any:
        """What one of the known words stands for.

        Raises:
            ValueError: another word.
        """
        name, value = self._find(names, default)
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{self.path}: expected {name} to be one of {', '.join(known)}, got {value!r}.")
        return known[value]

    def section(self, *names: str) -> Settings:
        """The keys within the first of these names that is there and not empty; none if none is.

        Raises:
            ValueError: it is no object of keys.
        """
        for name in names:
            value = self.content.get(name)
            if value and not isinstance(value, dict):
                raise ValueError(f"{self.path}: expected {name} to be an object, got {value!r}.")
            if value:
                return Settings(value, self.path)
        return Settings({}, self.path)

    def fixed(self, **values: Any) -> None:
        """Keys that may only have these values, or be absent.

        Raises:
            ValueError: one has another.
        """
        for name, value in values.items():
            if self.content.get(name, value) != value:
                raise ValueError(
                    f"{self.path}: expected {name} = {value!r}, got {self.content[name]!r}: another is not supported."
                )

    def _find(self, names: tuple[str, ...], default: Any) -> tuple[str, Any]:
        for name in names:
            if self.content.get(name) is not None:
                return name, self.content[name]
        if default is None:
            raise ValueError(f"{self.path}: expected the key {names[0]!r}, found none.")
        return names[0], default
