"""A prefix's softmax, summed over its tokens a chunk at a time: log-sum-exp and signed mean, without all logits."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Sums(NamedTuple):
    """What some tokens add up to for every input, divided by e^top.

    Attributes:
        top: the largest logit met, [n].
        total: Σ_r e^{w_r·x - top}, [n].
        mean: Σ_r a_r e^{w_r·x - top} w_r, [n, d]; over `total` it is mu(x) = F(x)/sqrt(M).
    """

    top: Float[Array, " n"]
    total: Float[Array, " n"]
    mean: Float[Array, "n d"]

    @classmethod
    def of_nothing(cls, x: Float[Array, "n d"], dtype) -> Sums:
        """For inputs x, before any token."""
        n = x.shape[0]
        return cls(jnp.full(n, -jnp.inf, dtype), jnp.zeros(n, dtype), jnp.zeros(x.shape, dtype))

    def and_tokens(
        self,
        w: Float[Array, "chunk d"],
        sign: Float[Array, " chunk"],
        x: Float[Array, "n d"],
        valid: Bool[Array, " chunk"] | None = None,
    ) -> Sums:
        """With more tokens, of which those that are not `valid` count for nothing; some must have counted by then."""
        found = logits(w, x, valid)
        # The quotients that anybody reads do not depend on the scale.
        top = jax.lax.stop_gradient(jnp.maximum(self.top, found.max(axis=1)))
        shrink, weights = jax.lax.stop_gradient(jnp.exp(self.top - top)), jnp.exp(found - top[:, None])
        more = jnp.matmul(weights * sign[None], w, precision="highest")
        return Sums(top, self.total * shrink + weights.sum(axis=1), self.mean * shrink[:, None] + more)

    def over_devices(self, axes: tuple[str, ...]) -> Sums:
        """Of the tokens on all devices along these axes of a mesh."""
        own = jax.lax.stop_gradient(self.top)
        top = jax.lax.pmax(own, axes)
        shrink = jnp.exp(own - top)
        return Sums(top, *jax.lax.psum((self.total * shrink, self.mean * shrink[:, None]), axes))


def logits(
    w: Float[Array, "chunk d"], x: Float[Array, "n d"], valid: Bool[Array, " chunk"] | None = None
) -> Float[Array, "n chunk"]:
    """x·w_r, and -inf for tokens that are not valid."""
    found = jnp.matmul(x, w.T, precision="highest")
    return found if valid is None else jnp.where(valid[None], found, -jnp.inf)
