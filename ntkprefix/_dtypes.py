"""The type that sums are kept in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def accumulator(*dtypes: Any) -> jnp.dtype:
    """Float64 when any of the types is, else float32: sums over bf16 or fp16 terms lose too much.

    It does not depend on JAX's promotion rules, which a user may have made strict.
    """
    wide = jnp.dtype(jnp.float64) in map(jnp.dtype, dtypes)
    # NumPy's arrays are float64 by default where JAX's are not: what JAX makes of them is meant.
    return jax.dtypes.canonicalize_dtype(jnp.float64 if wide else jnp.float32)
