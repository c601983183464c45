r"""The gradient that a state of features has where it joins attention, without its share of the output.

With $w = e^{s + \beta q \cdot c + \log scale_\phi - l}$, a query's features weigh $w\,\phi$ in a softmax whose
log-sum-exp is l, and

$$ d\phi = w\, (Z\, do - (do \cdot o)\, k), \quad ds = \phi \cdot d\phi, \quad dZ = \sum_q w\,\phi\, do^T, \quad
   dk = -\sum_q w\, (do \cdot o)\, \phi : $$

two products of matrices, where the derivative of `FeaturePrefix.partial` has three. ds is small beside both its terms
where the state has most of the weight, so both are of the same rounded numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix.kernels.blocks import dot
from ntkprefix.partial import bounded_exp


def is_state(prefix: Any) -> bool:
    """Whether it is a `FeaturePrefix` that all rows share."""
    return hasattr(prefix, "feature_map") and prefix.Z.ndim == 3


def state_gradient(
    prefix: Any,
    query: Float[Array, "B T N H"],
    d_out: Float[Array, "B T N Hv"],
    delta: Float[Array, "B T N"],
    log_mass: Float[Array, "B T N"],
    scale: float | Float[Array, ""],
    products: Any,
) -> tuple[Any, Float[Array, "B T N H"], Float[Array, ""]]:
    """Gradients in a state, in the query that reads it and in beta.

    Args:
        prefix: a `FeaturePrefix` without an axis of rows, [A, R, Hv].
        query: [B, T, N, H].
        d_out: of the output.
        delta: do . o, less the gradient of the log-sum-exp.
        log_mass: l, of all keys together; infinite where nothing is seen.
        scale: beta.
        products: type of what matrix products take.
    """
    batch, length, heads, _ = query.shape
    states, wide = prefix.Z.shape[0], log_mass.dtype

    def grouped(array):
        return array.astype(wide).reshape(batch, length, states, heads // states, *array.shape[3:])

    def of_states(array):
        return array.astype(wide)[None, None, :, None]

    q, beta = grouped(query), jnp.asarray(scale, wide)
    root = jnp.sqrt(beta)
    (phi, shift), backward = jax.vjp(lambda feature_map, x: feature_map(x), prefix.feature_map, q * root)
    if prefix.log_scale is not None:
        shift = shift + of_states(prefix.log_scale)
    if prefix.centre is not None:
        along_centre = jnp.sum(q * of_states(prefix.centre), axis=-1)
        shift = shift + beta * along_centre
    weight = bounded_exp(shift - grouped(log_mass))
    weighted = (grouped(d_out) * weight[..., None]).astype(products)
    shared, small_phi = grouped(delta) * weight, phi.astype(products)
    of_values = dot("btagh,arh->btagr", weighted, prefix.Z.astype(products), wide)
    d_phi = of_values - shared[..., None] * of_states(prefix.k)
    d_shift = jnp.sum(small_phi.astype(wide) * of_values, axis=-1)
    d_shift = d_shift - jnp.sum(phi * of_states(prefix.k), axis=-1) * shared
    d_map, d_x = backward((d_phi, d_shift))
    d_query, d_beta = d_x * root, jnp.sum(d_x * q) / (2 * root)
    gradients = {
        "Z": dot("btagr,btagh->arh", small_phi, weighted, wide),
        "k": -jnp.sum(phi * shared[..., None], axis=(0, 1, 3)),
    }
    if prefix.log_scale is not None:
        gradients["log_scale"] = jnp.sum(d_shift, axis=(0, 1, 3))
    if prefix.centre is not None:
        d_query = d_query + d_shift[..., None] * (beta * of_states(prefix.centre))
        d_beta = d_beta + jnp.sum(d_shift * along_centre)
        gradients["centre"] = beta * jnp.sum(q * d_shift[..., None], axis=(0, 1, 3))
    of_prefix = {name: array.astype(getattr(prefix, name).dtype) for name, array in gradients.items()}
    d_prefix = dataclasses.replace(prefix, feature_map=d_map, **of_prefix)
    return d_prefix, d_query.reshape(query.shape).astype(query.dtype), d_beta
