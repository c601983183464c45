"""A compressed prompt as one safetensors file: its arrays, and as JSON in the header what they are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from ntkprefix import checks
from ntkprefix.feature_maps import as_json, from_json
from ntkprefix.prefixes import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix
from ntkprefix.prompts.precision import Dtype, integers, keeps_first, only_tokens
from ntkprefix.prompts.quantized import Quantized, dequantize, quantize
from ntkprefix.prompts.ragged import flat, padded, starts_of
from ntkprefix.runs import write_bytes
from ntkprefix.safetensors_file import opened

_FORMAT = "ntkprefix prompt 2"
_KINDS: dict[str, Any] = {"tokens": TokenPrefix, "measure": MeasurePrefix, "features": FeaturePrefix}
# Tokens some of which weigh nothing: those are left out, so that heads have as many as they have.
_RAGGED = "ragged tokens"
_AXES_OF_RAGGED = {"keys": "S H", "values": "S Hv", "log_weights": "S"}
# Beside the integers of an array in 8 bits or 4, behind its name: scales, and lows.
_MORE = Quantized._fields[1:]
_INTEGERS: dict[Any, tuple[str, ...]] = {np.int8: _MORE[:1], np.uint8: _MORE}
# Behind the name of an array in 4 bits: the first tokens of its heads, in 16.
_FIRST = " first"
_OPTIONAL = ("log_weights", "log_scale", "centre")
# Those whose entries may be minus infinity, as an empty cluster's is.
_LOG_WEIGHTS = ("log_weights", "log_weight", "log_scale")
# Types of keys and values in a file, narrow ones first: a file of several parts has one.
_IN_FILE: tuple[tuple[Dtype, str], ...] = (("int4", "uint8"), ("int8", "int8"), ("float16", "float16"))
# Axes of one size in all parts of a prefix. A state may be one of the N query heads, so that its axis A need not be K.
_SHARED = ("L", "K", "H", "Hv")


class StoredPrompt(NamedTuple):
    """What a file holds.

    Attributes:
        prefixes: of every layer, for a model's `prefixes=`.
        start: position of what comes after them.
        notes: what was written beside them: where they came from.
        dtype: of the numbers in the file: `packed(prefixes, dtype)` keeps tokens so in memory too.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import load_prompt, save_prompt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokens = TokenPrefix(*jnp.ones((2, 3, 5, 1, 4)))
        ...     path = save_prompt(f"{folder}/manual.safetensors", tokens, start=100, notes={"edition": 2})
        ...     stored = load_prompt(path)
        >>> stored.start, stored.notes
        (100, {'edition': 2})
    """

    prefixes: Any
    start: int
    notes: dict[str, Any]
    dtype: Dtype = "float32"


def save_prompt(
    path: str | Path,
    prefixes: Any,
    start: int,
    notes: dict[str, Any] | None = None,
    *,
    dtype: Dtype = "float32",
) -> Path:
    """Write a compressed prompt.

    Args:
        path: of the file, which is replaced whole or not at all.
        prefixes: tokens, clouds, a state or several of them joined, of every layer, with a leading `layers` axis.
        start: position of what comes after them.
        notes: whatever else should be known, ready for JSON.
        dtype: of the numbers in the file, whatever they have in memory; logarithms are float32 in all. Float16 takes
            half the bytes and rounds each number by at most 2^-11 of it: finer than the 2^-9 of bfloat16, in which many
            models keep their keys and values, but, unlike that, it ends at 65,504. Int8 takes a quarter and int4
            a seventh, for tokens: every key and value has a scale of its own (`ntkprefix.prompts.quantized`). In int8
            each of its numbers is off by at most a 253rd of its largest, or 6e-8. In int4 the first token of every head
            is stored in float16 as well, and read from there.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written.
        TypeError: prefixes of another kind, anything but tokens in int8 or int4, a state of another feature map than
            this library's, a start that is not an integer.
        ValueError: a start below 0, notes with NaN, arrays that do not fit each other or have an axis of rows, another
            dtype, numbers beyond its range, or an odd number of channels in int4.

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
    checks.at_least(0, "save_prompt", start=start)
    checks.one_of("save_prompt", "dtype", dtype, get_args(Dtype))
    parts = prefixes.parts if isinstance(prefixes, JoinedPrefix) else (prefixes,)
    described: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for index, part in enumerate(parts):
        kind = next((name for name, made in _KINDS.items() if type(part) is made), None)
        if kind is None:
            raise TypeError(
                "save_prompt: expected tokens, clouds or states of features of every layer, or some of them joined, "
                f"got {type(part).__name__}."
            )
        about: dict[str, Any] = {"kind": kind}
        if kind == "features":
            about |= {"feature_map": as_json(part.feature_map), "scale": part.scale}
        if integers(dtype):
            only_tokens("save_prompt", part, dtype)
        found = {name: getattr(part, name) for name in part.axes if getattr(part, name) is not None}
        found = {name: np.ascontiguousarray(np.asarray(array, np.float32)) for name, array in found.items()}
        if kind == "tokens" and part.keys.ndim == 4 and np.isneginf(found.get("log_weights", 0)).any():
            about["kind"], found = _RAGGED, flat(part)
        described.append(about)
        for name, array in found.items():
            arrays |= {f"{index}.{name}{more}": each for more, each in _stored(name, array, dtype).items()}
        if keeps_first(dtype) and part.keys.shape[1]:
            arrays |= {f"{index}.{name}{_FIRST}": _narrow(each, "float16") for name, each in _firsts(found).items()}
    header = {"parts": described, "start": int(start), "notes": notes or {}}
    metadata = {"format": _FORMAT, "prompt": json.dumps(header, allow_nan=False)}
    try:
        _checked(metadata, {name: _read(array) for name, array in arrays.items()})
    except ValueError as error:
        wider = " Or take float32, which reaches further." if dtype != "float32" else ""
        raise ValueError(f"save_prompt: expected arrays of every layer, but {error}.{wider}") from error
    path = Path(path)
    write_bytes(path, save(arrays, metadata))
    return path


