"""LoRA: a trained low-rank update of chosen matrices in every layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.models.adaptation import Adaptation, LowRank
from ntkprefix.models.statistics import AttentionStatistics

# Which part of a block each matrix is in.
_PARTS = {"query": "attention", "key": "attention", "value": "attention", "out": "attention"}
_PARTS |= {"gate": "mlp", "up": "mlp", "down": "mlp"}


@dataclasses.dataclass(frozen=True)
class LoraAdapter:
    """x W + (alpha / r) (x A) B in every layer: L r (in + out) parameters for each target.

    Attributes:
        rank: r, at least 1.
        alpha: the update is scaled by alpha / r.
        targets: matrices, among query, key, value, out, gate, up, down.

    Raises:
        TypeError: a rank that is not an integer, an alpha that is not a number.
        ValueError: a rank below 1, an unknown target or none, an alpha that is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import LoraAdapter, count
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> adapter = LoraAdapter(rank=2)
        >>> params = adapter.init(jax.random.key(0), model, model.attention_statistics(tokens))
        >>> count(params)  # 2 layers of 2 targets, each 2 * (12 + 12)
        192
        >>> params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # as if trained
        >>> merged = adapter.merge(model, params)  # costs nothing in use
        >>> bool(jnp.allclose(merged(tokens), model(tokens, adapter=adapter.adapt(params)), atol=1e-5))
        True

    Source: LoRA (arXiv 2106.09685); A starts uniform within 1/sqrt(in) as in PEFT, B at zero.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def __post_init__(self):
        checks.at_least(1, "LoraAdapter", rank=self.rank, targets=len(self.targets))
        for target in self.targets:
            checks.one_of("LoraAdapter", "target", target, tuple(_PARTS))
        checks.finite("LoraAdapter", alpha=self.alpha)

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name; a target's sizes are its own."""
        return {
            f"{target}.{side}": f"L {target}_in r" if side == "down" else f"L r {target}_out"
            for target in self.targets
            for side in ("down", "up")
        }

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"r": self.rank}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """`down` [L, in, r] and `up` [L, r, out] of every target.

        Raises:
            ValueError: the target `gate` of a model whose MLPs have none.
        """
        params = {}
        for index, target in enumerate(self.targets):
            layers, inputs, outputs = kernel_of(model, target).shape
            bound = 1 / math.sqrt(inputs)
            shape = (layers, inputs, self.rank)
            down = jax.random.uniform(jax.random.fold_in(key, index), shape, minval=-bound, maxval=bound)
            params[target] = {"down": down, "up": jnp.zeros((layers, self.rank, outputs))}
        return params

    def adapt(self, params: PyTree) -> Adaptation:
        """The updates of all layers."""
        return Adaptation(low_rank={target: self._update(params[target]) for target in self.targets})

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params

    def merge(self, model: nnx.Module, params: PyTree, *, sign: float = 1.0) -> nnx.Module:
        """A copy of the model with the updates in its weights.

        Args:
            model: the frozen model, which stays as it is.
            params: trained parameters.
            sign: 1, or -1 to take out again what has been merged, up to rounding.

        Returns:
            The copy, which needs no adapter.

        Raises:
            ValueError: the target `gate` of a model whose MLPs have none.
        """
        merged = nnx.clone(model)
        for target in self.targets:
            kernel, update = kernel_of(merged, target), self._update(params[target])
            kernel.set_value(dataclasses.replace(update, scale=sign * update.scale).merged(kernel[...]))
        return merged

    def _update(self, params: PyTree) -> LowRank:
        return LowRank(params["down"], params["up"], jnp.full(params["down"].shape[0], self.alpha / self.rank))


def kernel_of(model: Any, target: str) -> nnx.Param:
    """The matrix of that name in all blocks, [L, in, out].

    Raises:
        ValueError: the model's MLPs have no gate.
    """
    part = getattr(model.blocks, _PARTS[target])
    if not hasattr(part, target):
        raise ValueError(f"LoraAdapter: expected targets that the model has, got {target!r}: its MLPs have no gate.")
    return getattr(part, target).kernel
