"""Adapters as files: safetensors for the numbers, JSON for what they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.numpy import save

from ntkprefix import checks
from ntkprefix.adapters.base import Adapter, Stack
from ntkprefix.adapters.registry import ADAPTERS
from ntkprefix.feature_maps import as_json, from_json
from ntkprefix.runs import read_json, write_bytes, write_json
from ntkprefix.safetensors_file import opened

_WEIGHTS, _CONFIG = "adapter.safetensors", "adapter.json"


def save_adapter(folder: str | Path, adapter: Adapter, params: PyTree) -> Path:
    """Write an adapter and its parameters.

    Args:
        folder: made if it is not there; its `adapter.json` and `adapter.safetensors` are replaced.
        adapter: one of `ADAPTERS`, or a `Stack` of them.
        params: its parameters, nested dicts of arrays.

    Returns:
        The folder.

    Raises:
        OSError: it cannot be written.
        TypeError: an adapter of another kind.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import PromptAdapter, load_adapter, save_adapter
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_adapter(folder, PromptAdapter(length=2), {"prompt": jnp.ones((2, 3))})
        ...     adapter, params = load_adapter(folder)
        >>> adapter, params["prompt"].shape
        (PromptAdapter(length=2, deviation=0.02), (2, 3))
    """
    folder = Path(folder)
    content = described(adapter)
    arrays = {name: np.asarray(array) for name, array in _flat(params).items()}
    folder.mkdir(parents=True, exist_ok=True)
    # The numbers first: a configuration without them would look like a whole adapter.
    write_bytes(folder / _WEIGHTS, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    write_json(folder / _CONFIG, content)
    return folder


def load_adapter(folder: str | Path) -> tuple[Adapter, PyTree]:
    """Read what `save_adapter` wrote. Nothing is unpickled.

    Args:
        folder: with `adapter.json` and `adapter.safetensors`.

    Returns:
        The adapter and its parameters.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, not of this kind, or has other arrays than the adapter's: names, shapes that do
            not go together or are empty and huge, integers, numbers that are not finite. The message names it.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix.adapters import PromptAdapter, Stack, TokenAdapter, load_adapter, save_adapter
        >>> tokens = {"keys": jnp.zeros((2, 5, 3, 4)), "values": jnp.zeros((2, 5, 3, 4))}
        >>> both = Stack([PromptAdapter(length=2), TokenAdapter(length=5)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_adapter(folder, both, {"0": {"prompt": jnp.ones((2, 12))}, "1": tokens})
        ...     adapter, params = load_adapter(folder)
        >>> adapter.adapters[0]
        PromptAdapter(length=2, deviation=0.02)
        >>> adapter.adapt(params).prefixes.keys.shape
        (2, 5, 3, 4)
    """
    folder = Path(folder)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: expected an adapter's file, found nothing.")
    content = read_json(folder / _CONFIG, advice="Save the adapter again.")
    try:
        adapter = _made(content)
    except RecursionError as error:
        raise ValueError(f"{folder / _CONFIG}: not the description of an adapter (nested too deep).") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder / _CONFIG}: not the description of an adapter ({error}).") from error
    try:
        with opened(folder / _WEIGHTS) as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / _WEIGHTS}: not a whole safetensors file ({error}).") from error
    try:
        checks.stored_shapes({name: array.shape for name, array in arrays.items()})
        _check(adapter, arrays)
        return adapter, _completed(adapter, _nested({name: jnp.asarray(array) for name, array in arrays.items()}))
    except ValueError as error:
        raise ValueError(f"{folder / _WEIGHTS}: not the parameters of {folder / _CONFIG}: {error}.") from error


def described(adapter: Any) -> dict[str, Any]:
    """What `adapter.json` holds: an adapter's name and all of its options, as JSON has them.

    Raises:
        TypeError: an adapter of another kind.

    Example:
        >>> from ntkprefix.adapters import spelt
        >>> from ntkprefix.adapters.files import described
        >>> described(spelt("prompt:length=2")) == described(spelt("prompt:length=2,deviation=0.02"))
        True
    """
    if isinstance(adapter, Stack):
        return {"adapter": "stack", "parts": [described(part) for part in adapter.adapters]}
    names = {kind: name for name, kind in ADAPTERS.items()}
    if type(adapter) not in names:
        raise TypeError(f"save_adapter: expected one of {', '.join(ADAPTERS)}, got {type(adapter).__name__}.")
    options = {field.name: getattr(adapter, field.name) for field in dataclasses.fields(adapter)}
    if "feature_map" in options:
        options["feature_map"] = as_json(options["feature_map"])
    return {"adapter": names[type(adapter)], "options": options}


def _made(content: dict[str, Any]) -> Any:
    if content["adapter"] == "stack":
        return Stack([_made(part) for part in content["parts"]])
    if content["adapter"] not in ADAPTERS:
        raise ValueError(f"expected one of {', '.join(ADAPTERS)}, got {content['adapter']!r}")
    options = {name: _tuples(value) for name, value in content["options"].items()}
    if "feature_map" in options:
        options["feature_map"] = from_json(options["feature_map"])
    return ADAPTERS[content["adapter"]](**options)


def _check(adapter: Any, arrays: dict[str, np.ndarray]) -> None:
    """That the arrays are this adapter's, as far as it can be told without the model."""
    if isinstance(adapter, Stack):
        parts = [str(index) for index in range(len(adapter.adapters))]
        strange = sorted(name for name in arrays if name.partition(".")[0] not in parts or "." not in name)
        if strange:
            raise ValueError(f"expected the arrays of {len(parts)} adapters, got also {', '.join(strange)}")
        for part, of_part in zip(parts, adapter.adapters, strict=True):
            start = f"{part}."
            _check(of_part, {name[len(start) :]: array for name, array in arrays.items() if name.startswith(start)})
        return
    axes = adapter.axes()
    if axes is None:
        for name, array in arrays.items():
            checks.finite_array(name, array)
    else:
        checks.stored_arrays(type(adapter).__name__, axes, adapter.sizes(), arrays)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flat(params: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(params, dict):
        return {prefix: params}
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat


def _completed(adapter: Any, params: dict[str, Any]) -> dict[str, Any]:
    """With the parts of a stack that have no parameters, which leave nothing in a file."""
    if not isinstance(adapter, Stack):
        return params
    return {str(index): _completed(part, params.get(str(index), {})) for index, part in enumerate(adapter.adapters)}


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"expected one array called {part}, got also {name}")
        if last in place:
            raise ValueError(f"expected one array called {name}, got also arrays within it")
        place[last] = value
    return nested
