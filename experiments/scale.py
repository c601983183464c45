"""How faint a prefix starts in a pretrained model, with one scale for all queries of a head and with a centre."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix import attention
from ntkprefix.images import load_images, normalise
from ntkprefix.models import load_dinov2
from ntkprefix.runs import environment

# Where a start is fainter than this for the typical query, in nats, a table has it by name.
FAINT = -3.0


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """What is looked at.

    Attributes:
        data: as `ntkprefix.images.load_images` takes it.
        size: side of the images in pixels.
        images: how many calibrate; as many others are measured.
    """

    data: str = "digits"
    size: int = 70
    images: int = 64


def main(config: ScaleConfig) -> dict[str, Any]:
    """For every layer and head, the median over queries of the log of a prefix's mass at k = 1 over the input's.

    The queries are of other images than those that the scale was calibrated on.

    Returns:
        Configuration, environment and one row per head: layer, head, `constant` and `centred`, in nats.
    """
    images = normalise(jnp.asarray(load_images(config.data, size=config.size).x_train[: 2 * config.images]))
    model = load_dinov2()
    statistics = model.attention_statistics(images[: config.images])
    scaled, log_mass = model.observe(images[config.images :], _scaled_and_log_mass)
    direction = jnp.einsum("lbtnh,lnh->lbtn", scaled, statistics.centre)
    constant = statistics.log_harmonic_mass[:, None, None] - log_mass
    centred = statistics.log_centred_mass[:, None, None] + direction - log_mass
    medians = {"constant": _median(constant), "centred": _median(centred)}
    layers, heads = medians["constant"].shape
    return {
        "config": asdict(config),
        "environment": environment(),
        "heads": [
            {
                "layer": layer,
                "head": head,
                **{name: round(float(array[layer, head]), 2) for name, array in medians.items()},
            }
            for layer in range(layers)
            for head in range(heads)
        ],
    }


def _scaled_and_log_mass(
    query: Float[Array, "B T N H"], key: Float[Array, "B S N H"], value: Float[Array, "B S N Hv"], **options: Any
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    _, log_mass = attention(query, key, value, return_residual=True, **options)
    return query / query.shape[-1] ** 0.5, log_mass


def _median(array: Float[Array, "L B T N"]) -> np.ndarray:
    return np.asarray(jax.device_get(jnp.median(array, axis=(1, 2))))
