r"""One group of keys' share of attention, and how shares add up.

Softmax attention is a ratio of two sums over keys, so any split of the keys into groups gives terms that add. A
`Partial` keeps one group's two sums apart and in log space; `merge` adds them. Nothing is divided until the end.
"""

from __future__ import annotations

import math
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix import checks
from ntkprefix._dtypes import accumulator
from ntkprefix._pytree import Leaf, pytree

# Denominators between its inverse and it are near enough to 1 for their log scale to stand for their mass.
_ORDINARY = 2.0**30


@pytree
class Partial:
    r"""The share `num * exp(log_scale)` of the numerator and `den * exp(log_scale)` of the denominator.

    A fused kernel's normalised output `o` with its log-sum-exp `l` is the partial `(o, 1, l)`. The identity of
    `merge` is `(0, 0, -inf)`. `den = 0` with `num != 0` is legal: an additive memory outside the normaliser.

    Attributes:
        num: weighted values, [B, T, N, Hv].
        den: weights, [B, T, N].
        log_scale: natural logarithm of the factor both were divided by, [B, T, N].

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import Partial, merge
        >>> one = Partial(jnp.full((1, 1, 1, 1), 3.0), jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
        >>> three = Partial(jnp.full((1, 1, 1, 1), 7.0), jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), jnp.log(3.0)))
        >>> round(float(merge(one, three).normalise()[0, 0, 0, 0]), 4)  # (3 + 3 * 7) / (1 + 3)
        6.0

    Source: the merging of softmax parts by their log-sum-exp (arXiv 2205.14135).
    """

    num: Leaf
    den: Leaf
    log_scale: Leaf

    def normalise(self) -> Float[Array, "*B T N Hv"]:
        """The attention output `num / den`; zero where no key has any weight, where softmax is undefined."""
        empty = self.den == 0
        # Both branches of a `where` are differentiated: the division must be finite in the one not taken too. And a
        # quotient's derivative divides by den^2, which den = 1e-20 takes out of float32: divide by the size first.
        size = jax.lax.stop_gradient(jnp.where(empty, 1.0, jnp.abs(self.den)))
        den = jnp.where(empty, 1.0, self.den / size)
        return jnp.where(empty[..., None], 0.0, self.num / size[..., None] / den[..., None])

    def log_mass(self) -> Float[Array, "*B T N"]:
        """Natural logarithm of the denominator, the group's log-sum-exp; -inf where it is 0, NaN where negative."""
        empty = self.den == 0
        return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, self.den)) + self.log_scale)


def merge(*partials: Partial) -> Partial:
    r"""Attention over the union of disjoint groups of keys.

    Every group is rescaled to the largest `log_scale` among those with a denominator, and the sums are added:

    $$ num = \sum_g num_g\, e^{s_g - s}, \qquad den = \sum_g den_g\, e^{s_g - s}, \qquad s = \max_g s_g. $$

    (A group whose `den` is far from 1 counts with its log mass there.) It is commutative and associative up to
    rounding, and does not overflow among groups with a denominator: logits of 1e4 are fine. A group whose sums are all
    zero (a state that starts as a no-op) leaves the others untouched to the last bit, and still receives its gradient,
    which is of the size of its weight: keep its log scale near the input's.

    Args:
        *partials: at least one, all of the same [B, T, N] and Hv.

    Returns:
        The partial of the union.

    Raises:
        TypeError: something that is no `Partial`.
        ValueError: none is given, or shapes that differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix import Partial, merge
        >>> one = Partial(jnp.full((1, 1, 1, 2), 3.0), jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
        >>> far_heavier = Partial(jnp.full((1, 1, 1, 2), 5.0), jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), 1e4))
        >>> merge(one, far_heavier).normalise()[0, 0, 0].tolist()
        [5.0, 5.0]

    Source: split-softmax merging as in FlashAttention (arXiv 2205.14135), with the two sums kept apart.
    """
    checks.mergeable(Partial, partials)
    return reduce(add, partials)


def add(a: Partial, b: Partial) -> Partial:
    """`merge` of two, unchecked, with any axes in place of B, T and N."""
    dtype = accumulator(*(leaf.dtype for leaf in jax.tree.leaves((a, b))))
    a, b = jax.tree.map(lambda leaf: leaf.astype(dtype), (a, b))
    # A group without a denominator (an additive memory, or a state that is still zero) must not set the scale: the
    # denominators of the others would underflow against it. Alone with its like, it does.
    weighted = jnp.maximum(_scale_of_denominator(a), _scale_of_denominator(b))
    anything = jnp.maximum(_scale_of_anything(a), _scale_of_anything(b))
    scale = jax.lax.stop_gradient(jnp.where(jnp.isfinite(weighted), weighted, anything))
    # With nothing in either, any finite reference does; -inf would make -inf - -inf below.
    reference = jnp.where(jnp.isfinite(scale), scale, 0.0)
    weight_a, weight_b = (bounded_exp(p.log_scale - reference) for p in (a, b))
    return Partial(
        num=a.num * weight_a[..., None] + b.num * weight_b[..., None],
        den=a.den * weight_a + b.den * weight_b,
        log_scale=scale,
    )


def log_size(den: Float[Array, "..."], log_scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """Natural logarithm of a denominator's size, whatever its sign; -inf where it is 0."""
    empty = den == 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, jnp.abs(den))) + log_scale)


def over_devices(share: Partial, axes: tuple[str, ...]) -> Partial:
    """`merge` of the shares that devices along axes of a mesh have, within `jax.shard_map`: sums are all they exchange.

    For groups with denominators, such as tokens; one without any does not set the scale.
    """
    own = jax.lax.stop_gradient(_scale_of_denominator(share))
    scale = jax.lax.pmax(own, axes)
    weight = bounded_exp(share.log_scale - jnp.where(jnp.isfinite(scale), scale, 0.0))
    num, den = jax.lax.psum((share.num * weight[..., None], share.den * weight), axes)
    return Partial(num, den, scale)


def bounded_exp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`e^x`, at most e^-1 times the largest number: only a group without a denominator weighs that much."""
    return jnp.exp(jnp.minimum(x, math.log(float(jnp.finfo(x.dtype).max)) - 1))


def _scale_of_denominator(partial: Partial) -> Float[Array, "*B T N"]:
    size = jax.lax.stop_gradient(jnp.abs(partial.den))
    # A denominator of 1e-37 with a log scale of 85 has a mass of 1, and must not silence another group's 1.
    extreme = (size < 1 / _ORDINARY) | (size > _ORDINARY)
    shift = jnp.where(extreme, jnp.log(jnp.where(size > 0, size, 1.0)), 0.0)
    return jnp.where(size > 0, partial.log_scale + shift, -jnp.inf)


def _scale_of_anything(partial: Partial) -> Float[Array, "*B T N"]:
    holds = (partial.den != 0) | jnp.any(partial.num != 0, axis=-1)
    return jnp.where(holds, partial.log_scale, -jnp.inf)
