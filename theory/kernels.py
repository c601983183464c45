"""Neural tangent kernels of the stylised model: for a finite prefix exactly, for an infinite one in closed form."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from ntkprefix.checks import at_least
from theory import checks
from theory.model import covariance_matrix
from theory.softmax import Sums, logits

# Rows of W worked on at once: n(d+1) x chunk numbers then stay within the cache for common n and d.
_CHUNK = 1024


def finite_ntk(
    W: Float[Array, "M d"],
    a: Float[Array, " M"],
    X1: Float[Array, "n1 d"],
    X2: Float[Array, "n2 d"] | None = None,
    *,
    chunk: int = _CHUNK,
) -> Float[Array, "n1 n2 d d"]:
    r"""Neural tangent kernel of a finite prefix, exactly, in memory that does not grow with M.

    With $A_{ir} = S_r(x_i)$, $\mu(x) = F(x)/\sqrt{M}$ and $c_{ikr} = a_r w_{rk} - \mu_k(x_i)$,

    $$ \frac{\partial F_k(x_i)}{\partial w_r} &= \sqrt{M} A_{ir} \bigl[ a_r e_k + c_{ikr}\, x_i \bigr] \\
       H_{(ik),(jl)} &= M \sum_r A_{ir} A_{jr} \bigl[ \delta_{kl}\, a_r^2 + x_{jk}\, a_r c_{jlr} + x_{il}\, a_r c_{ikr}
                        + (x_i \cdot x_j)\, c_{ikr} c_{jlr} \bigr] $$

    All four sums are blocks of one Gram matrix of the rows $(a_r A_{ir}, A_{ir} c_{i1r}, \dots, A_{ir} c_{idr})$, which
    is summed over chunks of r: n1 n2 (d+1)² M multiplications, against n1 n2 d³ M for contracting Jacobians.

    It can be differentiated in forward mode only (`jax.jvp`, `jax.jacfwd`): the loop over chunks ends at the true M,
    which is an argument of the compiled function, and reverse mode asks for a length that is known when compiling. That
    would take a compilation for every M, or a loop over the padding too.

    Where the tokens are shared out between devices (`jax.device_put(W, NamedSharding(mesh, PartitionSpec("prefix")))`),
    each works on its own, and they exchange sums alone.

    Args:
        W: prefix, [M, d].
        a: signs, [M].
        X1: inputs, [n1, d].
        X2: second inputs, [n2, d]; `X1` when absent.
        chunk: how many of the M tokens are worked on at once, on each device. Memory is (n1 + n2)(d + 1) times this.

    Returns:
        H, [n1, n2, d, d], indexed (i, j, k, l), as `neural_tangents.empirical_ntk_fn` has it.

    Raises:
        TypeError: an argument is not an array of floating-point numbers, their dtypes differ, or `chunk` is not an
            integer.
        ValueError: `chunk` is below 1, the shapes do not belong together, one is empty, or JAX is asked for a
            derivative in reverse mode.

    Example:
        >>> import jax
        >>> from theory import finite_ntk, init_stylized
        >>> W, a = init_stylized(jax.random.key(0), M=256, d=4)
        >>> finite_ntk(W, a, jax.numpy.eye(4)).shape
        (4, 4, 4, 4)

    Source: arXiv 2406.14036 defines the kernel; the Gram form is derived in docs.
    """
    at_least(1, "finite_ntk", chunk=chunk)
    checks.prefix("finite_ntk", W, a, X1=X1, X2=X2)
    M = W.shape[0]
    sides = (X1,) if X2 is None else (X1, X2)
    sharding = _over_devices(W)
    if sharding is not None:
        W, a = jax.device_put((W, a), NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0])))
        sides = jax.device_put(sides, NamedSharding(sharding.mesh, PartitionSpec()))
        return _sharded_ntk(W, a, sides, chunk=min(chunk, sharding.shard_shape(W.shape)[0]), sharding=sharding)
    # Lengths are rounded up to a power of two, so that one compilation serves every M in between; the loop
    # below still runs over the true length only.
    padded = 1 << (M - 1).bit_length()
    if padded != M:
        W, a = jnp.pad(W, ((0, padded - M), (0, 0))), jnp.pad(a, (0, padded - M))
    return _streamed_ntk(W, a, sides, jnp.asarray(M), chunk=min(chunk, padded))


def _over_devices(W: Array) -> NamedSharding | None:
    """How the tokens are shared out between devices; None where they are not, or are traced."""
    if isinstance(W, jax.core.Tracer) or not isinstance(W, jax.Array):
        return None
    sharding = W.sharding
    shared_out = isinstance(sharding, NamedSharding) and sharding.shard_shape(W.shape)[0] < W.shape[0]
    return sharding if shared_out else None


@partial(jax.jit, static_argnames="chunk")
def _streamed_ntk(W, a, sides, M, *, chunk):
    statistics = [_softmax_statistics(W, a, x, M, chunk) for x in sides]
    return _assemble(M.astype(W.dtype) * _gram(W, a, sides, statistics, M, chunk), sides[0], sides[-1])


@partial(jax.jit, static_argnames=("chunk", "sharding"))
def _sharded_ntk(W, a, sides, *, chunk, sharding):
    """Every device streams over the tokens that it has; what they add up to is all that they exchange."""
    axes = sharding.spec[0]
    axes = axes if isinstance(axes, tuple) else (axes,)

    def on_device(W, a, *sides):
        M = W.shape[0]
        statistics = [_softmax_statistics(W, a, x, M, chunk).over_devices(axes) for x in sides]
        return jax.lax.psum(_gram(W, a, sides, statistics, M, chunk), axes)

    everywhere = PartitionSpec()
    tokens = PartitionSpec(sharding.spec[0])
    gram = jax.shard_map(
        on_device,
        mesh=sharding.mesh,
        in_specs=(tokens, tokens, *(everywhere for _ in sides)),
        out_specs=everywhere,
        check_vma=False,  # it would have zeros, at which a device's sums start, marked as different on every device
    )(W, a, *sides)
    return _assemble(W.shape[0] * gram, sides[0], sides[-1])


def _gram(W, a, sides, statistics, M, chunk):
    """Σ_r of the Jacobian rows' products, [n1, n2, 1 + d, 1 + d]."""

    def add_chunk(index, gram):
        w, sign, valid = _chunk(W, a, M, index, chunk)
        rows = [_jacobian_rows(w, sign, valid, x, sums) for x, sums in zip(sides, statistics, strict=True)]
        return gram + jnp.matmul(rows[0], rows[-1].T, precision="highest")

    d = W.shape[1]
    n1, n2 = sides[0].shape[0], sides[-1].shape[0]
    gram = jnp.zeros((n1 * (d + 1), n2 * (d + 1)), W.dtype)
    gram = jax.lax.fori_loop(0, -(-M // chunk), add_chunk, gram)
    return gram.reshape(n1, d + 1, n2, d + 1).transpose(0, 2, 1, 3)


def _chunk(W, a, M, index, chunk):
    """Tokens [start, start + chunk), and which of them are new and real."""
    # dynamic_slice moves a start that would overrun; the tokens that then come a second time are masked.
    start = jnp.minimum(index * chunk, W.shape[0] - chunk)
    position = start + jnp.arange(chunk)
    valid = (position >= index * chunk) & (position < M)
    slice_ = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=chunk)
    return slice_(W), slice_(a), valid


def _softmax_statistics(W, a, x, M, chunk) -> Sums:
    def step(index, sums):
        w, sign, valid = _chunk(W, a, M, index, chunk)
        return sums.and_tokens(w, sign, x, valid)

    return jax.lax.fori_loop(0, -(-M // chunk), step, Sums.of_nothing(x, W.dtype))


def _jacobian_rows(w, sign, valid, x, sums):
    """Rows (a_r A_ir, A_ir c_i1r, …, A_ir c_idr) of all inputs i, [n (d+1), chunk]."""
    # Normalising by max and sum apart keeps A exact to rounding where log-sum-exp of 1e4 would round to 1e-3.
    A = jnp.exp(logits(w, x, valid) - sums.top[:, None]) / sums.total[:, None]
    c = (w * sign[:, None]).T[None] - (sums.mean / sums.total[:, None])[:, :, None]
    rows = jnp.concatenate([(A * sign[None])[:, None], A[:, None] * c], axis=1)
    return rows.reshape(-1, w.shape[0])


def _assemble(gram, X1, X2):
    """H from the Gram matrix's blocks, [n1, n2, 1 + d, 1 + d], whose index 0 belongs to a_r A_ir."""
    identity = jnp.eye(X1.shape[1], dtype=gram.dtype)
    same, right, left, both = gram[..., :1, :1], gram[..., :1, 1:], gram[..., 1:, :1], gram[..., 1:, 1:]
    inner = jnp.matmul(X1, X2.T, precision="highest")[:, :, None, None]
    return same * identity[None, None] + X2[None, :, :, None] * right + X1[:, None, None, :] * left + inner * both


def infinite_ntk(
    X1: Float[Array, "n1 d"],
    X2: Float[Array, "n2 d"] | None = None,
    *,
    sigma: float = 1.0,
    covariance: Float[Array, "d d"] | None = None,
) -> Float[Array, "n1 n2 d d"]:
    r"""Neural tangent kernel of an infinitely long prefix, in closed form.

    The limit of `finite_ntk` for $w_r \sim N(0, \Sigma)$ in pairs of opposite signs. With $s = \Sigma (x_i + x_j)$,

    $$ H^*_{(ik),(jl)} = e^{x_i \cdot \Sigma x_j} \bigl[ \delta_{kl} + s_l x_{jk} + s_k x_{il}
       + (x_i \cdot x_j)(s_k s_l + \Sigma_{kl}) \bigr] $$

    Args:
        X1: inputs, [n1, d].
        X2: second inputs, [n2, d]; `X1` when absent.
        sigma: standard deviation of the entries of W; Sigma = sigma² I.
        covariance: Sigma, [d, d], in place of `sigma`.

    Returns:
        H*, [n1, n2, d, d], indexed (i, j, k, l).

    Raises:
        TypeError: inputs or covariance are not arrays of floating-point numbers, the inputs' dtypes differ, or sigma is
            not a number.
        ValueError: inputs are not [n, d] of one width or are empty, sigma is not positive and finite, both sigma and a
            covariance are given, or the covariance is not one.

    Example:
        >>> import jax
        >>> from theory import infinite_ntk
        >>> H = infinite_ntk(jax.numpy.eye(2))
        >>> (H[0, 0] / jax.numpy.e).round(3).tolist()  # x_i = x_j = e_1
        [[10.0, 0.0], [0.0, 2.0]]

    Source: derived in docs, by tilting the Gaussian; arXiv 2406.14036 only assumes that the limit is positive.
    """
    checks.inputs("infinite_ntk", X1=X1, X2=X2)
    X1 = jnp.asarray(X1)
    covariance = covariance_matrix("infinite_ntk", X1.shape[1], sigma, covariance).astype(X1.dtype)
    return _closed_form(X1, X1 if X2 is None else X2, covariance)


@jax.jit
def _closed_form(X1, X2, covariance):
    product = partial(jnp.matmul, precision="highest")
    s = product(X1, covariance)[:, None] + product(X2, covariance)[None]
    inner = product(X1, X2.T)[:, :, None, None]
    tilt = jnp.exp(product(product(X1, covariance), X2.T))[:, :, None, None]
    identity = jnp.eye(X1.shape[1], dtype=X1.dtype)[None, None]
    rank_one = X2[None, :, :, None] * s[:, :, None, :] + s[:, :, :, None] * X1[:, None, None, :]
    return tilt * (identity + rank_one + inner * (s[:, :, :, None] * s[:, :, None, :] + covariance[None, None]))


def as_matrix(H: Float[Array, "n1 n2 d d"]) -> Float[Array, "n1*d n2*d"]:
    """Flatten a kernel [n1, n2, d, d] to the matrix [n1 d, n2 d] whose eigenvalues rule training.

    Args:
        H: kernel, [n1, n2, d, d], indexed (i, j, k, l).

    Returns:
        The matrix, [n1 d, n2 d], indexed (ik, jl). NumPy stays NumPy.

    Raises:
        TypeError: H is not an array of floating-point numbers.
        ValueError: H is not [n1, n2, d, d], or is empty.

    Example:
        >>> import jax
        >>> from theory import as_matrix, infinite_ntk
        >>> as_matrix(infinite_ntk(jax.numpy.eye(3))).shape
        (9, 9)
    """
    checks.kernel("as_matrix", H)
    n1, n2, d, _ = H.shape
    return H.transpose(0, 2, 1, 3).reshape(n1 * d, n2 * d)
