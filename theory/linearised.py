"""The empirical kernel of any model in the parameters that train, and what the model linearised in them predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from ntkprefix.checks import at_least
from theory import checks
from theory.infinite import Prediction
from theory.kernels import as_matrix

# Bytes of Jacobians held at once.
_MEMORY = 2**28


def model_ntk(
    outputs: Callable[..., Float[Array, "n o"]],
    params: PyTree,
    X1: Any,
    X2: Any = None,
    *,
    memory: int = _MEMORY,
) -> Float[Array, "n1 n2 o o"]:
    r"""Neural tangent kernel of a model in some of its parameters, in memory that does not grow with the inputs.

    $$ H_{(ik),(jl)} = \sum_p \frac{\partial f_k(x_i)}{\partial p} \frac{\partial f_l(x_j)}{\partial p} $$

    Jacobians are taken a block of inputs at a time, by one backward pass per output, and contracted at once. At most
    two blocks are there together, so more inputs take more time, (n1 / block) n2 o backward passes, and no more memory.
    `params` are those of an adapter alone where the rest of a model is frozen.

    Args:
        outputs: f(params, x) -> [n, o], where row i depends on row i of x alone. Compiled once for one function. Arrays
            that it closes over become constants of the program; `jax.tree_util.Partial(g, frozen)` stands for
            g(frozen, params, x) and keeps a frozen model's weights out of it.
        params: numbers that train, a pytree of arrays of floating-point numbers.
        X1: inputs, an array or a pytree of arrays [n1, ...].
        X2: second inputs, [n2, ...]; `X1` when absent.
        memory: bytes that Jacobians may take, 4 o P for one input in float32; one input at a time is the least.

    Returns:
        H, [n1, n2, o, o], indexed (i, j, k, l), as `neural_tangents.empirical_ntk_fn` has it.

    Raises:
        TypeError: `params` hold something else than arrays of floating-point numbers, or `memory` is not an integer.
        ValueError: no parameters, no inputs, inputs of different numbers of rows, outputs that are not [n, o], or
            `memory` below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from theory import model_ntk
        >>> outputs = lambda params, x: jnp.tanh(x @ params["W"])
        >>> model_ntk(outputs, {"W": jnp.zeros((3, 2))}, jnp.eye(3))[0, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: Jacot et al. (arXiv 1806.07572); the contraction is that of `neural_tangents`, by blocks.
    """
    at_least(1, "model_ntk", memory=memory)
    checks.parameters("model_ntk", params)
    n1, n2 = checks.rows("model_ntk", X1), checks.rows("model_ntk", X1 if X2 is None else X2)
    outputs = outputs if isinstance(outputs, jax.tree_util.Partial) else jax.tree_util.Partial(outputs)
    size = jax.eval_shape(outputs, params, X1)
    checks.outputs("model_ntk", size, n1)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    block = max(1, memory // (2 * size.dtype.itemsize * size.shape[1] * numbers))
    kernel = np.zeros((n1, n2, size.shape[1], size.shape[1]), size.dtype)
    for i in range(0, n1, block):
        rows = _jacobian(outputs, params, _block(X1, i, min(block, n1)))
        # Of a kernel of X1 with itself only the blocks on and above the diagonal are computed.
        for j in range(i if X2 is None else 0, n2, block):
            same = X2 is None and i == j
            columns = rows if same else _jacobian(outputs, params, _block(X1 if X2 is None else X2, j, min(block, n2)))
            part = np.asarray(_contract(rows, columns))[: n1 - i, : n2 - j]
            kernel[i : i + block, j : j + block] = part
            if X2 is None:
                kernel[j : j + block, i : i + block] = part.transpose(1, 0, 3, 2)
    return jnp.asarray(kernel)


def predict_linearised(
    kernel: Float[Array, "n n o o"],
    residual: Float[Array, "n o"],
    cross: Float[Array, "n_test n o o"] | None = None,
    *,
    steps: int,
    step_size: float,
) -> Prediction:
    r"""How far gradient descent on 1/2 sum_i |f(x_i) - y_i|^2 moves the outputs of a model linearised at its start.

    With the kernel H at the start, and the residual r = y - f(0),

    $$ f(t) - f(0) &= (I - (I - \eta H)^t)\, r, \\
       f(t; x') - f(0; x') &= H(x', x) \sum_{s<t} \eta (I - \eta H)^s r, $$

    mode by mode. H may be singular: modes that it does not move stay where they are.

    Args:
        kernel: H on the training inputs, [n, n, o, o], from `model_ntk`.
        residual: targets less the outputs at the start, [n, o].
        cross: H of other inputs with the training inputs, [n_test, n, o, o].
        steps: T, at least 0.
        step_size: eta, above 0; beyond 2/lambda_max(H) descent diverges.

    Returns:
        Changes of the outputs at t = 0..T, [T + 1, n, o], and [T + 1, n_test, o] or None. Computed in float64, returned
        in the kernel's type.

    Raises:
        TypeError: arrays that are not of floating-point numbers, or of several dtypes; steps that are no integer, a
            step size that is no number.
        ValueError: shapes that do not belong together, negative steps, a step size that is not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from theory import predict_linearised
        >>> kernel, residual = jnp.ones((1, 1, 1, 1)), jnp.ones((1, 1))
        >>> predict_linearised(kernel, residual, steps=2, step_size=0.5).train.ravel().tolist()
        [0.0, 0.5, 0.75]

    Source: Lee et al. (arXiv 1902.06720), for descent in place of flow.
    """
    at_least(0, "predict_linearised", steps=steps)
    checks.number("predict_linearised", step_size=step_size)
    checks.linearised("predict_linearised", kernel, residual, cross, step_size)
    matrix = np.asarray(as_matrix(kernel), np.float64)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    factors = (1 - step_size * values) ** np.arange(steps + 1)[:, None]
    start = vectors.T @ np.ravel(np.asarray(residual, np.float64))
    n, o = residual.shape
    train = ((1 - factors) * start) @ vectors.T
    dtype = jnp.result_type(kernel)
    test = None
    if cross is not None:
        summed = step_size * np.concatenate([np.zeros((1, n * o)), np.cumsum(factors[:-1], axis=0)])
        moved = (summed * start) @ vectors.T @ np.asarray(as_matrix(cross), np.float64).T
        test = jnp.asarray(moved.reshape(steps + 1, -1, o), dtype)
    return Prediction(jnp.asarray(train.reshape(steps + 1, n, o), dtype), test)


@jax.jit
def _jacobian(outputs, params, x):
    """Jacobian of a block of inputs, d f_k(x_i)/dp, [block, o, P]."""
    flat, unravel = ravel_pytree(params)

    def one(flat, row):
        return outputs(unravel(flat), jax.tree.map(lambda array: array[None], row))[0]

    return jax.vmap(jax.jacrev(one), in_axes=(None, 0))(flat, x)


@jax.jit
def _contract(rows, columns):
    return jnp.einsum("ikp,jlp->ijkl", rows, columns, precision="highest")


def _block(x: Any, start: int, size: int) -> Any:
    """Rows start to start + size; the last ones again where there are no more, so that all blocks have one shape."""

    def take(array):
        return array[np.minimum(np.arange(start, start + size), array.shape[0] - 1)]

    return jax.tree.map(take, x)
