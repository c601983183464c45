"""The one thing that every prefix can do, and the shapes by which it is told whether it fits."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float

from ntkprefix.partial import Partial


class PrefixShape(NamedTuple):
    """What a prefix needs to agree on with the attention it enters.

    Attributes:
        rows: B when the prefix has one state per row of the batch, None when all rows share it.
        heads: number of heads of the state.
        width: H, of the queries it answers; None when any will do.
        value_width: Hv.
        per_query_head: whether `heads` may be the N query heads instead of the K key-value heads.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import FeaturePrefix, TokenPrefix
        >>> TokenPrefix(jnp.zeros((7, 2, 4)), jnp.zeros((7, 2, 5))).shape()  # nothing has to match the 7
        PrefixShape(rows=None, heads=2, width=4, value_width=5, per_query_head=False)
        >>> FeaturePrefix(jnp.zeros((3, 2, 4, 5)), jnp.zeros((3, 2, 4))).shape().rows  # a state for each of 3 rows
        3
    """

    rows: int | None
    heads: int
    width: int | None
    value_width: int
    per_query_head: bool = False


@runtime_checkable
class Prefix(Protocol):
    """A prefix: a pytree with its share of attention.

    One that is cheap to read may also have `by_kv_head(kv_heads)`: the same pytree with [B or 1, 1, K] in front of
    every array, whose entry at each place is the prefix of one row and kv head. Attention by blocks then reads it where
    that head's queries are at hand, and once more for the gradient.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ntkprefix import Partial, attention
        >>> from ntkprefix.prefixes import Prefix, PrefixShape
        >>> @jax.tree_util.register_static
        ... class Rest:  # a key of logit 0 with the value 0, on which the softmax may rest
        ...     def partial(self, query, scale):
        ...         den = jnp.ones(query.shape[:3])
        ...         return Partial(jnp.zeros((*den.shape, 4)), den, jnp.zeros_like(den))
        ...
        ...     def shape(self):
        ...         return PrefixShape(rows=None, heads=2, width=None, value_width=4)
        >>> isinstance(Rest(), Prefix)
        True
        >>> query, value = jnp.zeros((1, 3, 2, 4)), jnp.ones((1, 3, 2, 4))
        >>> float(attention(query, query, value, prefix=Rest())[0, 0, 0, 0])  # 3 of 4 equal weights
        0.75
    """

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of all its keys, for logits `scale * q.p`.

        Args:
            query: [B, T, N, H].
            scale: beta.

        Returns:
            Sums over the prefix, not divided: `num` [B, T, N, Hv], `den` and `log_scale` [B, T, N].

        Raises:
            TypeError: as for `shape`, or a scale that is no number where that is checked.
            ValueError: as for `shape`, or a scale for which there is no answer.
        """
        ...

    def shape(self) -> PrefixShape:
        """The sizes that have to match.

        Raises:
            TypeError: a part is not an array of floating-point numbers.
            ValueError: the arrays do not fit each other.
        """
        ...
