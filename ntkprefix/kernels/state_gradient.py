r"""The gradient that a state of elu features has where it joins attention, with the rounding of `kernels.hopper`.

With $w = e^{s + \beta q \cdot c - l}$, the state's features of a query weigh $w\,\phi(q)$ in a softmax whose
log-sum-exp is l, and

$$ d\phi = w\, (Z\, do - (do \cdot o)\, k), \quad ds = \phi \cdot d\phi, \quad dZ = \sum_q w\,\phi\, do^T, \quad
   dk = -\sum_q w\, (do \cdot o)\, \phi. $$

ds is small beside both its terms where the state has most of the weight. So both are of the same rounded numbers, those
that matrix products take and that the output was made of; what the output's own rounding leaves of ds there, stays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkprefix.kernels.blocks import dot


def state_gradient(
    prefix: Any,
    query: Float[Array, "B T N H"],
    d_out: Float[Array, "B T N Hv"],
    out: Float[Array, "B T N Hv"],
    d_log_mass: Float[Array, "B T N"] | None,
    log_mass: Float[Array, "B T N"],
    scale: float,
) -> tuple[Any, Float[Array, "B T N H"]]:
    """Gradients in a state and in the query that reads it.

    Args:
        prefix: a state of elu features without an axis of rows, [A, R, Hv].
        query: [B, T, N, H].
        d_out: of the output, in float32.
        out: the output.
        d_log_mass: of the log-sum-exp; None where that has no gradient.
        log_mass: l of all keys together; infinite where nothing is seen.
        scale: beta.
    """
    batch, length, heads, _ = query.shape
    states, small, wide = prefix.Z.shape[0], query.dtype, log_mass.dtype

    def grouped(array):
        return array.reshape(batch, length, states, heads // states, *array.shape[3:])

    def of_states(array):
        return None if array is None else array.astype(wide)[None, None, :, None]

    q = grouped(query).astype(wide)
    centre, log_scale = of_states(prefix.centre), of_states(prefix.log_scale)
    shift = 0.0 if log_scale is None else log_scale
    if centre is not None:
        shift = shift + scale * jnp.sum(q * centre, axis=-1)
    weight = jnp.exp(shift - grouped(log_mass))
    x = q * math.sqrt(scale)
    phi = jnp.where(x > 0, x + 1, jnp.exp(jnp.minimum(x, 0)))
    weighted = (grouped(d_out) * weight[..., None]).astype(small)
    shared = jnp.sum(weighted.astype(wide) * grouped(out).astype(wide), axis=-1)
    if d_log_mass is not None:
        shared = shared - grouped(d_log_mass) * weight
    small_phi, k = phi.astype(small), of_states(prefix.k)
    along = dot("btagh,arh->btagr", weighted, prefix.Z.astype(small), wide)
    d_phi = along - shared[..., None] * k
    d_shift = jnp.sum(small_phi.astype(wide) * along, axis=-1) - jnp.sum(phi * k, axis=-1) * shared
    d_query = d_phi * jnp.minimum(phi, 1) * math.sqrt(scale)
    if centre is not None:
        d_query = d_query + d_shift[..., None] * (scale * centre)
    gradients = {
        "Z": dot("btagr,btagh->arh", small_phi, weighted, wide),
        "k": -jnp.sum(phi * shared[..., None], axis=(0, 1, 3)),
        "log_scale": jnp.sum(d_shift, axis=(0, 1, 3)),
        "centre": scale * jnp.sum(q * d_shift[..., None], axis=(0, 1, 3)),
    }
    given = {name: getattr(prefix, name) for name in gradients}
    of_prefix = {name: None if given[name] is None else gradients[name].astype(given[name].dtype) for name in gradients}
    return dataclasses.replace(prefix, **of_prefix), d_query.reshape(query.shape).astype(small)
