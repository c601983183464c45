"""What PEFT calls a text model's matrices: its architecture's names, below the wrappers of PEFT."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType

from flax import nnx

from ntkprefix.models.checkpoints import Source
from ntkprefix.models.families import TEXT, chatglm, glm
from ntkprefix.models.text import TextModel

_WRAPPERS = "base_model.model."
_MATRIX = re.compile(r"blocks\.(?:attention|mlp)\.(\w+)\.kernel")


@dataclasses.dataclass(frozen=True)
class Names:
    """Matrices of one architecture.

    Attributes:
        modules: the matrices in each of PyTorch's modules, by our name and with their place in it. `{layer}` in the
            module's name stands for the layer's number.
        ignored: regular expressions for tensors of parts that the model does without.
    """

    modules: Mapping[str, Mapping[str, Source]]
    ignored: tuple[str, ...]

    def layered(self, layers: int) -> dict[str, str]:
        """Every layer's module, and its name with `{layer}` in it."""
        return {module.format(layer=layer): module for module in self.modules for layer in range(layers)}


def names_to_write(model: TextModel, model_type: str | None) -> Names:
    """Of a model whose body lies where transformers puts it.

    Raises:
        ValueError: no known architecture, or several.
    """
    families = _families(model)
    known = {kind: family for kind, family in TEXT.items() if family in families}
    if model_type is None and len(families) == 1:
        family = families[0]
    elif model_type in known:
        family = known[model_type]
    elif model_type is None and families:
        raise ValueError(
            f"save_peft: expected model_type, one of {', '.join(known)}, got None: such models are alike, but not the "
            "names of their matrices."
        )
    else:
        fitting = f"one of {', '.join(known)}" if known else "one that has this model's parameters, which none has"
        raise ValueError(f"save_peft: expected as model_type {fitting}, got {model_type!r}.")
    # Without a head it is the body alone, which has no root.
    return _names(family, model, rooted=model.config.head != "none")


def names_in(tensors: Collection[str], model: TextModel, file: Path) -> Names:
    """Those of the architecture that most of a file's tensors belong to.

    Raises:
        ValueError: none belongs to one that the model may have.
    """
    candidates = [_names(family, model, rooted=rooted) for family in _families(model) for rooted in (True, False)]
    modules = {name.rpartition(".lora_")[0] for name in tensors}
    found = [len(modules & names.layered(model.config.layers).keys()) for names in candidates]
    if not any(found):
        examples = [next(iter(names.modules)).format(layer=0) for names in candidates[::2]]
        came = ", ".join(sorted(tensors)[:3]) or "none"
        raise ValueError(
            f"{file}: expected updates of matrices that the model has, such as "
            f"{' or '.join(examples) or 'those of a known architecture'}, found the tensors {came}."
        )
    return candidates[found.index(max(found))]


def _families(model: TextModel) -> list[ModuleType]:
    """Architectures that have all parameters of the model; those of GLM turn other pairs of channels than Llama's."""
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    rotary = model.config.block.rotary
    turned_as_glm = rotary is not None and rotary.interleaved
    return [
        family
        for family in dict.fromkeys(TEXT.values())
        if paths <= family.names(model.config).keys() and (family in (chatglm, glm)) == turned_as_glm
    ]


def _names(family: ModuleType, model: TextModel, *, rooted: bool) -> Names:
    cut = "" if rooted else family.ROOT
    modules: dict[str, dict[str, Source]] = {}
    for ours, source in family.names(model.config).items():
        match = _MATRIX.fullmatch(ours)
        if match is not None:
            module = _WRAPPERS + source.name.removesuffix(".weight").removeprefix(cut)
            modules.setdefault(module, {})[match[1]] = source
    ignored = (re.escape(_WRAPPERS) + pattern.removeprefix(re.escape(cut)) for pattern in family.IGNORED)
    return Names(modules, tuple(ignored))
