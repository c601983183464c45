"""Bicubic resizing of a grid of position embeddings, the way PyTorch does it.

`jax.image.resize` has another cubic (a = -1/2 where PyTorch has -3/4) and treats borders otherwise, which moves the
features of a pretrained model by far more than rounding.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_A = -0.75


def resize_grid(grid: Float[Array, "rows columns width"], rows: int, columns: int) -> Float[Array, "r c width"]:
    r"""Interpolate to another number of rows and columns.

    With s = source / target, output i samples the source at (i + 1/2) s - 1/2, between four taps weighted by the
    cubic convolution kernel with a = -3/4; taps beyond the border repeat the border. Nothing is smoothed when
    shrinking. The map is linear and separable, so it is two small matrices that depend on the sizes alone.

    Args:
        grid: [rows, columns, width].
        rows: of the result, at least 1.
        columns: of the result, at least 1.

    Returns:
        [rows, columns, width].

    Example:
        >>> import jax.numpy as jnp
        >>> from ntkprefix.models.positions import resize_grid
        >>> resize_grid(jnp.ones((37, 37, 4)), 5, 7).shape
        (5, 7, 4)

    Source: cubic convolution, Keys 1981 (doi 10.1109/TASSP.1981.1163711), eq. 8 before a is fixed.
    """
    down, across = (
        jnp.asarray(_matrix(*sizes), grid.dtype) for sizes in ((grid.shape[0], rows), (grid.shape[1], columns))
    )
    # Accelerators multiply float32 in fewer bits by default; this is done once per call and is small.
    return jnp.einsum("ri,cj,ijw->rcw", down, across, grid, precision=jax.lax.Precision.HIGHEST)


@lru_cache(maxsize=64)
def _matrix(source: int, target: int) -> np.ndarray:
    centre = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((target, source))
    for offset in (-1, 0, 1, 2):
        tap = np.clip(first + offset, 0, source - 1)
        np.add.at(matrix, (np.arange(target), tap), _cubic(np.abs(centre - first - offset)))
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    near = (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    far = _A * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
