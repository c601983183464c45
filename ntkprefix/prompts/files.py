"""A compressed prompt as one safetensors file: its arrays, and as JSON in the header what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ntkprefix import checks
from ntkprefix.prefixes import MeasurePrefix, TokenPrefix
from ntkprefix.runs import write_bytes

_FORMAT = "ntkprefix prompt 1"
_KINDS: dict[str, Any] = {"tokens": TokenPrefix, "measure": MeasurePrefix}
_AXES = {
    "tokens": {"keys": "L C K H", "values": "L C K Hv", "log_weights": "L C K"},
    "measure": {
        "log_weight": "L C K",
        "mean": "L C K H",
        "factor": "L C K H rank",
        "value": "L C K Hv",
        "cross": "L C K Hv rank",
    },
}
_OPTIONAL = ("log_weights",)


class StoredPrompt(NamedTuple):
    """What a file holds.

    Attributes:
        prefixes: of every layer, for a model's `prefixes=`.
        start: position of what comes after them.
        notes: what was written beside them: where they came from.
    """

    prefixes: TokenPrefix | MeasurePrefix
    start: int
    notes: dict[str, Any]


def save_prompt(path: str | Path, prefixes: Any, start: int, notes: dict[str, Any] | None = None) -> Path:
    """Write a compressed prompt.

    Args:
        path: of the file, which is replaced whole or not at all.
        prefixes: tokens or clouds of every layer, with a leading `layers` axis.
        start: position of what comes after them.
        notes: whatever else should be known, ready for JSON.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written.
        TypeError: prefixes of another kind, a start that is not an integer.
        ValueError: a start below 0, notes with NaN.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import load_prompt, save_prompt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_prompt(f"{folder}/manual.safetensors", TokenPrefix(*jnp.ones((2, 3, 5, 1, 4))), start=100)
        ...     stored = load_prompt(path)
        >>> stored.prefixes.keys.shape, stored.start
        ((3, 5, 1, 4), 100)
    """
    kind = next((name for name, made in _KINDS.items() if type(prefixes) is made), None)
    if kind is None:
        raise TypeError(
            f"save_prompt: expected a TokenPrefix or a MeasurePrefix of every layer, got {type(prefixes).__name__}. "
            "States of features can be made again from the prompt in one pass."
        )
    checks.at_least(0, "save_prompt", start=start)
    present = {name: getattr(prefixes, name) for name in _AXES[kind] if getattr(prefixes, name) is not None}
    arrays = {name: np.ascontiguousarray(np.asarray(array, np.float32)) for name, array in present.items()}
    header = {"kind": kind, "start": int(start), "notes": notes or {}}
    metadata = {"format": _FORMAT, "prompt": json.dumps(header, allow_nan=False)}
    path = Path(path)
    write_bytes(path, save(arrays, metadata))
    return path


def load_prompt(path: str | Path) -> StoredPrompt:
    """Read a compressed prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or damaged: other arrays than its kind has, sizes that do not fit each other,
            numbers that are not finite (but log-weights of minus infinity). The message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a compressed prompt here, found no file.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return _checked(metadata, arrays)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: expected a compressed prompt, but {error}. Make it again.") from error


def _checked(metadata: dict[str, str], arrays: dict[str, np.ndarray]) -> StoredPrompt:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r} in place of {_FORMAT!r}")
    header = json.loads(metadata["prompt"])
    if not isinstance(header, dict) or header.get("kind") not in _KINDS:
        raise ValueError(f"its header names no kind among {', '.join(_KINDS)}")
    kind, start, notes = header["kind"], header.get("start"), header.get("notes", {})
    if type(start) is not int or not 0 <= start < 2**31 or not isinstance(notes, dict):
        raise ValueError(f"its header has the start {start!r}")
    axes = {name: letters for name, letters in _AXES[kind].items() if name in arrays or name not in _OPTIONAL}
    # An empty cluster weighs nothing: its logarithm is minus infinity.
    weights = {"tokens": "log_weights", "measure": "log_weight"}[kind]
    finite = {
        name: np.where(np.isneginf(array), np.float32(0), array) if name == weights else array
        for name, array in arrays.items()
    }
    checks.stored_arrays(kind, axes, {}, finite)
    return StoredPrompt(_KINDS[kind](**{name: jnp.asarray(array) for name, array in arrays.items()}), start, notes)
