"""`ntkprefix plan`: what a training step costs on meshes of devices that need not be there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntkprefix import checks
from ntkprefix._options import default_told
from ntkprefix.adapters import FeatureAdapter, TokenAdapter
from ntkprefix.models import TextConfig
from ntkprefix.models.families import TEXT
from ntkprefix.models.families.settings import Settings, make_from
from ntkprefix.models.safetensors_folder import read_object
from ntkprefix.parallel import AXES, sizes_of
from ntkprefix.planning import Plan, plan

# `config.json` of models by names of ours. Llama 3 8B: arXiv 2407.21783, table 3, but for the vocabulary, which is
# rounded there: it is the one of the weights that were published.
MODELS: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
}

# On 8, 64 and 512 devices. Tokens are shared out as far as heads, and then they themselves, go; states need not be.
_MESHES = {
    "tokens": ("tensor=8", "tensor=8,prefix=8", "data=8,tensor=8,prefix=8"),
    "states": ("tensor=8", "data=8,tensor=8", "data=64,tensor=8"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to plan for.

    Attributes:
        model: "llama-8b", or the config.json of a causal language model, or its folder.
        tokens: length of a prefix of explicit tokens, beside the state that stands for one of any length.
        meshes: how devices share the work, such as data=8,tensor=8; docs/parallel.md has the names.
        batch_size: rows of a step, on all devices together.
        micro_rows: rows that a device works on at a time.
        length: tokens of a row.
        answer: tokens of a row that are the answer, which is learnt.
        dtype: of numbers in weights and matrix products; what trains is float32.
        json: print the plans as JSON.

    Raises:
        ValueError: a setting out of range.
    """

    model: str = "llama-8b"
    tokens: int = 2**20
    meshes: Annotated[tuple[str, ...], default_told("of 8, 64 and 512 devices")] = ()
    batch_size: int = 64
    micro_rows: int = 1
    length: int = 2048
    answer: int = 256
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    json: bool = False

    def __post_init__(self):
        sizes = {name: getattr(self, name) for name in ("tokens", "batch_size", "micro_rows", "length", "answer")}
        checks.at_least(1, "plan", **sizes)
        if self.answer >= self.length:
            raise ValueError(f"plan: expected an answer below the length of {self.length} tokens, got {self.answer}.")
        for mesh in self.meshes:
            sizes_of(mesh)


def main(config: Config) -> int:
    """Print the plans.

    Returns:
        0.

    Raises:
        FileNotFoundError: no such `config.json`.
        ValueError: as for `plans`.
    """
    rows = plans(config)
    if config.json:
        print(json.dumps([plain(name, row) for name, row in rows], indent=1))
        return 0
    for prefix in dict.fromkeys(name for name, _ in rows):
        _show(f"{config.model}, {prefix}", [cells(name, row) for name, row in rows if name == prefix])
    Console().print(f"One device's part. {told(config)}", highlight=False)
    return 0


def _show(title: str, plans_cells: Sequence[Sequence[str]]) -> None:
    """A column for each mesh. A window that is too narrow for it breaks its lines, which is better than cut numbers."""
    table, console = Table(title=Text(title), title_justify="left", show_header=False), Console()
    table.add_column()
    for _ in plans_cells:
        table.add_column(justify="right", no_wrap=True)
    for label, *values in list(zip(COLUMNS, *plans_cells, strict=True))[1:]:
        if any(values):
            table.add_row(label, *(value.replace(",", "\n") if label == "mesh" else value for value in values))
    anywhere = console.options.update(max_width=sys.maxsize)
    console.width = max(console.width, console.measure(table, options=anywhere).minimum)
    console.print(table)


def plans(config: Config) -> list[tuple[str, Plan]]:
    """A name for the prefix and a plan, for tokens and states on every mesh.

    Raises:
        FileNotFoundError: no such `config.json`.
        ValueError: it is no causal language model's, or devices cannot share out evenly what it asks for.
    """
    model = model_of(config.model).replace(
        dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.dtype), remat=True
    )
    if not model.block.causal or model.head == "none":
        raise ValueError(f"{config.model}: expected a causal language model, got an encoder. Give another --model.")
    options = {name: getattr(config, name) for name in ("batch_size", "length", "answer", "micro_rows")}
    adapters = (
        (f"{config.tokens:,} tokens", TokenAdapter(length=config.tokens), config.meshes or _MESHES["tokens"]),
        ("states", FeatureAdapter(), config.meshes or _MESHES["states"]),
    )
    try:
        return [
            (name, plan(model, adapter, sizes_of(mesh), **options))
            for name, adapter, meshes in adapters
            for mesh in meshes
        ]
    except ValueError as error:
        if config.meshes:
            raise
        raise ValueError(
            f"{error} Give --meshes that suit the model: the usual ones are those of large models."
        ) from error


def model_of(name: str) -> TextConfig:
    """Sizes of a model by a name of ours, or of a `config.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the configuration of a text model that is supported.
    """
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if name not in MODELS and not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected {', '.join(MODELS)}, or the config.json of a causal language model, or its folder; got "
            "no such file. A model's page on the Hugging Face hub has its config.json."
        )
    content = MODELS[name] if name in MODELS else read_object(path)
    settings = Settings(content, path)
    return make_from(settings, settings.choice("model_type", known=TEXT).read_config)


def told(config: Config) -> str:
    """What a table's numbers are, in words."""
    return (
        f"Memory in GB, operations and all-reduces of a step, and GB that a device sends along each axis in these. "
        f"{config.batch_size} rows of {config.length:,} tokens a step, {config.answer} of them the answer's; "
        f"{config.micro_rows} at a time on a device; weights and products in {config.dtype}."
    )


COLUMNS = (
    "prefix",
    "devices",
    "mesh",
    "weights",
    "adapter",
    "optimiser",
    "activations",
    "sum",
    "Tflop",
    "all-reduces",
    *(f"over {axis}" for axis in AXES),
)


def cells(name: str, row: Plan) -> list[str]:
    """A row of a table with `COLUMNS`, for one device and one step."""
    sizes = [*row.bytes.values(), sum(row.bytes.values())]
    mesh = ",".join(f"{axis}={size}" for axis, size in row.sizes.items() if size > 1)
    sent = [f"{row.sent(axis) / 1e9:.3g}" if row.sent(axis) else "" for axis in AXES]
    flops = f"{sum(row.flops.values()) / 1e12:,.0f}"
    memory = (f"{size / 1e9:.3g}" for size in sizes)
    return [name, str(row.devices), mesh, *memory, flops, f"{row.all_reduces:,}", *sent]


def plain(name: str, row: Plan) -> dict[str, Any]:
    """A plan as JSON has it."""
    return {
        "prefix": name,
        "devices": row.devices,
        "mesh": row.sizes,
        "micro_batches": row.micro_batches,
        "bytes": row.bytes,
        "flops": row.flops,
        "exchanges": [exchange._asdict() for exchange in row.exchanges],
    }
