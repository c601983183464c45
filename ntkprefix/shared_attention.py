"""Attention on a mesh: every device attends for its own rows and heads, and reads its own tokens of a prefix.

What is exchanged for a prefix that devices share out is its share of attention, [B, T, N, Hv + 2] numbers, whatever its
length: softmax terms add, rescaled to the largest scale. Without this, XLA would gather the keys that a loop over
blocks reads.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from ntkprefix._pytree import Leaf, pytree
from ntkprefix.attention import attention
from ntkprefix.partial import Partial, over_devices
from ntkprefix.prefixes import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix
from ntkprefix.prefixes.base import PrefixShape

# The kinds of prefix whose arrays can be shared out.
_KINDS = (TokenPrefix, FeaturePrefix, MeasurePrefix)


@pytree
class _Shared:
    """A device's tokens of a prefix that the devices along the mesh's axis `prefix` share out."""

    tokens: Leaf

    def shape(self) -> PrefixShape:
        return self.tokens.shape()

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        return over_devices(self.tokens.partial(query, scale), ("prefix",))


def shared_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    prefix: Any = None,
    **options: Any,
) -> Float[Array, "B T N Hv"]:
    """`ntkprefix.attention` on the mesh that is set (`jax.set_mesh`), and without one just that function.

    Rows are shared out over its axis `data`, heads over `tensor` and a prefix's tokens over `prefix`, each where the
    axis divides them. A prefix of a kind that is not the library's own is left to XLA.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        prefix: as for `attention`.
        options: of `attention`.

    Returns:
        [B, T, N, Hv].

    Raises:
        TypeError: as for `attention`.
        ValueError: as for `attention`.

    Example:
        >>> import jax, numpy as np
        >>> from ntkprefix import TokenPrefix, attention
        >>> from ntkprefix.parallel import mesh_of, on_mesh
        >>> from ntkprefix.shared_attention import shared_attention
        >>> key, value, query = jax.random.normal(jax.random.key(0), (3, 1, 4, 2, 8))
        >>> prefix = TokenPrefix(key[0], value[0])
        >>> with on_mesh(mesh_of("prefix=1")):
        ...     out = jax.jit(shared_attention)(query, key, value, prefix=prefix)
        >>> bool(np.allclose(out, jax.jit(attention)(query, key, value, prefix=prefix), atol=1e-5))
        True
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not {"data", "tensor", "prefix"} <= set(mesh.axis_names) or mesh.size == 1 or not _known(prefix):
        return attention(query, key, value, prefix=prefix, **options)
    batch, heads = query.shape[0], query.shape[2]
    rows = "data" if batch % mesh.shape["data"] == 0 else None
    of_heads = "tensor" if key.shape[2] % mesh.shape["tensor"] == 0 else None
    arrays = {name: option for name, option in options.items() if isinstance(option, jax.Array)}
    others = {name: option for name, option in options.items() if name not in arrays}

    def spec(array: Array) -> PartitionSpec:
        """Of a mask or bias, [#B, #N, #T, #S], of lengths, [B], or of a number."""
        if array.ndim < 4:
            return PartitionSpec(*[rows] * array.ndim)
        return PartitionSpec(rows if array.shape[0] == batch else None, of_heads if array.shape[1] == heads else None)

    prefix = _shared_out(prefix, mesh.shape["prefix"])
    over = PartitionSpec(rows, None, of_heads, None)
    return jax.shard_map(
        lambda query, key, value, prefix, arrays: attention(query, key, value, prefix=prefix, **arrays, **others),
        in_specs=(over, over, over, _specs(prefix, rows, of_heads), jax.tree.map(spec, arrays)),
        out_specs=over,
        check_vma=False,  # it would have zeros, at which sums over blocks start, marked as different on every device
    )(query, key, value, prefix, arrays)


def _known(prefix: Any) -> bool:
    if isinstance(prefix, JoinedPrefix):
        return all(map(_known, prefix.parts))
    return prefix is None or type(prefix) in _KINDS


def _shared_out(prefix: Any, devices: int) -> Any:
    """The prefix with its tokens marked as shared out, where so many devices can share them evenly."""
    if isinstance(prefix, JoinedPrefix):
        return JoinedPrefix(tuple(_shared_out(part, devices) for part in prefix.parts))
    if isinstance(prefix, TokenPrefix) and devices > 1 and prefix.keys.shape[-3] % devices == 0:
        return _Shared(prefix)
    return prefix


def _specs(prefix: Any, rows: str | None, heads: str | None) -> Any:
    """How every array of a prefix is cut, as a pytree of the prefix's structure."""
    if isinstance(prefix, JoinedPrefix):
        return JoinedPrefix(tuple(_specs(part, rows, heads) for part in prefix.parts))
    if isinstance(prefix, _Shared):
        return _Shared(_of_kind(prefix.tokens, {"M": "prefix", "K": heads}, rows))
    return _of_kind(prefix, {"K": heads, "A": heads}, rows)


def _of_kind(prefix: Any, letters: dict[str, str | None], rows: str | None) -> Any:
    if prefix is None:
        return None
    whole = jax.tree.map(lambda _: PartitionSpec(), prefix)
    cut = {}
    for name, axes in prefix.axes.items():
        array, names = getattr(prefix, name), [letters.get(letter) for letter in axes.split()]
        if array is not None:
            cut[name] = PartitionSpec(*[rows] * (array.ndim - len(names)), *names)
    return dataclasses.replace(whole, **cut)
