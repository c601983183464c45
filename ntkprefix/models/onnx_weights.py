"""Weights out of an ONNX file, under the names they had in PyTorch. The graph is read and never run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import numpy_helper


def read_onnx(path: Path) -> dict[str, np.ndarray]:
    """All weights of an exported PyTorch model.

    The exporter folds transposed and sliced weights into constants called `onnx::MatMul_123`; what they were is told by
    the node that uses them, whose name is the path of its module. A matrix product's constant is given as
    `<module>.weight`, transposed back to [out, in]; another node's as `<module>.<operator>`.

    Args:
        path: one ONNX file with its weights inside.

    Returns:
        Arrays by name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not ONNX, is cut off, or keeps weights in other files; the message names it.

    Example:
        >>> from ntkprefix.models.onnx_weights import read_onnx
        >>> weights = read_onnx(Path("model.onnx"))  # doctest: +SKIP
        >>> weights["encoder.layer.0.attention.attention.query.weight"].shape  # doctest: +SKIP
        (384, 384)
    """
    graph = _parse(path).graph
    stored = {tensor.name: _to_array(tensor, path) for tensor in graph.initializer}
    weights = {name: array for name, array in stored.items() if not _anonymous(name)}
    for name, array in _named_by_use(graph, stored):
        if name in weights:
            raise ValueError(f"{path}: two constants claim the name {name!r}; the export is not one we can read.")
        weights[name] = array
    return weights


def _parse(path: Path) -> Any:
    try:
        # External data are paths out of an untrusted file: they are not followed.
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path}: not a whole ONNX file ({error}). Is the download complete?") from error
    if not model.graph.node:
        raise ValueError(f"{path}: expected an ONNX model, found no graph in it. Is the download complete?")
    names = [tensor.name for tensor in model.graph.initializer]
    names += [name for node in model.graph.node for name in (node.name, *node.input)]
    if not all(isinstance(name, str) for name in names):  # the parser leaves what is no UTF-8 as it is
        raise ValueError(f"{path}: not a whole ONNX file (a name is no text). Is the download complete?")
    return model


def _to_array(tensor: Any, path: Path) -> np.ndarray:
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ValueError(
            f"{path}: the weight {tensor.name!r} lies in another file. Save the model as one file first: "
            "onnx.save(onnx.load(path), new_path)."
        )
    try:
        return numpy_helper.to_array(tensor)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: the weight {tensor.name!r} cannot be read ({error}).") from error


def _anonymous(name: str) -> bool:
    return name.startswith("onnx::")


def _named_by_use(graph: Any, stored: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for node in graph.node:
        module = ".".join(node.name.split("/")[1:-1])
        for name in node.input:
            if name in stored and _anonymous(name):
                is_product = node.op_type == "MatMul" and stored[name].ndim == 2
                yield (f"{module}.weight", stored[name].T) if is_product else (f"{module}.{node.op_type}", stored[name])
