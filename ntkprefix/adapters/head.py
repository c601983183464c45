"""Nothing of the model is changed; the task's head is all that trains."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import PRNGKeyArray, PyTree

from ntkprefix.models.adaptation import Adaptation
from ntkprefix.models.statistics import AttentionStatistics


@dataclasses.dataclass(frozen=True)
class HeadAdapter:
    """The baseline without parameters of its own: linear probing.

    Example:
        >>> from ntkprefix.adapters import HeadAdapter
        >>> vars(HeadAdapter().adapt({}))  # nothing of the model is changed
        {'prefixes': None, 'low_rank': None, 'prompt': None, 'weights': None}
    """

    def axes(self) -> dict[str, str]:
        """No parameters."""
        return {}

    def sizes(self) -> dict[str, int]:
        """Nor sizes."""
        return {}

    def init(self, key: PRNGKeyArray, model: Any, statistics: AttentionStatistics) -> PyTree:  # noqa: ARG002
        """No parameters."""
        return {}

    def adapt(self, params: PyTree) -> Adaptation:  # noqa: ARG002
        """Nothing."""
        return Adaptation()

    def project(self, params: PyTree) -> PyTree:
        """All are allowed."""
        return params
