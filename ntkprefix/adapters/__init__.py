"""What can be trained on a frozen model. An adapter is a small pytree of parameters and a pure function from it.

A new adapter is one file with a frozen dataclass that has `init`, `adapt` and `project` (see `base.Adapter`), and one
line in `ADAPTERS`.
"""

from ntkprefix._extras import extra

with extra("models", "ntkprefix.adapters"):
    from ntkprefix.adapters.base import Adapter, Stack, count, step_factors
    from ntkprefix.adapters.features import FeatureAdapter
    from ntkprefix.adapters.files import load_adapter, save_adapter
    from ntkprefix.adapters.full import FullAdapter
    from ntkprefix.adapters.head import HeadAdapter
    from ntkprefix.adapters.lora import LoraAdapter
    from ntkprefix.adapters.measure import MeasureAdapter
    from ntkprefix.adapters.own import own_tokens
    from ntkprefix.adapters.peft import load_peft, save_peft
    from ntkprefix.adapters.prompt import PromptAdapter
    from ntkprefix.adapters.registry import ADAPTERS
    from ntkprefix.adapters.reparametrised import ReparametrisedAdapter
    from ntkprefix.adapters.spell import spelt
    from ntkprefix.adapters.tokens import TokenAdapter

__all__ = [
    "ADAPTERS",
    "Adapter",
    "FeatureAdapter",
    "FullAdapter",
    "HeadAdapter",
    "LoraAdapter",
    "MeasureAdapter",
    "PromptAdapter",
    "ReparametrisedAdapter",
    "Stack",
    "TokenAdapter",
    "count",
    "load_adapter",
    "load_peft",
    "own_tokens",
    "save_adapter",
    "save_peft",
    "spelt",
    "step_factors",
]
