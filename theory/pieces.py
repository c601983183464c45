"""Finished pieces of a run, one JSON file each, so that a run which was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ntkprefix.hosts import agreed, by_first
from ntkprefix.runs import read_json, write_json


class Pieces:
    """A folder of measurements, each keyed by the settings that it depends on.

    Args:
        folder: made at the first write.
        made_by: names the code that measures, its commit or a digest: pieces of other code are not used.

    Example:
        >>> import tempfile
        >>> from theory.pieces import Pieces
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = Pieces(folder, "1").get("square", {"of": 3}, lambda: {"is": 9})
        ...     again = Pieces(folder, "1").get("square", {"of": 3}, lambda: {"is": "not computed again"})
        >>> again
        {'is': 9}
    """

    def __init__(self, folder: str | Path, made_by: str):
        self.folder, self.made_by = Path(folder), made_by

    def get(self, name: str, settings: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read a piece, or measure and write it.

        Args:
            name: start of the file's name.
            settings: JSON-ready; everything that the measurement depends on.
            measure: returns a JSON-ready mapping.

        Returns:
            What `measure` returned, now or in an earlier run.

        Raises:
            OSError: the file cannot be written or read.
            ValueError: the file is damaged; the message names it.
        """
        settings = json.loads(json.dumps({"made_by": self.made_by, **settings}, sort_keys=True))
        path = self.path(name, settings)
        if not agreed(path.exists):
            measured = measure()
            by_first(lambda: write_json(path, {"settings": settings, "measured": measured}))
        try:
            content, cause = read_json(path), None
        except ValueError as error:
            content, cause = {}, error
        if content.get("settings") != settings or not isinstance(content.get("measured"), dict):
            raise ValueError(
                f"{path}: expected a measurement made with these settings, got a damaged file. Delete this one file: "
                "only what it held is then measured again."
            ) from cause
        return content["measured"]

    def path(self, name: str, settings: Mapping[str, Any]) -> Path:
        """File of a piece: its name and a hash of its settings."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name}-{digest[:12]}.json"