def _stored(name: str, array: np.ndarray, dtype: Dtype) -> dict[str, np.ndarray]:
    """An array as it lies in the file, and, under what is added to its name, what stands beside its integers."""
    if array.dtype != np.float32 or name in _LOG_WEIGHTS:
        return {"": array}
    if bits := integers(dtype):
        numbers, *beside = (np.asarray(each) for each in quantize(jnp.asarray(array), bits) if each is not None)
        return {"": numbers} | {f" {more}": each for more, each in zip(_MORE, beside, strict=False)}
    return {"": _narrow(array, dtype)}


def _narrow(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large is infinite, and refused as that
        return array.astype(dtype)


def _firsts(tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Key and value of every head's first token, [L, K, ...]."""
    arrays, counts = {name: tokens[name] for name in ("keys", "values")}, tokens.get("counts")
    return {name: array[:, 0] if counts is None else array[starts_of(counts)] for name, array in arrays.items()}


def load_prompt(path: str | Path) -> StoredPrompt:
    """Read a compressed prompt.

    Args:
        path: of a file that `save_prompt` wrote.

    Returns:
        Its prefixes, in float32, and what was written beside them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or damaged: other arrays than its kind has, sizes that do not fit each other,
            numbers that are not finite (but log-weights of minus infinity). The message names it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.prompts import load_prompt, save_prompt
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "manual.safetensors"
        ...     _ = save_prompt(path, TokenPrefix(*jnp.full((2, 3, 5, 1, 4), 0.1)), start=100, dtype="float16")
        ...     _ = path.write_bytes(path.read_bytes()[:-1])
        ...     load_prompt(path)
        Traceback (most recent call last):
        ValueError: .../manual.safetensors: expected a compressed prompt, but ... Make it again.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of a compressed prompt here, found none. Is the path right?")
    try:
        with opened(path) as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        checks.stored_shapes({name: array.shape for name, array in found.items()})
        types = {str(array.dtype) for name, array in found.items() if name.endswith((".keys", ".values"))}
        stored = _checked(metadata, {name: _read(array) for name, array in found.items()})
        return stored._replace(dtype=next((dtype for dtype, name in _IN_FILE if name in types), "float32"))
    except (SafetensorError, AttributeError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path}: expected a compressed prompt, but {error}. Make it again.") from error


def _read(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _checked(metadata: dict[str, str], arrays: dict[str, np.ndarray]) -> StoredPrompt:
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r} in place of {_FORMAT!r}")
    header = json.loads(metadata["prompt"])
    described = header.get("parts") if isinstance(header, dict) else None
    if not isinstance(described, list) or not described:
        raise ValueError("its header has no list of parts")
    start, notes = header.get("start"), header.get("notes", {})
    if type(start) is not int or not 0 <= start < 2**31 or not isinstance(notes, dict):
        raise ValueError(f"its header has the start {start!r}")
    of_parts: list[dict[str, np.ndarray]] = [{} for _ in described]
    for name, array in arrays.items():
        index, _, rest = name.partition(".")
        if not index.isdecimal() or int(index) >= len(described):
            raise ValueError(f"it has an array {name!r} of no part")
        of_parts[int(index)][rest] = array
    sizes: dict[str, int] = {}
    made = [_part(*each, sizes) for each in zip(described, of_parts, strict=True)]
    return StoredPrompt(made[0] if len(made) == 1 else JoinedPrefix(tuple(made)), start, notes)


def _part(about: Any, arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> Any:
    """One part, whose axes agree with those that are known; the others are known then."""
    kinds = (*_KINDS, _RAGGED)
    if not isinstance(about, dict) or about.get("kind") not in kinds:
        raise ValueError(f"its header names a part that is none of {', '.join(kinds)}")
    kind = about["kind"]
    in_four = {name for name, array in arrays.items() if array.dtype == np.uint8 and f"{name}{_FIRST}" in arrays}
    firsts = {name: arrays.pop(f"{name}{_FIRST}") for name in in_four}
    arrays = _widened(arrays)
    if kind == _RAGGED:
        return _with_firsts(_ragged(arrays, sizes), firsts)
    axes = {
        name: f"L {letters}" for name, letters in _KINDS[kind].axes.items() if name in arrays or name not in _OPTIONAL
    }
    checks.stored_arrays(kind, axes, sizes, _finite(arrays))
    for name, letters in axes.items():
        found = dict(zip(letters.split(), arrays[name].shape, strict=True))
        sizes |= {letter: size for letter, size in found.items() if letter in _SHARED}
    fields: dict[str, Any] = {name: jnp.asarray(array) for name, array in arrays.items()}
    if kind == "features":
        fields |= {"feature_map": from_json(about["feature_map"]), "scale": _scale(about.get("scale"))}
    return _with_firsts(_KINDS[kind](**fields), firsts)


def _with_firsts(prefix: Any, firsts: dict[str, np.ndarray]) -> Any:
    """Tokens whose heads' first ones are these, where there are some."""
    if not firsts:
        return prefix
    layers, tokens, heads, _ = prefix.keys.shape
    sizes = {"L": layers, "K": heads, "H": prefix.keys.shape[-1], "Hv": prefix.values.shape[-1]}
    checks.stored_arrays("first tokens", {"keys": "L K H", "values": "L K Hv"}, sizes, firsts)
    if not tokens:
        raise ValueError("it has first tokens of none")
    return dataclasses.replace(
        prefix, **{name: getattr(prefix, name).at[:, 0].set(jnp.asarray(array)) for name, array in firsts.items()}
    )


def _widened(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keys and values of small integers times their scales, and all else as it is."""
    arrays = dict(arrays)
    for name in [name for name in ("keys", "values") if name in arrays and arrays[name].dtype.type in _INTEGERS]:
        numbers, beside = arrays[name], []
        for more in _INTEGERS[numbers.dtype.type]:
            each = arrays.pop(f"{name} {more}", None)
            if not numbers.ndim or each is None or each.dtype != np.float32 or each.shape != numbers.shape[:-1]:
                raise ValueError(f"it has no {more} for each row of {name!r}")
            if not np.isfinite(each).all():
                raise ValueError(f"expected finite numbers as {more} of {name}")
            beside.append(jnp.asarray(each, jnp.float16))
        arrays[name] = np.asarray(dequantize(Quantized(jnp.asarray(numbers), *beside)))
    return arrays


def _ragged(arrays: dict[str, np.ndarray], sizes: dict[str, int]) -> TokenPrefix:
    counts = arrays.pop("counts", None)
    if counts is None or counts.ndim != 2 or counts.dtype != np.int32:
        raise ValueError("it has no counts of its tokens for each layer and head")
    axes = {name: letters for name, letters in _AXES_OF_RAGGED.items() if name in arrays or name not in _OPTIONAL}
    sizes.setdefault("L", counts.shape[0])
    sizes.setdefault("K", counts.shape[1])
    checks.stored_arrays(_RAGGED, axes, {"S": int(counts.sum(dtype=np.int64))} | sizes, _finite(arrays))
    if counts.shape != (sizes["L"], sizes["K"]):
        raise ValueError(f"expected counts of {sizes['L']} layers and {sizes['K']} heads, got {list(counts.shape)}")
    sizes |= {"H": arrays["keys"].shape[1], "Hv": arrays["values"].shape[1]}
    return padded(counts, **arrays)


def _finite(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same without the minus infinities that may be."""
    return {
        name: np.where(np.isneginf(array), np.float32(0), array)
        if name in _LOG_WEIGHTS and array.dtype == np.float32
        else array
        for name, array in arrays.items()
    }


def _scale(scale: Any) -> float | None:
    if scale is not None and not (isinstance(scale, float) and 0 < scale < math.inf):
        raise ValueError(f"its header has the scale {scale!r}")
    return scale
