"""Prompt tuning: trained tokens in front of the input."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix import checks
from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics


@dataclasses.dataclass(frozen=True)
class PromptAdapter:
    """Trained tokens at the input: P width parameters. They are computed with in every layer, unlike a prefix.

    Attributes:
        length: P, at least 1.
        deviation: standard deviation of the start.

    Raises:
        TypeError: a length that is not an integer, a deviation that is not a number.
        ValueError: a length below 1, a negative or infinite deviation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.adapters import PromptAdapter, count
        >>> from ntkprefix.models import BlockConfig, TextConfig, TextModel
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True)
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block, positions=16), rngs=nnx.Rngs(0))
        >>> tokens = jnp.array([[3, 1, 4, 1, 5]])
        >>> adapter = PromptAdapter(length=3)
        >>> params = adapter.init(jax.random.key(0), model, model.attention_statistics(tokens))
        >>> count(params)  # 3 tokens of 12 channels
        36
        >>> model(tokens, adapter=adapter.adapt(params)).shape  # the prompt is left out of the output
        (1, 5, 12)

    Source: prompt tuning (arXiv 2104.08691); for images VPT (arXiv 2203.12119).
    """

    length: int = 10
    deviation: float = 0.02

    def __post_init__(self):
        checks.at_least(1, "PromptAdapter", length=self.length)
        checks.finite("PromptAdapter", least=0.0, deviation=self.deviation)

    def axes(self) -> dict[str, str]:
        """Axis letters of every parameter, by its name."""
        return {"prompt": "P width"}

    def sizes(self) -> dict[str, int]:
        """The letters whose sizes the options tell."""
        return {"P": self.length}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """Gaussian `prompt` [P, width]."""
        return {"prompt": self.deviation * jax.random.normal(key, (self.length, model.config.block.width))}

    def adapt(self, params: PyTree) -> Adaptation:
        """The prompt."""
        return Adaptation(prompt=params["prompt"])

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params
