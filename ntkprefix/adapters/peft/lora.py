"""PEFT's LoRA: two small matrices for every module of every layer, `lora_A` [r, in] and `lora_B` [out, r]."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from ntkprefix import checks
from ntkprefix.adapters.lora import LoraAdapter, kernel_of
from ntkprefix.adapters.peft.names import Names, names_in, names_to_write
from ntkprefix.models.checkpoints import NameMap, Source, fill
from ntkprefix.models.families.settings import Settings
from ntkprefix.models.text import TextModel

# Read here, or of no consequence once an adapter is trained: which modules it leaves out and how it started.
OPTIONS = {"r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "bias", "fan_in_fan_out"}
OPTIONS |= {"lora_dropout", "init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}
OPTIONS |= {"qalora_group_size", "layers_pattern", "megatron_core"}
# After any other start the adapter belongs to a model whose weights have changed too.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def read(
    settings: Settings, model: TextModel, tensors: Mapping[str, np.ndarray], file: Path
) -> tuple[LoraAdapter, PyTree]:
    """The adapter of all matrices that the file updates.

    Raises:
        ValueError: an option that is not supported, or tensors that are not those of the model.
    """
    settings.fixed(bias="none")
    start = settings.content.get("init_lora_weights", True)
    if start not in _STARTS:
        raise ValueError(
            f"{settings.path}: expected init_lora_weights to be one of {', '.join(map(repr, _STARTS))}, got "
            f"{reprlib.repr(start)}: it changes the model's own weights. Convert the adapter to plain LoRA with PEFT."
        )
    rank, alpha = settings.count("r"), settings.number("lora_alpha")
    if settings.flag("use_rslora", default=False):
        alpha *= math.sqrt(rank)  # alpha / sqrt(r) is the scale
    names = names_in(tensors, model, file)
    modules = _updated(names, model.config.layers, tensors, settings)
    sources: dict[str, Source] = {}
    for module in modules:
        for target, source in names.modules[module].items():
            sources |= _sources(module, target, source)
    adapter = LoraAdapter(rank=rank, alpha=alpha, targets=tuple(t for module in modules for t in names.modules[module]))
    return adapter, _filled(adapter, model, sources, tensors, file, names.ignored)


def written(
    adapter: LoraAdapter, arrays: Mapping[str, np.ndarray], model: TextModel, model_type: str | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Options and tensors of the file.

    Raises:
        ValueError: arrays of another adapter or model; an architecture that is not known.
    """
    _check(adapter, arrays, model)
    names = names_to_write(model, model_type)
    updates = {}
    for module, matrices in names.modules.items():
        own = {target: source for target, source in matrices.items() if target in adapter.targets}
        if own:
            updates[module] = _stacked(own, arrays)
    rank = max(down.shape[-1] for down, _ in updates.values())
    alpha = adapter.alpha * rank / adapter.rank
    tensors: dict[str, np.ndarray] = {}
    for module, (down, up) in updates.items():
        more = rank - down.shape[-1]
        down, up = np.pad(down, ((0, 0), (0, 0), (0, more))), np.pad(up, ((0, 0), (0, more), (0, 0)))
        for layer in range(model.config.layers):
            start = module.format(layer=layer)
            tensors |= {f"{start}.lora_A.weight": down[layer].T, f"{start}.lora_B.weight": up[layer].T}
    options = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "target_modules": _target_modules(updates, names),
        "bias": "none",
        # Whether PyTorch's module keeps its matrix as [in, out].
        "fan_in_fan_out": any(source.axes is None for own in names.modules.values() for source in own.values()),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
    }
    return options, tensors


def _updated(names: Names, layers: int, tensors: Collection[str], settings: Settings) -> list[str]:
    """Modules with tensors, and those that should have some: all of their layers' are then asked for."""
    asked = settings.content.get("target_modules")
    if not isinstance(asked, str) and not (isinstance(asked, list) and all(isinstance(name, str) for name in asked)):
        raise ValueError(
            f"{settings.path}: expected target_modules to be names of modules or one regular expression, got "
            f"{reprlib.repr(asked)}."
        )
    layered = names.layered(layers)
    there = {layered[module] for name in tensors if (module := name.rpartition(".lora_")[0]) in layered}
    # An expression from a file is not run: it can take forever.
    if isinstance(asked, list) and not settings.content.get("exclude_modules"):
        there |= {module for module in names.modules if any(module.endswith(f".{name}") for name in asked)}
    return [module for module in names.modules if module in there]


def _sources(module: str, target: str, source: Source) -> dict[str, Source]:
    return {
        f"{target}.down": Source(f"{module}.lora_A.weight", (1, 0)),
        f"{target}.up": Source(f"{module}.lora_B.weight", (1, 0), source.part),
    }


def _filled(
    adapter: LoraAdapter,
    model: TextModel,
    sources: NameMap,
    tensors: Mapping[str, np.ndarray],
    file: Path,
    ignored: Collection[str],
) -> PyTree:
    def make() -> nnx.Module:
        empty = {}
        for target in adapter.targets:
            layers, inputs, outputs = kernel_of(model, target).shape
            shapes = {"down": (layers, inputs, adapter.rank), "up": (layers, adapter.rank, outputs)}
            empty[target] = nnx.Dict({side: nnx.Param(jnp.zeros(shape)) for side, shape in shapes.items()})
        return nnx.Dict(empty)

    return nnx.to_pure_dict(nnx.state(fill(make, sources, tensors, file=file, ignored=ignored)))


def _check(adapter: LoraAdapter, arrays: Mapping[str, np.ndarray], model: TextModel) -> None:
    sizes = {"L": model.config.layers, **adapter.sizes()}
    for target in adapter.targets:
        sizes[f"{target}_in"], sizes[f"{target}_out"] = kernel_of(model, target).shape[1:]
    try:
        checks.stored_arrays("LoraAdapter", adapter.axes(), sizes, arrays)
    except ValueError as error:
        raise ValueError(f"save_peft: {error}.") from error


def _stacked(own: Mapping[str, Source], arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One `down` [L, in, r] and `up` [L, r, out] for the matrices of one module."""
    downs, ups = ([arrays[f"{target}.{side}"] for target in own] for side in ("down", "up"))
    shared = all(np.array_equal(down, downs[0]) for down in downs)
    layers, rank, outputs = ups[0].shape
    part = next(iter(own.values())).part
    wide = rank if shared else rank * len(own)
    up = np.zeros((layers, wide, outputs if part is None else part.whole), np.float32)
    for index, (source, own_up) in enumerate(zip(own.values(), ups, strict=True)):
        rows = slice(None) if shared else slice(index * rank, (index + 1) * rank)
        columns = slice(None) if source.part is None else slice(source.part.start, source.part.stop)
        up[:, rows, columns] = own_up
    return (downs[0] if shared else np.concatenate(downs, axis=-1)), up


def _target_modules(chosen: Collection[str], names: Names) -> list[str] | str:
    """Ends of the modules' names; a regular expression of whole names where another module ends like one of them."""
    paths = {module: module.rpartition("{layer}.")[2] for module in names.modules}
    shared = Counter(path.rpartition(".")[2] for path in paths.values())
    ends = []
    for module in chosen:
        last = paths[module].rpartition(".")[2]
        ends.append(last if shared[last] == 1 else paths[module])
    if {module for module in paths if any(module.endswith(f".{end}") for end in ends)} == set(chosen):
        return ends
    return rf".*\.\d+\.({'|'.join(re.escape(paths[module]) for module in chosen)})"
