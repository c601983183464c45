"""The stylised model: one attention layer whose only keys and values are a prefix of length M."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, UInt32

from ntkprefix.checks import at_least
from theory import checks
from theory.softmax import Sums

# Tokens whose logits are in memory at once, in the model and in its gradient.
_CHUNK = 2**13


def stylized_model(W: Float[Array, "M d"], a: Float[Array, " M"], x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    r"""Attend from each input to a prefix that serves as keys and, with signs, as values.

    $$ S(x) = softmax(W x) \in R^M, \qquad F(W, a; x) = \sqrt{M} \sum_r a_r S_r(x)\, w_r $$

    Args:
        W: prefix, one row w_r per token, [M, d]. This is what is trained.
        a: signs, [M], each -1 or +1. They stay fixed.
        x: inputs, [n, d].

    Returns:
        Outputs F, [n, d]. The prefix is read in chunks, by the gradient too: no n M numbers are ever in memory. On a
        mesh (`ntkprefix.parallel.on_mesh`), the devices along its axis `prefix` read their own tokens each, and
        exchange sums alone.

    Raises:
        TypeError: an argument is not an array of floating-point numbers, or their dtypes differ.
        ValueError: the shapes do not belong together, or one is empty.

    Example:
        >>> import jax
        >>> from theory import init_stylized, stylized_model
        >>> W, a = init_stylized(jax.random.key(0), M=64, d=4)
        >>> stylized_model(W, a, jax.numpy.ones((3, 4))).shape
        (3, 4)

    Source: arXiv 2406.14036, section on the convergence guarantee, with sqrt(M) in place of its M (and a step size
    that is M times larger: the trajectory is the same).
    """
    checks.prefix("stylized_model", W, a, x=x)
    return _model(W, a, x)


@jax.jit
def _model(W, a, x):
    devices = jax.sharding.get_abstract_mesh().shape.get("prefix", 1)
    if devices == 1 or W.shape[0] % devices:
        sums = _sums(W, a, x)
    else:
        tokens, whole = PartitionSpec("prefix"), PartitionSpec()
        sums = jax.shard_map(
            lambda W, a, x: _sums(W, a, x).over_devices(("prefix",)),
            in_specs=(tokens, tokens, whole),
            out_specs=whole,
            check_vma=False,  # as in `kernels`
        )(W, a, x)
    return math.sqrt(W.shape[0]) * sums.mean / sums.total[:, None]


def _sums(W, a, x) -> Sums:
    def add(sums, tokens):
        return sums.and_tokens(*tokens, x), None

    M, d = W.shape
    whole = M - M % _CHUNK
    sums = Sums.of_nothing(x, W.dtype)
    if whole > _CHUNK:
        chunks = W[:whole].reshape(-1, _CHUNK, d), a[:whole].reshape(-1, _CHUNK)
        # Gradients compute every chunk's logits again: all of them together would be n M numbers.
        sums, _ = jax.lax.scan(jax.checkpoint(add), sums, chunks)
        W, a = W[whole:], a[whole:]
    if W.shape[0]:
        sums, _ = add(sums, (W, a))
    return sums


def init_stylized(
    key: Key[Array, ""] | UInt32[Array, "2"],
    M: int,
    d: int,
    sigma: float = 1.0,
    *,
    covariance: Float[Array, "d d"] | None = None,
) -> tuple[Float[Array, "M d"], Float[Array, " M"]]:
    r"""Draw a prefix in identical pairs with opposite signs, so that the model starts at zero.

    $$ w_r \sim N(0, \sigma^2 I) \text{ or } N(0, \Sigma), \qquad w_{r + M/2} = w_r, \qquad a_r = +1 = -a_{r + M/2} $$

    Args:
        key: random key.
        M: prefix length, even.
        d: width of inputs and outputs.
        sigma: standard deviation of each entry.
        covariance: Sigma, [d, d], positive semi-definite; in place of `sigma`.

    Returns:
        W, [M, d], and a, [M].

    Raises:
        TypeError: the key is none, M or d is not an integer, sigma is not a number, or the covariance is not an array
            of floating-point numbers.
        ValueError: M is odd or below 2, d is below 1, sigma is not positive and finite, both sigma and a covariance are
            given, or the covariance is not one.

    Example:
        >>> import jax
        >>> from theory import init_stylized
        >>> W, a = init_stylized(jax.random.key(0), M=4, d=2)
        >>> bool((W[0] == W[2]).all()), a.tolist()
        (True, [1.0, 1.0, -1.0, -1.0])

    Source: arXiv 2406.14036, initialisation of the convergence theorem.
    """
    checks.random_key("init_stylized", key)
    checks.even("init_stylized", M)
    at_least(1, "init_stylized", d=d)
    checks.positive("init_stylized", sigma=sigma)
    if covariance is None:
        return _draw(key, sigma, M, d)
    covariance = covariance_matrix("init_stylized", d, sigma, covariance)
    # An eigenvalue root, because a covariance may be singular and a Cholesky factor then is NaN.
    values, vectors = jnp.linalg.eigh(covariance)
    return _draw(key, vectors * jnp.sqrt(jnp.maximum(values, 0))[None], M, d)


@partial(jax.jit, static_argnames=("M", "d"))
def _draw(key, root, M, d):
    half = jax.random.normal(key, (M // 2, d))
    W = root * half if jnp.ndim(root) == 0 else jnp.matmul(half, root.astype(half.dtype).T, precision="highest")
    signs = jnp.ones(M // 2, W.dtype)
    return jnp.concatenate([W, W]), jnp.concatenate([signs, -signs])


def covariance_matrix(where: str, d: int, sigma: float, covariance: Float[Array, "d d"] | None) -> Float[Array, "d d"]:
    """Sigma as a matrix, from whichever of the two ways to give it was used.

    Args:
        where: the function to name in a message.
        d: width.
        sigma: standard deviation of each entry; 1 where a covariance is given.
        covariance: [d, d], or None.

    Returns:
        Sigma, [d, d].

    Raises:
        TypeError: sigma is not a number, or the covariance is not an array of floating-point numbers.
        ValueError: sigma is not positive and finite, both are given, or the covariance is not one.
    """
    checks.positive(where, sigma=sigma)
    if covariance is None:
        return jnp.asarray(sigma**2 * np.eye(d), dtype=float)
    checks.covariance(where, d, sigma, covariance)
    return jnp.asarray(covariance)
