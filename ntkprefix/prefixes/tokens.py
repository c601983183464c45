"""A prefix of M explicit keys and values: exact, at a cost that grows with M."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix._pytree import Leaf, pytree
from ntkprefix.kernels import EVERYWHERE, best
from ntkprefix.partial import Partial
from ntkprefix.prefixes import behind
from ntkprefix.prefixes.base import PrefixShape


@pytree
class TokenPrefix:
    r"""M prefix tokens, optionally weighted: terms e^{beta q.p_r + b_r} u_r.

    What prefix tuning, P-Tuning v2 and Cartridges train, and, with log-weights, what coresets select. Cost O(T M H).

    Attributes:
        keys: p, [M, K, H]; a leading B axis on every array gives each row of a batch its own prefix.
        values: u, [M, K, Hv].
        log_weights: b, [M, K], natural logarithms; None means 0 for all.
        axes: letters of every array's axes, of the class.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import TokenPrefix, attention
        >>> prefix = TokenPrefix(keys=jnp.zeros((3, 1, 4)), values=jnp.ones((3, 1, 4)))
        >>> query = jnp.zeros((1, 2, 1, 4))
        >>> attention(query, query, query, prefix=prefix)[0, 0, 0].round(3).tolist()  # 3 of 5 equal weights
        [0.6000000238418579, 0.6000000238418579, 0.6000000238418579, 0.6000000238418579]

    Source: prefix tuning (arXiv 2101.00190), P-Tuning v2 (arXiv 2110.07602).
    """

    keys: Leaf
    values: Leaf
    log_weights: Leaf | None = None
    axes: ClassVar[Mapping[str, str]] = {"keys": "M K H", "values": "M K Hv", "log_weights": "M K"}

    def __add__(self, other: TokenPrefix) -> TokenPrefix:
        """The tokens of both, behind one another: their shares of attention add.

        Raises:
            TypeError: `other` is not a `TokenPrefix`, or as for `shape`.
            ValueError: other rows, heads or widths, or as for `shape`.
        """
        axis = self.keys.ndim - 3
        return behind.together(*_alike(self, other, axis), axis)

    def __sub__(self, other: TokenPrefix) -> TokenPrefix:
        """The tokens without those of `other`, which must be among them, behind one another and to the last bit.

        Raises:
            TypeError: as for `+`.
            ValueError: as for `+`, or they are not among them.
        """
        axis = self.keys.ndim - 3
        return behind.without(*_alike(self, other, axis), axis)

    def shape(self) -> PrefixShape:
        """The sizes that have to match.

        Raises:
            TypeError: one of them is not an array of floating-point numbers.
            ValueError: keys, values and log-weights do not fit each other.
        """
        arrays = {name: getattr(self, name) for name in self.axes}
        checks.fit_together("TokenPrefix", self.axes, arrays, optional=("log_weights",))
        rows = self.keys.shape[0] if self.keys.ndim == 4 else None
        return PrefixShape(rows, self.keys.shape[-2], self.keys.shape[-1], self.values.shape[-1])

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of the M tokens.

        Raises:
            TypeError: as for `shape`.
            ValueError: as for `shape`.
        """
        self.shape()
        if query.dtype != self.keys.dtype:  # not down to the query's type: a trained key may not fit float16
            query = query.astype(accumulator(query.dtype, self.keys.dtype))
        batch, length, heads, width = query.shape
        kv_heads = self.keys.shape[-2]
        values = self.values if self.values.dtype == query.dtype else self.values.astype(accumulator(query.dtype))
        bias = self.log_weights
        if bias is not None:
            bias = jnp.repeat(jnp.moveaxis(bias, -2, -1), heads // kv_heads, axis=-2)[..., None, :]
        arrays = self.keys, values, bias
        of_row = (batch, length)
        if self.keys.ndim == 3:
            # All rows' queries see the same keys: they are those of one long row.
            arrays, of_row = jax.tree.map(lambda array: array[None], arrays), (1, batch * length)
        keys, values, bias = arrays
        kernel = EVERYWHERE[best(length, keys.shape[1])]
        share = kernel.partial_attention(query.reshape(*of_row, heads, width), keys, values, scale=scale, bias=bias)
        return jax.tree.map(lambda array: array.reshape(batch, length, *array.shape[2:]), share)


def _alike(first: TokenPrefix, second: TokenPrefix, axis: int) -> tuple[TokenPrefix, TokenPrefix]:
    """Both of one kind and size, with weights if one of them has some."""
    checks.listed_alike(first, second, axis)
    if first.log_weights is None and second.log_weights is None:
        return first, second

    def weighted(tokens: TokenPrefix) -> TokenPrefix:
        if tokens.log_weights is not None:
            return tokens
        return dataclasses.replace(tokens, log_weights=jnp.zeros(tokens.keys.shape[:-1], tokens.keys.dtype))

    return weighted(first), weighted(second)
