"""What training an infinitely long prefix predicts, step by step and at convergence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory import neural_tangents_compat
from theory.kernels import as_matrix, infinite_ntk

# Modes that gradient descent kills in one step keep this share of their error: gradient flow only ever shrinks.
_LEAST_FACTOR = 1e-12


class Prediction(NamedTuple):
    """Outputs on the training inputs and on held-out ones; without the time axis at convergence."""

    train: Float[Array, "*time n d"]
    test: Float[Array, "*time n_test d"] | None


def predict_infinite(
    x: Float[Array, "n d"],
    y: Float[Array, "n d"],
    x_test: Float[Array, "n_test d"] | None = None,
    *,
    steps: int | None,
    step_size: float | None = None,
    sigma: float = 1.0,
    covariance: Float[Array, "d d"] | None = None,
) -> Prediction:
    """Outputs of an infinitely long prefix under gradient descent, from its kernel H* alone.

        F(t) = y + (I - eta H*)^t (F(0) - y),    F(0) = 0
        F(t; x') = H*(x', x) H*^{-1} F(t),       at convergence kernel regression with H*

    `neural_tangents.predict.gradient_descent_mse` solves gradient *flow*, e^{-t eta K}. Descent with H* is flow with
    K = -log(I - eta H*)/eta at whole t, so that is the kernel it is given; there is no discretisation error.

    Args:
        x: training inputs, pairwise distinct, [n, d].
        y: targets, [n, d].
        x_test: held-out inputs, [n_test, d].
        steps: number of steps; None asks for convergence.
        step_size: eta, at most 1/lambda_max(H*); not used at convergence.
        sigma: standard deviation of the entries of W at the start.
        covariance: their covariance, [d, d], in place of `sigma`.

    Returns:
        Predictions at t = 0..steps, [steps + 1, n, d] and [steps + 1, n_test, d], or [n, d] and [n_test, d] at
        convergence. Computed in float64, returned in x's type.

    Raises:
        ImportError: neural_tangents is not installed.
        ValueError: H* is singular, because inputs coincide, or the step size is absent or exceeds 1/lambda_max(H*).

    Example:
        >>> import jax
        >>> from theory import predict_infinite
        >>> x = jax.numpy.eye(2)
        >>> prediction = predict_infinite(x, x, steps=100, step_size=0.02)
        >>> bool(abs(prediction.train[-1] - x).max() < 0.1)
        True

    Source: derived in docs; the limit of arXiv 2406.14036's training dynamics as M grows.
    """
    dtype = x.dtype
    with jax.enable_x64(True):
        x, y, x_test, covariance = (
            None if array is None else jnp.asarray(np.asarray(array, np.float64))
            for array in (x, y, x_test, covariance)
        )
        kernel = infinite_ntk(x, sigma=sigma, covariance=covariance)
        cross = None if x_test is None else infinite_ntk(x_test, x, sigma=sigma, covariance=covariance)
        if steps is None:
            times = None
            _spectrum(kernel)
        else:
            times = step_size * jnp.arange(steps + 1, dtype=float) if step_size is not None else None
            kernel, cross = _as_flow(kernel, cross, step_size)
        # Its loss is a mean over all n d outputs, ours a sum: hence the step size of n d.
        predict = neural_tangents_compat.gradient_descent_mse(kernel, y, learning_rate=y.size)
        at_start = None if x_test is None else jnp.zeros_like(x_test)
        result = predict(times, jnp.zeros_like(y), at_start, cross)
        train, test = (result, None) if x_test is None else result
        train, test = np.asarray(train), None if test is None else np.asarray(test)
    return Prediction(jnp.asarray(train, dtype), None if test is None else jnp.asarray(test, dtype))


def _spectrum(kernel):
    values, vectors = np.linalg.eigh(np.asarray(as_matrix(kernel)))
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError(
            f"H* is singular to rounding: lambda_min is {values[0]:.2e}, lambda_max {values[-1]:.2e}. "
            "Inputs must be pairwise distinct; remove repeated ones."
        )
    return values, vectors


def _as_flow(kernel, cross, step_size):
    """Kernels whose gradient flow, seen at multiples of the step size, is gradient descent with the given ones."""
    values, vectors = _spectrum(kernel)
    if step_size is None or not 0 < step_size * values[-1] <= 1 + 1e-5:
        raise ValueError(
            f"step_size must be within (0, 1/lambda_max(H*)] = (0, {1 / values[-1]:.4g}], got {step_size}."
        )
    flow = -np.log(np.maximum(1 - step_size * values, _LEAST_FACTOR)) / step_size
    n, _, d, _ = kernel.shape

    def as_kernel(matrix):
        return jnp.asarray(matrix.reshape(-1, d, n, d).transpose(0, 2, 1, 3))

    if cross is not None:
        cross = as_kernel(np.asarray(as_matrix(cross)) @ (vectors * (flow / values)) @ vectors.T)
    return as_kernel((vectors * flow) @ vectors.T), cross
