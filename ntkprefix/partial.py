r"""One group of keys' share of attention, and how shares add up.

Softmax attention is a ratio of two sums over keys, so any split of the keys into groups gives terms that add. A
`Partial` keeps one group's two sums apart and in log space; `merge` adds them. Nothing is divided until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkprefix._pytree import Leaf, pytree

# exp of it is finite in float32. It only ever bounds the weight of a group without a denominator.
_LARGEST_EXPONENT = 80.0


@pytree
class Partial:
    r"""The share `num * exp(log_scale)` of the numerator and `den * exp(log_scale)` of the denominator.

    A fused kernel's normalised output `o` with its log-sum-exp `l` is the partial `(o, 1, l)`. The identity of
    `merge` is `(0, 0, -inf)`. `den = 0` with `num != 0` is legal: an additive memory outside the normaliser.

    Attributes:
        num: weighted values, [B, T, N, Hv].
        den: weights, [B, T, N].
        log_scale: natural logarithm of the factor both were divided by, [B, T, N].
    """

    num: Leaf
    den: Leaf
    log_scale: Leaf

    def normalise(self) -> Float[Array, "B T N Hv"]:
        """The attention output `num / den`; zero where no key has any weight, where softmax is undefined."""
        empty = self.den == 0
        # Both branches of a `where` are differentiated: the division must be finite in the one not taken too.
        return jnp.where(empty[..., None], 0.0, self.num / jnp.where(empty, 1.0, self.den)[..., None])

    def log_mass(self) -> Float[Array, "B T N"]:
        """Natural logarithm of the denominator, the group's log-sum-exp; NaN where `den` is negative."""
        return jnp.log(self.den) + self.log_scale


def merge(*partials: Partial) -> Partial:
    r"""Attention over the union of disjoint groups of keys.

    Every group is rescaled to the largest `log_scale` among those with a denominator, and the sums are added:

    $$ num = \sum_g num_g\, e^{s_g - s}, \qquad den = \sum_g den_g\, e^{s_g - s}, \qquad s = \max_g s_g. $$

    It is commutative and associative up to rounding, and overflows for no finite input: logits of 1e4 are fine. A
    group whose sums are all zero (a state that starts as a no-op) leaves the others untouched to the last bit, and
    still receives its gradient.

    Args:
        *partials: at least one, all of the same [B, T, N] and Hv.

    Returns:
        The partial of the union.

    Raises:
        ValueError: no partial is given.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import Partial, merge
        >>> one = Partial(jnp.full((1, 1, 1, 2), 3.0), jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
        >>> far_heavier = Partial(jnp.full((1, 1, 1, 2), 5.0), jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), 1e4))
        >>> merge(one, far_heavier).normalise()[0, 0, 0].tolist()
        [5.0, 5.0]

    Source: split-softmax merging as in FlashAttention (arXiv 2205.14135), with the two sums kept apart.
    """
    if not partials:
        raise ValueError("merge: expected at least one Partial, got none.")
    return reduce(_merge_two, partials)


def _merge_two(a: Partial, b: Partial) -> Partial:
    # A group without a denominator (an additive memory, or a state that is still zero) must not set the scale: the
    # denominators of the others would underflow against it. Alone with its like, it does.
    weighted, anything = (_largest([a, b], where) for where in (_has_denominator, _holds_anything))
    scale = jax.lax.stop_gradient(jnp.where(jnp.isfinite(weighted), weighted, anything))
    # With nothing in either, any finite reference does; -inf would make -inf - -inf below.
    reference = jnp.where(jnp.isfinite(scale), scale, 0.0)
    weight_a, weight_b = (jnp.exp(jnp.minimum(p.log_scale - reference, _LARGEST_EXPONENT)) for p in (a, b))
    return Partial(
        num=a.num * weight_a[..., None] + b.num * weight_b[..., None],
        den=a.den * weight_a + b.den * weight_b,
        log_scale=scale,
    )


def _largest(partials: list[Partial], where: Callable[[Partial], Array]) -> Float[Array, "B T N"]:
    scales = [jnp.where(where(partial), partial.log_scale, -jnp.inf) for partial in partials]
    return jnp.maximum(*scales)


def _has_denominator(partial: Partial) -> Bool[Array, "B T N"]:
    return partial.den != 0


def _holds_anything(partial: Partial) -> Bool[Array, "B T N"]:
    return (partial.den != 0) | jnp.any(partial.num != 0, axis=-1)
