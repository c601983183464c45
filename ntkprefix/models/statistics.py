"""What a model's own attention looks like on a batch: the scale that a prefix has to match to be heard."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkprefix._pytree import Leaf, pytree
from ntkprefix.attention import attention


@pytree
class AttentionStatistics:
    """Means over a batch and its positions, for one layer or, with a leading `layers` axis, for all.

    Attributes:
        log_sum_exp: mean over queries of log sum_s exp(beta q.k_s), [N].
        log_harmonic_mass: log of the harmonic mean over queries of sum_s exp(beta q.k_s), [N]: a prefix of that mass
            weighs as much as the input on average over queries. Where the log-sum-exp varies (its deviation is 28 in
            one head of DINOv2 ViT-S), a prefix at its mean would drown some queries' input by a factor e^28.
        key_mean: [K, H].
        value_mean: [K, Hv].
    """

    log_sum_exp: Leaf
    log_harmonic_mass: Leaf
    key_mean: Leaf
    value_mean: Leaf


def observe_statistics(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    *,
    counted: Bool[Array, "B T"] | None = None,
    **options: Any,
) -> AttentionStatistics:
    r"""The statistics of one layer's attention, with beta = 1/sqrt(H).

    A prefix whose log-mass is far below the mean log-sum-exp of the input

    $$ \frac{1}{B T} \sum_{b,t} \log \sum_s e^{\beta q_{bt} \cdot k_{bs}} $$

    has no weight and no gradient (6 to 51 in the layers of DINOv2 ViT-S).

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        counted: tokens that are none of padding, [B, T] with S = T; all if None.
        options: of `attention`: what hides keys from queries.

    Returns:
        The means in float32, without a layer axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models.statistics import observe_statistics
        >>> zeros = jnp.zeros((1, 4, 2, 3))
        >>> observe_statistics(zeros, zeros, zeros).log_sum_exp.round(3).tolist()  # log of 4 keys
        [1.3860000371932983, 1.3860000371932983]

    Source: MATH 4, "Scale".
    """
    query, key, value = (array.astype("float32") for array in (query, key, value))
    _, log_mass = attention(query, key, value, return_residual=True, **options)
    if counted is None:
        counted = jnp.ones(query.shape[:2], bool)
    weights = counted.astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights), 1.0)
    # A query of padding may see nothing, and infinity times zero is none.
    log_mass = jnp.where(counted[..., None], log_mass, 0.0)
    log_weights = jnp.where(counted, jnp.log(jnp.where(counted, weights, 1.0)), -jnp.inf)
    return AttentionStatistics(
        log_sum_exp=jnp.einsum("bt,btn->n", weights, log_mass),
        log_harmonic_mass=-jax.nn.logsumexp(log_weights[..., None] - log_mass, axis=(0, 1)),
        key_mean=jnp.einsum("bt,btkh->kh", weights, key),
        value_mean=jnp.einsum("bt,btkh->kh", weights, value),
    )
