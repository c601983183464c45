"""Tokens of many inputs as a prefix of encoders, compressed: `python -m experiments.token_sets --data-dir FOLDER`.

In every layer the set is all keys and values that a model computes of some images or texts, and other images or texts
attend to it beside themselves: a memory of examples. Every method gets the same set, the same inputs that it is fitted
to, and the same numbers; errors are those of further inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments import RESULTS, commands
from experiments.compression import WAYS, errors_of_layers
from experiments.real_kernels import pooled_tokens
from ntkprefix import checks
from ntkprefix.images import load_images, normalise
from ntkprefix.models import load_dinov2, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts import Calibration, ask, compress_layers
from ntkprefix.runs import environment, progress, read_json, write_json
from ntkprefix.texts import for_encoder, load_texts
from theory.pieces import Pieces

PATH = RESULTS / "token_sets.json"


@dataclass(frozen=True, kw_only=True)
class TokenSetsConfig:
    """What is compressed, and how far.

    Attributes:
        data_dir: folder of the texts of agnews, for MiniLM; the images are scikit-learn's digits.
        models: encoders.
        inputs: whose tokens are the set.
        asking: other inputs, which methods are fitted to.
        others: further ones, on which errors are measured.
        length: tokens of a text; shorter texts are left out.
        size: pixels of an image's side.
        budgets: sizes.
        methods: names among those of `experiments.compression` that train nothing.
        seeds: draws of all inputs, and of what is random in methods.
        out: folder of what has been measured; start again with the same one to go on.

    Raises:
        ValueError: a count below 1, a method of another name.
    """

    data_dir: Path
    models: tuple[Literal["dinov2", "minilm"], ...] = ("dinov2", "minilm")
    inputs: int = 64
    asking: int = 64
    others: int = 32
    length: int = 32
    size: int = 70
    budgets: tuple[str, ...] = ("8x", "32x")
    methods: tuple[str, ...] = (
        "ends", "uniform", "importance", "snapkv", "expected", "knorm", "keydiff", "kmeans", "wildcat", "measure",
        "favor", "elu", "matching", "matching-in-context", "matching-pursuit", "refined", "refined by need",
    )  # fmt: skip
    seeds: int = 3
    out: Path = Path("runs/token_sets")

    def __post_init__(self):
        counts = {name: getattr(self, name) for name in ("inputs", "asking", "others", "length", "size", "seeds")}
        checks.at_least(1, "token_sets", **counts)
        known = [name for name, way in WAYS.items() if not way.distil and way.share != "effect"]
        for method in self.methods:
            checks.one_of("token_sets", "method", method, known)


class _Set(NamedTuple):
    """A set, and what inputs ask of it: those that methods are fitted to, and those they are measured on."""

    whole: TokenPrefix
    asked: Calibration
    asked_after: Calibration


def main(config: TokenSetsConfig) -> dict[str, Any]:
    """Measure what is not measured yet and write `experiments/results/token_sets.json`.

    Returns:
        Configuration, environment, and a row for every model, draw, budget and method.

    Raises:
        FileNotFoundError: no texts there.
        ValueError: too few inputs.
    """
    where = environment()
    pieces = Pieces(config.out, str(where["commit"]))
    about = asdict(config) | {"data_dir": None, "out": None, "models": None, "budgets": None, "methods": None}
    rows = []
    with progress() as bar:
        of_model = config.seeds * len(config.budgets) * len(config.methods)
        task = bar.add_task("token sets", total=len(config.models) * of_model)
        for model in config.models:
            loaded = cache(partial(_loaded, model, config))
            for seed in range(config.seeds):
                # Made where something is not measured yet, and once.
                ready = cache(partial(_set, loaded, seed, config))
                for budget in config.budgets:
                    for method in config.methods:
                        bar.update(task, description=f"{model}, {budget}, {method}")
                        row = {"model": model, "seed": seed, "budget": budget, "method": method}
                        rows.append(row | pieces.get("row", about | row, partial(_row, ready, method, budget, seed)))
                        bar.advance(task)
    kept = {name: value for name, value in asdict(config).items() if name not in ("data_dir", "out")}
    write_json(PATH, {"config": kept, "environment": where, "rows": rows})
    return read_json(PATH)


def _loaded(model: str, config: TokenSetsConfig) -> tuple[Any, np.ndarray]:
    """A model and the inputs to draw from, as it takes them."""
    if model == "dinov2":
        return load_dinov2(), load_images("digits", size=config.size).x_train
    # Of the first few thousand, which is many more than are drawn.
    texts = for_encoder(load_texts("agnews", config.data_dir).train[:4000], load_tokenizer(model), config.length)
    return load_text_model(model), texts.tokens[texts.mask.all(axis=1)]


def _set(loaded: Callable[[], tuple[Any, np.ndarray]], seed: int, config: TokenSetsConfig) -> _Set:
    model, inputs = loaded()
    sizes = np.cumsum([config.inputs, config.asking, config.others])
    if len(inputs) < sizes[-1]:
        raise ValueError(f"token_sets: expected at least {sizes[-1]} inputs, got {len(inputs)}.")
    drawn = np.random.default_rng(seed).permutation(len(inputs))[: sizes[-1]]
    of_set, asking, others = (jnp.asarray(inputs[part]) for part in np.split(drawn, sizes[:-1]))
    whole = _tokens(model, of_set)
    return _Set(whole, *(model.observe(_taken(rows), ask, prefixes=whole) for rows in (asking, others)))


def _tokens(model: Any, rows: Array) -> TokenPrefix:
    images = rows.dtype == jnp.uint8
    return pooled_tokens(model, (rows,) if images else (rows, jnp.ones(rows.shape, bool)))[0]


def _taken(rows: Array) -> Array:
    """What a model takes."""
    return normalise(rows) if rows.dtype == jnp.uint8 else rows


def _row(ready: Callable[[], _Set], method: str, budget: str, seed: int) -> dict[str, Any]:
    way, (whole, asked, asked_after) = WAYS[method], ready()
    prefixes, report = compress_layers(
        whole, asked, method=way.method, budget=budget, share=way.share, dtype=way.dtype, seed=seed
    )
    errors = errors_of_layers(whole, asked_after, prefixes)
    inside = (errors >= report.low[:, None]) & (errors <= report.high[:, None])
    return {
        "ratio": round(report.ratio, 2),
        "tokens": whole.keys.shape[1],
        "error": round(float(errors.mean()), 5),
        "error_of_layers": [round(float(error), 4) for error in errors.mean(axis=(1, 2))],
        "estimated_error": round(float(report.error.mean()), 5),
        "coverage": round(float(inside.mean()), 4),
    }


if __name__ == "__main__":
    sys.exit(commands.run("token_sets", TokenSetsConfig, main, None))
