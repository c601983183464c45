"""One layer's prompt and queries, and attention to them in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.compress import compress
from ntkprefix.compress.problem import Problem
from ntkprefix.partial import Partial

M, K, G, H, HV, Q = 96, 2, 3, 8, 6, 60
BETA = H**-0.5


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


KEYS, VALUES, QUERIES = normal(0, M, K, H), normal(1, M, K, HV), 1.5 * normal(2, Q, K * G, H)
BESIDE = Partial(normal(3, Q, K * G, HV), 0.5 + np.abs(normal(4, Q, K * G)), 3 + normal(5, Q, K * G))
PROBLEM = Problem(*map(jnp.asarray, (KEYS, VALUES, QUERIES)), None, BETA)
IN_CONTEXT = Problem(*map(jnp.asarray, (KEYS, VALUES, QUERIES)), jax.tree.map(jnp.asarray, BESIDE), BETA)


def sums(keys, values, queries, log_weights=None):
    """Numerators [Q, Hv] and denominators [Q] of one head, float64."""
    logits = BETA * queries.astype(float) @ keys.astype(float).T
    weights = np.exp(logits if log_weights is None else logits + log_weights.astype(float))
    return weights @ values.astype(float), weights.sum(axis=1)


def of_head(queries, head):
    return queries[:, head * G : (head + 1) * G].reshape(-1, *queries.shape[2:])


def compressed(keys, values, **options):
    """`compress` of NumPy's arrays."""
    keys, values, options = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, (keys, values, options)
    )
    return compress(keys, values, **options)
