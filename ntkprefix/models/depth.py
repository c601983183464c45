"""Running a stack of equal blocks with `jax.lax.scan`, with a prefix for each.

The weights of all blocks lie in one array per parameter, with a leading `layers` axis, so the program that XLA
compiles holds one block however deep the model is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from ntkprefix.faults import faulty_rows, noting


@runtime_checkable
class Layered(Protocol):
    """Prefixes of all layers that know how to read a layer's own, where arrays with a `layers` axis would be larger.

    Example:
        >>> import jax
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models.depth import Layered
        >>> @jax.tree_util.register_static
        ... class Same:
        ...     layers = 12
        ...
        ...     def layer(self, index):
        ...         return TokenPrefix(*jax.numpy.ones((2, 5, 3, 4)))
        >>> isinstance(Same(), Layered)
        True
    """

    @property
    def layers(self) -> int:
        """How many."""
        ...

    def layer(self, index: Int[Array, ""]) -> Any:
        """The prefix of one; the index is known at run time alone."""
        ...


class _Run(NamedTuple):
    """Consecutive layers whose prefixes have one structure, so that one scan serves them."""

    start: int
    stop: int
    prefixes: Any  # leading axis stop - start; None where the layers have no prefix; indices of `Layered` ones


def stack(make: Callable[[nnx.Rngs], nnx.Module], layers: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Blocks with parameters of their own, stacked on a leading axis of every parameter.

    Args:
        make: builds one block.
        layers: how many.
        rngs: initialises each block with keys of its own.

    Returns:
        One module of the block's type, to be run by `scan`.

    Example:
        >>> from flax import nnx
        >>> from ntkprefix.models.depth import stack
        >>> blocks = stack(lambda rngs: nnx.Linear(2, 3, rngs=rngs), 12, rngs=nnx.Rngs(0))
        >>> blocks.kernel.shape
        (12, 2, 3)
    """
    return nnx.split_rngs(splits=layers)(nnx.vmap(make, in_axes=0, out_axes=0))(rngs)


def scan(
    blocks: nnx.Module,
    step: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    carry: Any,
    *,
    layers: int,
    prefixes: Any,
    also: Any = None,
    remat: bool = False,
) -> tuple[Any, Any]:
    """Run `carry` through all blocks.

    Args:
        blocks: made by `stack`.
        step: (block, carry, prefix, also) -> (carry, output) of one layer.
        carry: what flows from block to block.
        layers: how many blocks there are.
        prefixes: None; or a list or tuple with one prefix (or None) per layer, of any kinds and sizes; or one prefix
            whose every array has a leading `layers` axis; or `Layered`.
        also: a pytree of arrays with a leading `layers` axis, whose entries the steps get too.
        remat: the gradient keeps the carry between blocks alone, and runs each block again.

    Returns:
        The last carry, and the layers' outputs stacked on a leading axis.

    Raises:
        ValueError: the number of prefixes is not the number of layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models.depth import scan, stack
        >>> blocks = stack(lambda rngs: nnx.Linear(2, 2, rngs=rngs), 12, rngs=nnx.Rngs(0))
        >>> x, norms = scan(
        ...     blocks, lambda block, x, _, __: (block(x), jnp.linalg.norm(x)), jnp.ones(2), layers=12, prefixes=None
        ... )
        >>> norms.shape
        (12,)
    """
    graph, weights = nnx.split(blocks)
    noted = noting() if isinstance(carry, jax.Array) else None
    of_layer = prefixes.layer if isinstance(prefixes, Layered) else _itself

    def body(carry: Any, layer: Any) -> tuple[Any, Any]:
        block_weights, prefix, more = layer
        carry, output = step(nnx.merge(graph, block_weights), carry, of_layer(prefix), more)
        return carry, (output, None if noted is None else faulty_rows(carry))

    if remat:
        # A scan's body is not merged with its gradient, so nothing needs to keep XLA from undoing it.
        body = jax.checkpoint(body, prevent_cse=False)
    outputs = []
    for start, stop, prefix in _runs(prefixes, layers):
        part = (weights, also)
        if stop - start < layers:
            part = jax.tree.map(lambda leaf: leaf[start:stop], part)  # noqa: B023
        carry, output = jax.lax.scan(body, carry, (part[0], prefix, part[1]))
        outputs.append(output)
    output, faults = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    if noted is not None:
        noted.append(faults)
    return carry, output


@partial(jax.jit, static_argnames=("graph", "name"))
def _method(graph: Any, weights: Any, name: str, *inputs: Any) -> Any:
    return getattr(nnx.merge(graph, weights), name)(*inputs)


def compiled(model: nnx.Module, name: str, *inputs: Any) -> Any:
    """What a model's method returns, compiled as a whole, and once for inputs of the same shapes.

    Called by itself, a `scan` would compile its body again at every call of the model: it is a new function each time.

    Args:
        model: any.
        name: of a method that takes and returns pytrees of arrays.
        inputs: its arguments.
    """
    if noting() is not None:
        # What is noted inside must not leave a program of its own.
        return getattr(model, name)(*inputs)
    return _method(*nnx.split(model), name, *inputs)


def _itself(prefix: Any) -> Any:
    return prefix


def _runs(prefixes: Any, layers: int) -> Iterator[_Run]:
    if isinstance(prefixes, Layered):
        _check_count(prefixes.layers, layers)
        yield _Run(0, layers, jnp.arange(layers))
        return
    # A named tuple is a prefix of somebody's own, not a sequence of them.
    if type(prefixes) in (list, tuple):
        _check_count(len(prefixes), layers)
        indexed = enumerate(prefixes)
        for _, group in itertools.groupby(indexed, key=lambda pair: _structure(pair[1])):
            members = list(group)
            start = members[0][0]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(prefix for _, prefix in members))
            yield _Run(start, start + len(members), stacked)
    else:
        _check_stacked(prefixes, layers)
        yield _Run(0, layers, prefixes)


def _structure(prefix: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(prefix)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _check_count(found: int, layers: int) -> None:
    if found != layers:
        raise ValueError(f"prefixes: expected one per layer, {layers}, got {found}. Put None where a layer has none.")


def _check_stacked(prefixes: Any, layers: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(prefixes):
        if jnp.shape(leaf)[:1] != (layers,):
            raise ValueError(
                f"prefixes{jax.tree_util.keystr(path)}: expected a leading axis of {layers}, one entry per layer, got "
                f"shape {list(jnp.shape(leaf))}. Stack the layers' prefixes with "
                f"jax.tree.map(lambda *leaves: jnp.stack(leaves), *prefixes), or pass them as a list."
            )
