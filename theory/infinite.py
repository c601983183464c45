"""What training an infinitely long prefix predicts, step by step and at convergence."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkprefix.checks import at_least
from theory import checks, neural_tangents_compat
from theory.kernels import as_matrix, infinite_ntk
from theory.model import covariance_matrix

# Modes that gradient descent kills in one step keep this share of their error: gradient flow only ever shrinks.
_LEAST_FACTOR = 1e-12


class Prediction(NamedTuple):
    """Outputs on the training inputs and on held-out ones; without the time axis at convergence.

    Attributes:
        train: at t = 0..steps, [steps + 1, n, d], or [n, d].
        test: likewise, [steps + 1, n_test, d] or [n_test, d]; None without held-out inputs.

    Example:
        >>> import jax
        >>> from theory import predict_infinite
        >>> x = jax.numpy.eye(2)
        >>> at_the_end = predict_infinite(x, x, x_test=-x, steps=None)
        >>> at_the_end.train.shape, at_the_end.test.shape, bool(abs(at_the_end.train - x).max() < 1e-5)
        ((2, 2), (2, 2), True)
    """

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
    r"""Outputs of an infinitely long prefix under gradient descent, from its kernel H* alone.

    $$ F(t) &= y + (I - \eta H^*)^t (F(0) - y), \qquad F(0) = 0, \\
       F(t; x') &= H^*(x', x)\, {H^*}^{-1} F(t), $$

    at convergence kernel regression with H*.

    `neural_tangents.predict.gradient_descent_mse` solves gradient *flow*, e^{-t eta K}. Descent with H* is flow with
    K = -log(I - eta H*)/eta at whole t, so that is the kernel it is given; there is no discretisation error. Steps
    above 1/lambda_max(H*) overshoot, which no flow does: there the powers are taken of H*'s eigenvalues.

    Args:
        x: training inputs, pairwise distinct, [n, d].
        y: targets, [n, d].
        x_test: held-out inputs, [n_test, d].
        steps: number of steps; None asks for convergence.
        step_size: eta, below 2/lambda_max(H*), from where on descent diverges; not used at convergence.
        sigma: standard deviation of the entries of W at the start.
        covariance: their covariance, [d, d], in place of `sigma`.

    Returns:
        Predictions at t = 0..steps, [steps + 1, n, d] and [steps + 1, n_test, d], or [n, d] and [n_test, d] at
        convergence. Computed in float64, returned in x's type.

    Raises:
        ImportError: neural_tangents is not installed.
        TypeError: an argument is not an array of floating-point numbers or is traced, dtypes differ, `steps` is not an
            integer, or `step_size` or `sigma` is not a number.
        ValueError: the shapes do not belong together, one is empty, values are not finite, steps are negative, sigma is
            not positive, both sigma and a covariance are given, the covariance is not one, H* overflows or is singular,
            because inputs coincide, or the step size is absent or not below 2/lambda_max(H*).

    Example:
        >>> import jax
        >>> from theory import predict_infinite
        >>> x = jax.numpy.eye(2)
        >>> prediction = predict_infinite(x, x, steps=100, step_size=0.02)
        >>> bool(abs(prediction.train[-1] - x).max() < 0.1)
        True

    Source: derived in docs; the limit of arXiv 2406.14036's training dynamics as M grows.
    """
    checks.inputs("predict_infinite", x=x, y=y, x_test=x_test)
    checks.targets("predict_infinite", x, y)
    checks.known("predict_infinite", x=x, y=y, x_test=x_test, step_size=step_size, sigma=sigma, covariance=covariance)
    checks.finite("predict_infinite", x=x, y=y, x_test=x_test)
    if steps is not None:
        at_least(0, "predict_infinite", steps=steps)
    if step_size is not None:
        checks.number("predict_infinite", step_size=step_size)
    dtype = jnp.result_type(x)
    with jax.enable_x64(True):
        covariance = covariance_matrix("predict_infinite", x.shape[1], sigma, covariance)
        x, y, x_test, covariance = (
            None if array is None else jnp.asarray(np.asarray(array, np.float64))
            for array in (x, y, x_test, covariance)
        )
        kernel = infinite_ntk(x, covariance=covariance)
        cross = None if x_test is None else infinite_ntk(x_test, x, covariance=covariance)
        spectrum = _spectrum(kernel)
        largest = spectrum.values[-1]
        if steps is None:
            result = _flow(kernel, cross, y, None)
        elif step_size is None or not 0 < step_size < 2 / largest:
            raise ValueError(
                f"predict_infinite: expected a step_size within (0, 2/lambda_max(H*)) = (0, {2 / largest:.4g}), beyond "
                f"which descent diverges, got {step_size}."
            )
        elif step_size * largest <= 1 + 1e-5:
            result = _descent_as_flow(spectrum, cross, y, steps, step_size)
        else:
            result = _descent(spectrum, cross, y, steps, step_size)
        train, test = (None if array is None else np.asarray(array) for array in result)
    return Prediction(jnp.asarray(train, dtype), None if test is None else jnp.asarray(test, dtype))


class _Spectrum(NamedTuple):
    values: np.ndarray
    vectors: np.ndarray


def _spectrum(kernel):
    matrix = np.asarray(as_matrix(kernel))
    if not np.isfinite(matrix).all():
        raise ValueError(
            "predict_infinite: expected inputs whose H* is finite, got ones for which it overflows: it grows as "
            "e^(sigma^2 |x|^2). Use a smaller sigma or smaller inputs."
        )
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError(
            f"predict_infinite: expected pairwise distinct inputs, got ones whose H* is singular to rounding: "
            f"lambda_min {values[0]:.2e}, lambda_max {values[-1]:.2e}. Remove repeated ones."
        )
    return _Spectrum(values, vectors)


def _flow(kernel, cross, y, times):
    """Gradient flow with a kernel from outputs of zero, by neural_tangents; to convergence when `times` is None."""
    # Its loss is a mean over all n d outputs, ours a sum: hence the step size of n d.
    predict = neural_tangents_compat.gradient_descent_mse(kernel, y, learning_rate=y.size)
    if cross is None:
        return predict(times, jnp.zeros_like(y), None, None), None
    return predict(times, jnp.zeros_like(y), jnp.zeros((cross.shape[0], y.shape[1]), y.dtype), cross)


def _descent_as_flow(spectrum, cross, y, steps, step_size):
    """Gradient descent as flow with another kernel, seen at multiples of the step size."""
    values, vectors = spectrum
    flow = -np.log(np.maximum(1 - step_size * values, _LEAST_FACTOR)) / step_size
    n, d = y.shape

    def as_kernel(matrix):
        return jnp.asarray(matrix.reshape(-1, d, n, d).transpose(0, 2, 1, 3))

    if cross is not None:
        cross = as_kernel(np.asarray(as_matrix(cross)) @ (vectors * (flow / values)) @ vectors.T)
    return _flow(as_kernel((vectors * flow) @ vectors.T), cross, y, step_size * jnp.arange(steps + 1, dtype=float))


def _descent(spectrum, cross, y, steps, step_size):
    """Gradient descent mode by mode, whatever the step size."""
    values, vectors = spectrum
    learnt = 1 - (1 - step_size * values) ** np.arange(steps + 1)[:, None]
    modes = learnt * (vectors.T @ np.ravel(y))
    train = (modes @ vectors.T).reshape(-1, *y.shape)
    if cross is None:
        return train, None
    return train, ((modes / values) @ vectors.T @ np.asarray(as_matrix(cross)).T).reshape(len(modes), -1, y.shape[1])
