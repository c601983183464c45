"""What tests of prefixes share: random arrays, queries, and a prefix's own output."""

import jax.numpy as jnp
import numpy as np

from ntkprefix import attention

RNG = np.random.default_rng(1)


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


QUERY = normal(2, 4, 4, 6)


def out(prefix, query=QUERY, scale=None):
    """The prefix's own output: attention with no input keys."""
    batch, _, _, width = query.shape
    empty = jnp.zeros((batch, 0, 2, width)), jnp.zeros((batch, 0, 2, 5))
    return attention(query, *empty, prefix=prefix, scale=scale)
