"""Adapters by name, for configurations and files."""

from __future__ import annotations

from typing import Any

from ntkprefix.adapters.features import FeatureAdapter
from ntkprefix.adapters.full import FullAdapter
from ntkprefix.adapters.head import HeadAdapter
from ntkprefix.adapters.lora import LoraAdapter
from ntkprefix.adapters.measure import MeasureAdapter
from ntkprefix.adapters.prompt import PromptAdapter
from ntkprefix.adapters.reparametrised import ReparametrisedAdapter
from ntkprefix.adapters.tokens import TokenAdapter

ADAPTERS: dict[str, type[Any]] = {
    "head": HeadAdapter,
    "full": FullAdapter,
    "lora": LoraAdapter,
    "prompt": PromptAdapter,
    "tokens": TokenAdapter,
    "reparametrised": ReparametrisedAdapter,
    "features": FeatureAdapter,
    "measure": MeasureAdapter,
}
