"""Complaints about arrays and numbers given to the theory: what was expected, what came, what to do."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

# Rounding of a covariance computed in float32.
_ROUNDING = 1e-5


def prefix(where: str, W: Any, a: Any, **inputs: Any) -> None:
    """W [M, d], a [M] and inputs [n, d] that belong together; None stands for an input that is absent.

    Raises:
        ValueError: the shapes do not.
    """
    if np.ndim(W) != 2 or np.shape(a) != np.shape(W)[:1]:
        raise ValueError(f"{where}: expected W [M, d] and a [M], got shapes {np.shape(W)} and {np.shape(a)}.")
    d = np.shape(W)[1]
    for name, array in inputs.items():
        if array is not None and (np.ndim(array) != 2 or np.shape(array)[1] != d):
            raise ValueError(f"{where}: expected {name} [n, d] with the d = {d} of W, got shape {np.shape(array)}.")


def same_shape(where: str, x: Any, y: Any) -> None:
    """Inputs and their targets, both [n, d].

    Raises:
        ValueError: the shapes differ, or are not of rank 2.
    """
    if np.ndim(x) != 2 or np.shape(x) != np.shape(y):
        raise ValueError(f"{where}: expected x and y of one shape [n, d], got {np.shape(x)} and {np.shape(y)}.")


def positive(name: str, value: Any) -> None:
    """A number above zero, or one that is not known yet.

    Raises:
        ValueError: it is not positive and finite.
    """
    if not isinstance(value, jax.core.Tracer) and not 0 < value < math.inf:
        raise ValueError(f"expected a positive, finite {name}, got {value}.")


def covariance(d: int, sigma: Any, matrix: Any) -> None:
    """Sigma [d, d], symmetric and positive semi-definite where its values are known, with sigma left at 1.

    Raises:
        ValueError: it is not, or both are given.
    """
    if isinstance(sigma, jax.core.Tracer) or sigma != 1.0:
        raise ValueError(f"expected sigma or a covariance, got both: sigma={sigma}. Leave one out.")
    if np.shape(matrix) != (d, d):
        raise ValueError(f"expected a covariance of shape {(d, d)}, got {np.shape(matrix)}.")
    if isinstance(matrix, jax.core.Tracer):
        return
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > _ROUNDING * np.abs(matrix).max():
        raise ValueError("expected a finite, symmetric covariance, got one that is not.")
    eigenvalues = np.linalg.eigvalsh(matrix)
    if eigenvalues[0] < -_ROUNDING * max(eigenvalues[-1], 0.0):
        raise ValueError(
            f"expected a positive semi-definite covariance, got one with the eigenvalue {eigenvalues[0]:.3g}."
        )
