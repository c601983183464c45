r"""Attention by fused kernels: cuDNN's on NVIDIA's GPUs, ours there for an infinite prefix, and JAX's own on TPUs.

They are `kernels.cudnn`, `kernels.hopper` and `kernels.splash`. The gradient is cuDNN's on a GPU, and splash
attention's on a TPU. These kernels make the weights anew from the log-sum-exp they are given, and take $do \cdot o$
from the output they are given: with those of input and prefix together their gradients are those of the whole,

$$ P = e^{\beta q k^T - l}, \quad dS = P \circ (do\, v^T - do \cdot o), \quad
   l = \log(\textstyle\sum e^{\beta q k^T} + den), $$

and a prefix costs its own gradient alone, as in `kernels.blockwise`. A gradient of the log-sum-exp itself has no kernel
there and is taken by blocks.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkprefix.kernels import blockwise, cudnn, splash
from ntkprefix.kernels.masks import WHOLE_SIDE
from ntkprefix.kernels.state_gradient import is_state, state_gradient
from ntkprefix.partial import Partial, add, log_size


@dataclasses.dataclass(frozen=True)
class Fused:
    """An implementation as `kernels.dense` and `kernels.blockwise` are, of less than they.

    Attributes:
        name: of the kernel: "cudnn", "pallas" for ours on GPUs, or "splash" for the one on TPUs.
        interpret: with what Pallas plays its kernel on a CPU: parameters for ours, whose gradient is then taken by
            blocks, and True for the one on TPUs.
    """

    name: Literal["cudnn", "pallas", "splash"]
    interpret: Any = None

    def unsupported(self, query: Any, key: Any, value: Any, *, scale: Any, prefix: Any, **options: Any) -> str | None:
        """What keeps it from a call, in words: the machine, or something that was asked for; None if nothing does."""
        if self.interpret is None and not self.library.available():
            alone = "a TPU" if self.name == "splash" else "an NVIDIA GPU with cuDNN"
            return f"a {jax.default_backend().upper()} ({alone} alone)"
        if isinstance(scale, jax.core.Tracer):
            return "a scale that is traced"
        options = _asked(**options)
        if self.name != "pallas":
            return self.library.unsupported(query, key, value, options)
        if self.interpret is None and not cudnn.is_hopper():
            return "a GPU that is no Hopper"
        if not scale > 0:
            return "a scale that is not above 0"
        hopper = _hopper()
        if hopper is None:
            return "this release of JAX, whose Pallas is another"
        return hopper.unsupported(query, key, value, prefix, options)

    @property
    def library(self) -> Any:
        """Whose the gradient is, and of "pallas" the gradient alone."""
        return splash if self.name == "splash" else cudnn

    def attend(
        self,
        query: Float[Array, "B T N H"],
        key: Float[Array, "B S K H"],
        value: Float[Array, "B S K Hv"],
        *,
        scale: float | Float[Array, ""],
        prefix: Any = None,
        **options: Any,
    ) -> tuple[Float[Array, "B T N Hv"], Float[Array, "B T N"]]:
        """Output and log-sum-exp of a prefix and the input; arguments as in `ntkprefix.attention`.

        Raises:
            ValueError: what is asked for has no kernel here.
        """
        if why := self.unsupported(query, key, value, scale=scale, prefix=prefix, **options):
            raise ValueError(
                f"attention: the implementation {self.name!r} has nothing for {why}; use 'blockwise' or 'xla', "
                "or None for the best there is."
            )
        if prefix is not None:
            # What it has to complain of.
            jax.eval_shape(lambda query: prefix.partial(query, scale), query)
        options, batch = _asked(**options), query.shape[0]
        lengths = None
        if any(options[f"{name}_seq_lengths"] is not None for name in ("query", "key_value")):
            lengths = tuple(
                jnp.full(batch, array.shape[1], jnp.int32) if given is None else given.astype(jnp.int32)
                for array, given in (
                    (query, options["query_seq_lengths"]),
                    (key, options["key_value_seq_lengths"]),
                )
            )
        window = options["local_window_size"]
        call = _Call(self, float(scale), options["is_causal"], None if window is None else window[0])
        out, sign, log_mass = _attend(call, query, key, value, lengths, prefix)
        return out, jnp.where(sign < 0, jnp.nan, log_mass)


def _hopper() -> Any:
    """The kernel's module; None where JAX has not what it is made of. Prefixes import kernels, and it imports them."""
    try:
        from ntkprefix.kernels import hopper
    except (ImportError, AttributeError):
        return None
    return hopper


