"""Context distillation: a small prefix trained on what the model says next behind the whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from ntkprefix import checks
from ntkprefix.compress.refined import straight_through
from ntkprefix.models import TextModel
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts.precision import Dtype, integers, rounded, rounding
from ntkprefix.train import Checkpoints, TrainConfig, train

# Adam moves an entry by about the step size: keys and values are counted in units of their spread, which is at least
# this, and log-weights in units of one.
_EPSILON = 1e-6


def distil(
    model: TextModel,
    prefixes: PyTree,
    whole: TokenPrefix,
    texts: Int[Array, "B T"],
    *,
    start: int,
    config: TrainConfig,
    dtype: Dtype = "float32",
    on_step: Callable[[int, float], Any] | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[PyTree, np.ndarray]:
    r"""Train a prefix to give the next-token distribution that the prompt gives, on texts behind it.

    $$ \min_\theta \; \frac{1}{BT} \sum_{b,t} KL\big(p(\cdot \mid prompt, text_{b,\le t}) \,\|\,
       p_\theta(\cdot \mid text_{b,\le t})\big) $$

    over every array of the prefix, in units of its own spread, layer by layer and head by head.

    Args:
        model: causal, with a head.
        prefixes: where training starts, arrays with a leading `layers` axis.
        whole: the prompt's own keys and values, [L, M, K, H].
        texts: [B, T], without padding.
        start: the texts' first position.
        config: how to train; a row of data is a text.
        dtype: in which the prefix will be stored: small integers are rounded to at every step, with gradients as if
            they were not, and in the end.
        on_step: called after every step with the number of steps done and the loss.
        checkpoints: where training is kept; one that was stopped goes on from there.

    Returns:
        The trained prefix, and the loss before every step in nats per token.

    Raises:
        TypeError: as for the model, or anything but tokens in small integers.
        ValueError: as for the model, fewer texts than a batch, another dtype, or checkpoints of another run.
        FloatingPointError: the loss is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix import TokenPrefix
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import distil
        >>> from ntkprefix.train import TrainConfig
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> whole = TokenPrefix(*jax.random.normal(jax.random.key(0), (2, 2, 6, 3, 4)))  # or of read_prompt
        >>> first = TokenPrefix(whole.keys[:, :2], whole.values[:, :2])
        >>> config = TrainConfig(epochs=30, batch_size=2, learning_rate=0.1)
        >>> trained, losses = distil(model, first, whole, jnp.array([[2, 6, 5], [3, 5, 8]]), start=6, config=config)
        >>> trained.keys.shape, losses.shape, bool(losses[-1] < losses[0] / 2)
        ((2, 2, 3, 4), (30,), True)

    Source: context distillation into a trained cache (Cartridges, arXiv 2506.06266).
    """
    checks.one_of("distil", "dtype", dtype, get_args(Dtype))
    graph, weights = nnx.split(model)
    texts = np.asarray(texts)
    taught = [_hidden(graph, weights, jnp.asarray(row[None]), whole, jnp.asarray(start)) for row in texts]
    units = jax.tree.map(_unit, prefixes)
    frozen = {"weights": weights, "at": prefixes, "units": units, "start": jnp.asarray(start)}
    still = jax.tree.map(jnp.zeros_like, prefixes)
    data = (texts, np.concatenate([np.asarray(row) for row in taught]))
    trained = train(_loss(graph, dtype), still, frozen, data, config, on_step=on_step, checkpoints=checkpoints)
    return rounded(_moved(frozen, trained.params), dtype), trained.losses


@lru_cache
def _loss(graph: Any, dtype: Dtype) -> Callable[..., Float[Array, ""]]:
    """One function for one model, so that another prompt of the same sizes compiles nothing new."""

    def loss(by: PyTree, frozen: dict[str, Any], texts: Array, taught: Array) -> Float[Array, ""]:
        model = nnx.merge(graph, frozen["weights"])
        positions = frozen["start"] + jnp.arange(texts.shape[1])[None]
        positions = jnp.broadcast_to(positions, texts.shape)
        kept = _moved(frozen, by)
        if integers(dtype):
            kept = straight_through(rounding(dtype), kept)
        hidden = model(texts, prefixes=kept, positions=positions)

        @jax.checkpoint
        def of_row(pair: tuple[Array, Array]) -> Float[Array, ""]:
            wanted, found = (jax.nn.log_softmax(model.logits(states)) for states in pair)
            return jnp.mean(jnp.sum(jnp.exp(wanted) * (wanted - found), axis=-1))

        # A row at a time: the logits of a batch would be most of the memory.
        return jnp.mean(jax.lax.map(of_row, (taught, hidden)))

    return loss


@partial(jax.jit, static_argnames="graph")
def _hidden(graph, weights, texts, prefixes, start):
    positions = jnp.broadcast_to(start + jnp.arange(texts.shape[1])[None], texts.shape)
    return nnx.merge(graph, weights)(texts, prefixes=prefixes, positions=positions)


def _moved(frozen: dict[str, Any], by: PyTree) -> PyTree:
    return jax.tree.map(lambda at, unit, many: at + unit * many, frozen["at"], frozen["units"], by)


def _unit(leaf: Float[Array, "L *rest"]) -> Float[Array, "#L *ones"]:
    """Standard deviation of an array's entries, per layer and head."""
    if leaf.ndim < 4:  # log-weights
        return jnp.ones((1,) * leaf.ndim, leaf.dtype)
    deviations = leaf - jnp.mean(leaf, axis=(1, 3), keepdims=True)
    return jnp.sqrt(jnp.mean(deviations * deviations, axis=(1, 3), keepdims=True) + _EPSILON**2)
