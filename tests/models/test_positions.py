"""Bicubic resizing against values from PyTorch and against what any interpolation must do."""

import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix.models.positions import resize_grid

# float64: torch.nn.functional.interpolate(torch.arange(4.0)[None, None, None], size=(1, 6), mode="bicubic")
TORCH_ROW = [-0.0868055556, 0.40625, 1.2129629630, 1.7870370370, 2.59375, 3.0868055556]


def test_same_size_changes_nothing():
    grid = jnp.asarray(np.random.default_rng(0).standard_normal((5, 7, 2)), jnp.float32)
    np.testing.assert_allclose(resize_grid(grid, 5, 7), grid, atol=1e-6)


@pytest.mark.parametrize("target", [1, 2, 5, 37, 90])
def test_constants_stay(target):
    np.testing.assert_allclose(resize_grid(jnp.ones((37, 37, 1)), target, target), 1.0, atol=1e-6)


def test_known_row():
    row = resize_grid(jnp.arange(4.0)[None, :, None], 1, 6)[0, :, 0]
    np.testing.assert_allclose(row, TORCH_ROW, atol=1e-6)


def test_transposing_commutes():
    grid = jnp.asarray(np.random.default_rng(0).standard_normal((5, 5, 2)), jnp.float32)
    turned = resize_grid(grid.transpose(1, 0, 2), 9, 4).transpose(1, 0, 2)
    np.testing.assert_allclose(resize_grid(grid, 4, 9), turned, atol=1e-5)