def _asked(*, local_window_size=None, query_offset=0, **options):
    """The options of `dense.partial_attention`, each None where it asks for nothing."""
    if local_window_size is not None:
        left, right = local_window_size
        # Causality hides what lies to the right.
        if left >= WHOLE_SIDE and (right >= WHOLE_SIDE or options.get("is_causal")):
            local_window_size = None
    none = isinstance(query_offset, int) and query_offset == 0
    names = ("bias", "mask", "query_seq_lengths", "key_value_seq_lengths")
    return {
        "is_causal": options.get("is_causal", False),
        "local_window_size": local_window_size,
        "query_offset": None if none else query_offset,
        **{name: options.get(name) for name in names},
    }


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is fixed when a call is traced."""

    kernel: Fused
    scale: float
    is_causal: bool
    window: int | None

    @property
    def of_library(self) -> dict[str, Any]:
        options = {"scale": self.scale, "is_causal": self.is_causal, "window": self.window}
        return options | {"interpret": bool(self.kernel.interpret)} if self.kernel.name == "splash" else options

    @property
    def has_gradient(self) -> bool:
        """Whether the library's gradient can be had: there is no cuDNN where our own kernel is played."""
        return self.kernel.name == "splash" or self.kernel.interpret is None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call, query, key, value, lengths, prefix):
    """Output; sign and logarithm of its denominator, 0 and -inf where nothing is seen."""
    if call.kernel.name == "pallas":
        played = {"interpret": call.kernel.interpret}
        return _hopper().forward(query, key, value, prefix, scale=call.scale, is_causal=call.is_causal, **played)
    out, log_sum = call.kernel.library.forward(query, key, value, lengths, **call.of_library)
    seen = _sees_something(call, query.shape[1], key.shape[1], lengths)
    if seen is not None:
        out, log_sum = jnp.where(seen[..., None], out, 0), jnp.where(seen, log_sum, -jnp.inf)
    if prefix is None:
        return out, jnp.where(jnp.isneginf(log_sum), 0.0, 1.0), log_sum
    own = Partial(out.astype(log_sum.dtype), jnp.where(jnp.isneginf(log_sum), 0.0, 1.0), log_sum)
    share = add(own, prefix.partial(query, call.scale))
    return share.normalise().astype(out.dtype), jnp.sign(share.den), log_size(share.den, share.log_scale)


def _attend_forward(call, query, key, value, lengths, prefix):
    given = jax.tree.map(lambda leaf: leaf.value, (query, key, value, lengths, prefix), is_leaf=_is_primal)
    found = _attend(call, *given)
    return found, (given, found)


def _attend_backward(call, saved, gradients):
    (query, key, value, lengths, prefix), (out, sign, log_mass) = saved
    d_out, _, d_log_mass = gradients
    wide = log_mass.dtype
    # Of a negative denominator the weights are negative: the gradient that comes carries their sign.
    d_out = jnp.zeros(out.shape, wide) if _is_zero(d_out) else d_out.astype(wide) * sign[..., None]
    no_log_mass = _is_zero(d_log_mass)
    log_sum = jnp.where(sign == 0, 0.0, log_mass)
    if no_log_mass and call.has_gradient:
        given = query, key, value, lengths, out, log_sum, d_out.astype(out.dtype)
        d_input = call.kernel.library.backward(*given, **call.of_library)
    else:
        d_input = _by_blocks(call, query, key, value, lengths, out, sign, log_mass, gradients)
    d_prefix = None
    if prefix is not None:
        d_log_mass = None if no_log_mass else jnp.where(sign == 0, 0.0, d_log_mass) * sign
        log_mass = jnp.where(sign == 0, jnp.inf, log_mass)
        d_prefix, d_query = _of_prefix(call, prefix, query, d_out, out, d_log_mass, log_mass)
        d_input = (d_input[0] + d_query, *d_input[1:])
    return (*d_input, None, d_prefix)


_attend.defvjp(_attend_forward, _attend_backward, symbolic_zeros=True)


def _of_prefix(call, prefix, query, d_out, out, d_log_mass, log_mass):
    """Gradients in a prefix and in the query that reads it."""
    # In Pallas the state's part of the output was a product of rounded numbers: what cancels it must be of the same.
    products = query.dtype if call.kernel.name == "pallas" else log_mass.dtype
    delta = jnp.sum(d_out * out.astype(d_out.dtype), axis=-1)
    if d_log_mass is not None:
        delta = delta - d_log_mass
    if is_state(prefix):
        return state_gradient(prefix, query, d_out, delta, log_mass, call.scale, products)[:2]
    also, backward = jax.vjp(lambda prefix, query: prefix.partial(query, call.scale), prefix, query)
    d_also = blockwise.of_others(also, d_out, delta, log_mass)
    return backward(jax.tree.map(lambda gradient, array: gradient.astype(array.dtype), d_also, also))


def _by_blocks(call, query, key, value, lengths, out, sign, log_mass, gradients):
    """Gradients in query, key and value by blocks, of output and log-sum-exp."""
    window = call.window if call.window is None else (call.window, WHOLE_SIDE)
    options = {"is_causal": call.is_causal, "local_window_size": window}
    if lengths is not None:
        options |= {"query_seq_lengths": lengths[0], "key_value_seq_lengths": lengths[1]}
    d_out, _, d_log_mass = (
        jnp.zeros(gradient.shape, gradient.dtype) if _is_zero(gradient) else gradient for gradient in gradients
    )
    return blockwise.gradients(query, key, value, out, sign, log_mass, d_out, d_log_mass, scale=call.scale, **options)


def _sees_something(
    call: _Call, length: int, size: int, lengths: tuple[Int[Array, " B"], Int[Array, " B"]] | None
) -> Any:
    """Whether a query sees any key, [1 or B, T, 1]; None where every one does."""
    if lengths is None and (call.window is None or length <= size + call.window):
        return None
    rows = jnp.arange(length, dtype=jnp.int32)[None]
    queries, keys = (length, size) if lengths is None else (each[:, None] for each in lengths)
    first = jnp.zeros_like(rows) if call.window is None else jnp.maximum(rows - call.window, 0)
    return ((rows < queries) & (first < keys))[..., None]


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(gradient: Any) -> bool:
    return isinstance(gradient, jax.custom_derivatives.SymbolicZero)
