"""Complaints about what the theory is given: what was expected, what came, what to do.

`TypeError` for types and dtypes, `ValueError` for shapes and ranges. JAX and NumPy arrays are taken alike. What is
traced has a shape and a dtype, but no values: those are not checked then.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix.checks.describe import described, is_int, is_real, shapes

# Rounding of a covariance computed in float32.
_ROUNDING = 1e-5


def arrays(where: str, **named: Any) -> None:
    """Arrays of floating-point numbers, all of one dtype and none of them empty; None is one that is absent.

    Integers are refused and not cast: a kernel of integers would round its covariance to whole numbers.

    Raises:
        TypeError: not an array, not floating point, or several dtypes.
        ValueError: an axis of size 0.
    """
    given = {name: array for name, array in named.items() if array is not None}
    for name, array in given.items():
        if not isinstance(array, jax.Array | np.ndarray):
            raise TypeError(
                f"{where}: expected {name} to be an array of floating-point numbers, got {type(array).__name__}. "
                "Use jax.numpy.array."
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{where}: expected {name} to be an array of floating-point numbers, got {array.dtype}. Use "
                "astype(float)."
            )
        if array.size == 0:
            raise ValueError(f"{where}: expected {name} with at least one entry per axis, got shape {array.shape}.")
    # The type that JAX computes in: for NumPy's float64 that may be float32.
    dtypes = {name: jnp.result_type(array) for name, array in given.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{where}: expected one dtype, got {found}. Cast with `astype`.")


def prefix(where: str, W: Any, a: Any, **inputs: Any) -> None:
    """W [M, d], a [M] and inputs [n, d] that belong together; None stands for an input that is absent.

    Raises:
        TypeError: not arrays of floating-point numbers of one dtype.
        ValueError: the shapes do not belong together, or an axis has size 0.
    """
    arrays(where, W=W, a=a, **inputs)
    if W.ndim != 2 or a.shape != W.shape[:1]:
        raise ValueError(f"{where}: expected W [M, d] and a [M], got shapes {W.shape} and {a.shape}.")
    d = W.shape[1]
    for name, array in inputs.items():
        if array is not None and (array.ndim != 2 or array.shape[1] != d):
            raise ValueError(f"{where}: expected {name} [n, d] with the d = {d} of W, got shape {array.shape}.")


def inputs(where: str, **named: Any) -> None:
    """Inputs [n, d] of one width; None stands for those that are absent.

    Raises:
        TypeError: not arrays of floating-point numbers of one dtype.
        ValueError: another rank, several widths, or an axis of size 0.
    """
    arrays(where, **named)
    given = {name: array for name, array in named.items() if array is not None}
    if any(array.ndim != 2 for array in given.values()) or len({array.shape[1] for array in given.values()}) > 1:
        raise ValueError(f"{where}: expected {', '.join(given)} [n, d] of one width d, got shapes {shapes(given)}.")


def targets(where: str, x: Any, y: Any) -> None:
    """Inputs and their targets, both [n, d].

    Raises:
        ValueError: the shapes differ.
    """
    if x.shape != y.shape:
        raise ValueError(f"{where}: expected x and y of one shape [n, d], got {x.shape} and {y.shape}.")


def kernel(where: str, H: Any) -> None:
    """A kernel [n1, n2, d, d].

    Raises:
        TypeError: not an array of floating-point numbers.
        ValueError: another shape.
    """
    arrays(where, H=H)
    if H.ndim != 4 or H.shape[2] != H.shape[3]:
        raise ValueError(f"{where}: expected a kernel [n1, n2, d, d], got shape {H.shape}.")


def known(where: str, **named: Any) -> None:
    """Arrays and numbers whose values are there.

    Raises:
        TypeError: one that jit, vmap or grad traces.
    """
    for name, value in named.items():
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"{where}: expected {name} with its values, got a traced one. Call it outside jit and vmap."
            )


def finite(where: str, **named: Any) -> None:
    """Arrays of finite numbers; None stands for one that is absent.

    Raises:
        ValueError: NaN or an infinity.
    """
    for name, array in named.items():
        if array is not None and not np.isfinite(np.asarray(array, np.float64)).all():
            raise ValueError(f"{where}: expected finite numbers in {name}, got NaN or an infinity.")


def number(where: str, **numbers: Any) -> None:
    """Real numbers, traced or not.

    Raises:
        TypeError: something else, or several.
    """
    for name, value in numbers.items():
        if not is_real(value) or np.ndim(value):
            raise TypeError(f"{where}: expected a number as {name}, got {described(value)}.")


def positive(where: str, **numbers: Any) -> None:
    """Numbers above zero, or ones that are not known yet.

    Raises:
        TypeError: not one real number.
        ValueError: not positive and finite.
    """
    number(where, **numbers)
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer) and not 0 < value < math.inf:
            raise ValueError(f"{where}: expected a positive, finite {name}, got {value}.")


def even(where: str, M: Any) -> None:
    """A length of tokens in pairs.

    Raises:
        TypeError: not an integer.
        ValueError: odd, or below 2.
    """
    if not is_int(M):
        raise TypeError(f"{where}: expected an integer M, got {type(M).__name__}.")
    if M < 2 or M % 2:
        raise ValueError(
            f"{where}: expected an even M of at least 2, because tokens come in pairs, got {M}. Use "
            f"{max(2, M + M % 2)}."
        )


def random_key(where: str, key: Any) -> None:
    """One JAX random key, traced or not.

    Raises:
        TypeError: something else, or several.
    """
    shape, dtype = getattr(key, "shape", None), getattr(key, "dtype", None)
    typed = shape == () and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not typed and not (shape == (2,) and dtype == jnp.uint32):
        raise TypeError(f"{where}: expected one random key, jax.random.key(0), got {described(key)}.")


def covariance(where: str, d: int, sigma: Any, matrix: Any) -> None:
    """Sigma [d, d], symmetric and positive semi-definite where its values are known, with sigma left at 1.

    Raises:
        TypeError: it is not an array of floating-point numbers.
        ValueError: it is no covariance of this width, or both are given.
    """
    arrays(where, covariance=matrix)
    if isinstance(sigma, jax.core.Tracer) or sigma != 1.0:
        raise ValueError(f"{where}: expected sigma or a covariance, got both: sigma={sigma}. Leave one out.")
    if matrix.shape != (d, d):
        raise ValueError(f"{where}: expected a covariance of shape {(d, d)}, got {matrix.shape}.")
    if isinstance(matrix, jax.core.Tracer):
        return
    matrix = np.asarray(matrix, np.float64)
    if not np.isfinite(matrix).all() or np.abs(matrix - matrix.T).max() > _ROUNDING * np.abs(matrix).max():
        raise ValueError(f"{where}: expected a finite, symmetric covariance, got one that is not.")
    eigenvalues = np.linalg.eigvalsh(matrix)
    if eigenvalues[0] < -_ROUNDING * max(eigenvalues[-1], 0.0):
        raise ValueError(
            f"{where}: expected a positive semi-definite covariance, got one with the eigenvalue {eigenvalues[0]:.3g}."
        )


def parameters(where: str, params: Any) -> None:
    """A pytree of arrays of floating-point numbers, of at least one number.

    Raises:
        TypeError: a leaf that is none.
        ValueError: no number.
    """
    leaves = jax.tree.leaves(params)
    for leaf in leaves:
        if not isinstance(leaf, jax.Array | np.ndarray) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: expected parameters that are arrays of floating-point numbers, got {described(leaf)}."
            )
    if not sum(leaf.size for leaf in leaves):
        raise ValueError(f"{where}: expected at least one parameter, got none.")


def rows(where: str, x: Any) -> int:
    """How many rows the arrays of a pytree of inputs have.

    Raises:
        ValueError: none, or not all as many.
    """
    found = {array.shape[0] if getattr(array, "ndim", 0) else 0 for array in jax.tree.leaves(x)}
    if len(found) != 1 or found == {0}:
        counts = ", ".join(map(str, sorted(found))) or "none"
        raise ValueError(f"{where}: expected inputs with one number of rows, at least 1, got {counts}.")
    return found.pop()


def outputs(where: str, found: Any, n: int) -> None:
    """Outputs [n, o].

    Raises:
        ValueError: of another shape.
    """
    if getattr(found, "ndim", None) != 2 or found.shape[0] != n or not found.shape[1]:
        shape = getattr(found, "shape", type(found).__name__)
        raise ValueError(f"{where}: expected outputs [n, o] for n = {n} inputs, got {shape}.")


def linearised(where: str, kernel: Any, residual: Any, cross: Any, step_size: float) -> None:
    """A kernel [n, n, o, o], a residual [n, o], a kernel [n_test, n, o, o] or None, and a step size above 0.

    Raises:
        TypeError: not arrays of floating-point numbers of one dtype.
        ValueError: the shapes do not belong together, or the step size is not above 0.
    """
    arrays(where, kernel=kernel, residual=residual, cross=cross)
    n, o = residual.shape if residual.ndim == 2 else (0, 0)
    fits = cross is None or (cross.ndim == 4 and cross.shape[1:] == (n, o, o))
    if kernel.shape != (n, n, o, o) or not fits:
        given = {"kernel": kernel, "residual": residual} | ({} if cross is None else {"cross": cross})
        raise ValueError(
            f"{where}: expected a kernel [n, n, o, o], a residual [n, o] and a cross kernel [n_test, n, o, o], got "
            f"shapes {shapes(given)}."
        )
    if not step_size > 0:
        raise ValueError(f"{where}: expected a step_size above 0, got {step_size}.")
