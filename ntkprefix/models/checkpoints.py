"""From a file's tensors to a model's parameters: the part of loading that all architectures share."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

M = TypeVar("M", bound=nnx.Module)

_LISTED = 10
# So many can be spelt out in a message about what is missing.
_FEW_LAYERS = 1000


class Part(NamedTuple):
    """Rows of a tensor that holds several parameters: `start` to `stop` of `whole`."""

    start: int
    stop: int
    whole: int


class Source(NamedTuple):
    """Where a parameter lies in a file.

    Attributes:
        name: the tensor's; `{layer}` in it stands for 0, 1, ..., whose tensors are stacked.
        axes: the file's axes in the parameter's order; None if they agree.
        part: which entries of the parameter's last axis in the file's tensor are its own; None for all.
    """

    name: str
    axes: tuple[int, ...] | None = None
    part: Part | None = None

    @property
    def part_axis(self) -> int:
        """The file's axis that `part` cuts."""
        return -1 if self.axes is None else self.axes[-1]


NameMap = Mapping[str, Source]


def linear(
    ours: str, theirs: str, *, bias: bool = True, part: Part | None = None, transposed: bool = True
) -> dict[str, Source]:
    """The parameters of a linear layer; PyTorch stores [out, in], or not `transposed`, [in, out] (GPT-2)."""
    names = {f"{ours}.kernel": Source(f"{theirs}.weight", (1, 0) if transposed else None, part)}
    return names | ({f"{ours}.bias": Source(f"{theirs}.bias", None, part)} if bias else {})


def parts(*sizes: int) -> list[Part]:
    """One after another in one tensor.

    Example:
        >>> from ntkprefix.models.checkpoints import parts
        >>> parts(6, 2)
        [Part(start=0, stop=6, whole=8), Part(start=6, stop=8, whole=8)]
    """
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [Part(end - size, end, sum(sizes)) for size, end in zip(sizes, ends, strict=True)]


def norm(ours: str, theirs: str, *, bias: bool = True) -> dict[str, Source]:
    """The parameters of a norm."""
    names = {f"{ours}.scale": Source(f"{theirs}.weight")}
    return names | ({f"{ours}.bias": Source(f"{theirs}.bias")} if bias else {})


def below(tensors: Mapping[str, np.ndarray], roots: Collection[str], anchor: str) -> dict[str, np.ndarray]:
    """The tensors under the root that holds the tensor `anchor`, without the root in their names.

    Checkpoints put the same model under different roots (`""`, `"dinov2."`), beside tensors of other parts.
    """
    root = next((root for root in roots if root + anchor in tensors), "")
    return {name.removeprefix(root): tensor for name, tensor in tensors.items() if name.startswith(root)}


def fill(
    make: Callable[[], M],
    names: NameMap,
    tensors: Mapping[str, np.ndarray],
    *,
    file: Path,
    ignored: Collection[str] = (),
    put: Callable[[str, np.ndarray], Array] = lambda _, array: jnp.asarray(array),
) -> M:
    """Build a model whose parameters come from a file, each of them or none.

    Args:
        make: builds the model; it is traced for its shapes and nothing is initialised.
        names: for each parameter, by its dotted path in the model, the tensor it comes from.
        tensors: the file's, by name.
        file: for messages.
        ignored: regular expressions for whole names of tensors that the model does without.
        put: a parameter's path and its numbers to where they belong; the usual device if not given.

    Returns:
        The model, with parameters of the types that it was made with.

    Raises:
        ValueError: tensors are missing, of another shape, not floating point or unknown; the message lists them.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from flax import nnx
        >>> from ntkprefix.models.checkpoints import fill, linear
        >>> tensors = {"head.weight": np.ones((3, 2), np.float32), "head.bias": np.zeros(3, np.float32)}
        >>> layer = fill(lambda: nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0))), linear("layers.0", "head"),
        ...              tensors, file=Path("demo"))
        >>> layer.layers[0].kernel.shape
        (2, 3)
    """
    graph, state = nnx.split(nnx.eval_shape(make))
    parameters = {".".join(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(state)}
    _check_layers({ours: leaf.shape for ours, (_, leaf) in parameters.items()}, names, tensors, file)
    wanted = {ours: _wanted(names[ours], leaf.shape) for ours, (_, leaf) in parameters.items()}
    shapes = {name: shape for needed in wanted.values() for name, shape in needed.items()}
    _check(tensors, shapes, ignored, file)
    filled = []
    for ours, (path, leaf) in parameters.items():
        arrays = [_parameter(tensors[name], names[ours]).astype(leaf.dtype) for name in wanted[ours]]
        array = np.stack(arrays) if _stacked(names[ours]) else arrays[0]
        filled.append((path, leaf.replace(put(ours, array))))
    return nnx.merge(graph, nnx.from_flat_state(filled))


def _parameter(tensor: np.ndarray, source: Source) -> np.ndarray:
    if source.part is not None:
        own = [slice(None)] * tensor.ndim
        own[source.part_axis] = slice(source.part.start, source.part.stop)
        tensor = tensor[tuple(own)]
    return tensor if source.axes is None else tensor.transpose(source.axes)


def _stacked(source: Source) -> bool:
    return "{layer}" in source.name


def _wanted(source: Source, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors that make up one parameter, in order, with the shapes they have in the file."""
    names = [source.name]
    if _stacked(source):
        layers, *rest = shape
        shape = tuple(rest)
        names = [source.name.format(layer=layer) for layer in range(layers)]
    axes = source.axes or range(len(shape))
    theirs = [size for _, size in sorted(zip(axes, shape, strict=True))]
    if source.part is not None:
        theirs[source.part_axis] = source.part.whole
    return dict.fromkeys(names, tuple(theirs))


def _check_layers(
    shapes: Mapping[str, tuple[int, ...]], names: NameMap, tensors: Mapping[str, Any], file: Path
) -> None:
    """Every layer has tensors of its own, so a claim of far more layers is refused before it is spelt out."""
    layers = max((shape[0] for ours, shape in shapes.items() if _stacked(names[ours])), default=0)
    if layers > max(len(tensors), _FEW_LAYERS):
        raise ValueError(
            f"{file}: expected tensors for {layers:,} layers, found {len(tensors):,} tensors in all. Is it a "
            "checkpoint of this architecture and size?"
        )


def _check(tensors: Mapping[str, Any], shapes: Mapping[str, Any], ignored: Collection[str], file: Path) -> None:
    problems = _listed("missing", [f"{name} {list(shapes[name])}" for name in shapes if name not in tensors])
    found = {name: tensors[name] for name in shapes if name in tensors}
    wrong = [
        f"{name}: expected {list(shapes[name])}, found {list(tensor.shape)}"
        for name, tensor in found.items()
        if tensor.shape != shapes[name]
    ]
    problems += _listed("of another shape", wrong)
    # jnp knows bfloat16 as a floating type, NumPy does not.
    integers = [f"{name}: {t.dtype}" for name, t in found.items() if not jnp.issubdtype(t.dtype, jnp.floating)]
    problems += _listed("not floating point", integers)
    problems += _listed("unknown", [name for name in tensors if name not in shapes and not _any(ignored, name)])
    if problems:
        raise ValueError(
            f"{file}: the tensors are not those of this model. Is it a checkpoint of this architecture and size?\n"
            + "\n".join(problems)
        )


def _any(patterns: Collection[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _listed(kind: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - _LISTED} more"] if len(entries) > _LISTED else []
    return [f"{len(entries)} {kind}:", *(f"  {entry}" for entry in entries[:_LISTED]), *more]
