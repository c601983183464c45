"""What a model's own attention looks like on a batch: the scale that a prefix has to match to be heard."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkprefix._pytree import Leaf, pytree
from ntkprefix.attention import attention

# Of the mean variance of a query's channel. More would bend the fit; less would follow a short batch's accidents.
_RIDGE = 1e-2


@pytree
class AttentionStatistics:
    """Means over a batch and its positions, for one layer or, with a leading `layers` axis, for all.

    Attributes:
        log_sum_exp: mean over queries of log sum_s exp(beta q.k_s), [N].
        log_harmonic_mass: log of the harmonic mean over queries of sum_s exp(beta q.k_s), [N]: a prefix of that mass
            weighs as much as the input on average over queries. Where the log-sum-exp varies (its deviation is 28 in
            one head of DINOv2 ViT-S), a prefix at its mean would drown some queries' input by a factor e^28.
        centre: c, [N, H], of the affine function of a query, beta q.c + b, that is nearest to its log-sum-exp by least
            squares: the point in key space around which a prefix has the input's mass, query by query.
        log_centred_mass: as `log_harmonic_mass`, of sum_s exp(beta q.(k_s - c)), [N].
        key_mean: [K, H].
        value_mean: [K, Hv].

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> statistics = model.attention_statistics(jnp.array([[3, 1, 4, 1, 5]]))
        >>> statistics.log_sum_exp.shape, statistics.centre.shape  # 2 layers of 3 heads, H = 4
        ((2, 3), (2, 3, 4))
        >>> bool((statistics.log_harmonic_mass <= statistics.log_sum_exp + 1e-5).all())  # of the means, the least
        True
    """

    log_sum_exp: Leaf
    log_harmonic_mass: Leaf
    centre: Leaf
    log_centred_mass: Leaf
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

    Source: docs/prefixes.md, "Where a trained state starts".
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
    scaled = query / math.sqrt(query.shape[-1])
    centre = _nearest_centre(weights, scaled, log_mass)
    log_centred = log_mass - jnp.einsum("btnh,nh->btn", scaled, centre)

    def log_harmonic_mean(logs: Float[Array, "B T N"]) -> Float[Array, " N"]:
        return -jax.nn.logsumexp(log_weights[..., None] - logs, axis=(0, 1))

    return AttentionStatistics(
        log_sum_exp=jnp.einsum("bt,btn->n", weights, log_mass),
        log_harmonic_mass=log_harmonic_mean(log_mass),
        centre=centre,
        log_centred_mass=log_harmonic_mean(log_centred),
        key_mean=jnp.einsum("bt,btkh->kh", weights, key),
        value_mean=jnp.einsum("bt,btkh->kh", weights, value),
    )


def observe_queries(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K Hv"],
    **options: Any,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """One layer's queries and the log-sum-exp of what each sees: `model.observe(batch, observe_queries)`.

    Args:
        query: of a layer.
        key: that it sees.
        value: at the keys.
        **options: of the layer's attention.

    Returns:
        Queries and log-sum-exp, float32: what `FeatureAdapter.init_from` fits a state to.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, ViT, ViTConfig, observe_queries
        >>> block = BlockConfig(width=8, heads=2, mlp_width=6)
        >>> model = ViT(ViTConfig(patch=4, layers=3, grid=2, block=block), rngs=nnx.Rngs(0))
        >>> queries, log_sum_exp = model.observe(jnp.zeros((5, 8, 8, 3)), observe_queries)
        >>> queries.shape, log_sum_exp.shape  # of 3 layers, 5 images, 1 + 4 tokens, 2 heads
        ((3, 5, 5, 2, 4), (3, 5, 5, 2))
    """
    _, log_mass = attention(query, key, value, return_residual=True, **options)
    return query.astype(jnp.float32), log_mass.astype(jnp.float32)


def _nearest_centre(
    weights: Float[Array, "B T"], query: Float[Array, "B T N H"], log_mass: Float[Array, "B T N"]
) -> Float[Array, "N H"]:
    """Ridge regression of the log-mass on the scaled query, with a free constant."""
    query = query - jnp.einsum("bt,btnh->nh", weights, query)[None, None]
    log_mass = log_mass - jnp.einsum("bt,btn->n", weights, log_mass)[None, None]
    covariance = jnp.einsum("bt,btnh,btni->nhi", weights, query, query, precision="highest")
    along = jnp.einsum("bt,btnh,btn->nh", weights, query, log_mass, precision="highest")
    spread = jnp.trace(covariance, axis1=-2, axis2=-1) / query.shape[-1]
    ridge = (_RIDGE * spread + jnp.finfo(jnp.float32).tiny)[:, None, None] * jnp.eye(query.shape[-1])[None]
    return jnp.linalg.solve(covariance + ridge, along[..., None])[..., 0]
