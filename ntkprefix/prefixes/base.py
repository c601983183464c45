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
    """

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of all its keys, for logits `scale * q.p`.

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
