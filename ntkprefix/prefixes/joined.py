"""Several prefixes that are one: a few exact tokens and a state of features, say."""

from __future__ import annotations

from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._pytree import Leaf, pytree
from ntkprefix.partial import Partial, merge
from ntkprefix.prefixes.base import Prefix, PrefixShape


@pytree
class JoinedPrefix:
    """Prefixes behind one another, of any kinds: attention sees the keys of all.

    Attributes:
        parts: at least one, for the same heads and widths.

    Example:
        >>> import jax
        >>> from ntkprefix import FeaturePrefix, JoinedPrefix, TokenPrefix, attention, feature_map
        >>> keys, values, query = jax.random.normal(jax.random.key(0), (3, 500, 2, 8))
        >>> first = TokenPrefix(keys[:4], values[:4])
        >>> rest = FeaturePrefix.from_tokens(keys[4:], values[4:], feature_map=feature_map("taylor", degree=2))
        >>> attention(query[None], query[None], query[None], prefix=JoinedPrefix((first, rest))).shape
        (1, 500, 2, 8)

    Source: `ntkprefix.merge`, shares of disjoint groups of keys add.
    """

    parts: tuple[Leaf, ...]

    def __add__(self, other: JoinedPrefix) -> JoinedPrefix:
        """Part by part: tokens and clouds behind one another, states of features summed.

        Raises:
            TypeError: `other` is not a `JoinedPrefix`, has parts of other kinds, or as for the parts.
            ValueError: as for the parts.
        """
        checks.of_like_parts(self, other)
        return JoinedPrefix(tuple(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __sub__(self, other: JoinedPrefix) -> JoinedPrefix:
        """Part by part: without the tokens, clouds and sums of `other`.

        Raises:
            TypeError: as for `+`.
            ValueError: as for the parts.
        """
        checks.of_like_parts(self, other)
        return JoinedPrefix(tuple(a - b for a, b in zip(self.parts, other.parts, strict=True)))

    def shape(self) -> PrefixShape:
        """The sizes that have to match: those that any part asks for.

        Raises:
            TypeError: a part is no prefix, or as for the parts.
            ValueError: no parts, or ones that do not fit each other.
        """
        if not self.parts:
            raise ValueError("JoinedPrefix: expected at least one part, got none.")
        for part in self.parts:
            if isinstance(part, type) or not isinstance(part, Prefix):
                raise TypeError(f"JoinedPrefix: expected prefixes as parts, got {type(part).__name__}.")
        shapes = [part.shape() for part in self.parts]
        rows = {shape.rows for shape in shapes} - {None}
        widths = {shape.width for shape in shapes} - {None}
        if max(len(rows), len(widths), len({shape.value_width for shape in shapes})) > 1:
            got = ", ".join(f"{shape.rows} {shape.width} {shape.value_width}" for shape in shapes)
            raise ValueError(f"JoinedPrefix: expected parts of one B, H and Hv, got {got}.")
        # A state may have as many heads as there are queries', other kinds may not.
        strictest = min(shapes, key=lambda shape: shape.per_query_head)
        return strictest._replace(rows=next(iter(rows), None), width=next(iter(widths), None))

    def partial(self, query: Float[Array, "B T N H"], scale: float | Float[Array, ""]) -> Partial:
        """The share of all parts together.

        Raises:
            TypeError: as for the parts.
            ValueError: as for the parts.
        """
        self.shape()
        return merge(*(part.partial(query, scale) for part in self.parts))
