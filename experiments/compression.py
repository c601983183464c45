"""What a compressed prompt loses, by method and size: `python -m experiments.compression --data-root FOLDER`.

A long text is the prompt, and what follows in it is what the model has to say. Every method gets the same prompt, the
same texts behind it as its calibration, and the same part of the prompt's bytes, or of those in 16 bits where it stores
4. No setting was chosen on the texts that are measured here.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from experiments import RESULTS, commands
from experiments.passages import passage
from ntkprefix.compress import METHODS, Report
from ntkprefix.compress.problem import Problem
from ntkprefix.compress.report import query_errors
from ntkprefix.models import TextModel, generate, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.prefixes import TokenPrefix
from ntkprefix.prompts import Calibration, calibrate, compress_layers, distil, packed, read_prompt
from ntkprefix.prompts.effects import scores
from ntkprefix.prompts.layers import Share
from ntkprefix.prompts.precision import Dtype
from ntkprefix.prompts.sizes import judging
from ntkprefix.prompts.texts import Kind, Texts, texts_behind, without_last
from ntkprefix.runs import environment, progress, read_json, write_json
from ntkprefix.train import TrainConfig
from theory.pieces import Pieces

# Tokens that are generated to see how fast that is.
_GENERATED = 32
PATH = RESULTS / "compression.json"
# Of few methods, in four bits and at several sizes.
SIZES = RESULTS / "compression_sizes.json"


@dataclass(frozen=True)
class Way:
    """A method, how its budget is shared out, whether the prefix is then trained on what is said next, and its bits."""

    method: str
    share: Share = "even"
    distil: bool = False
    dtype: Dtype = "float32"


_IN_FLOAT32: Mapping[str, Way] = MappingProxyType(
    {
        **{name: Way(name) for name in METHODS},
        "matching by need": Way("matching-in-context", "need"),
        "matching by effect": Way("matching-in-context", "effect"),
        "refined by need": Way("refined", "need"),
        "refined by effect": Way("refined", "effect"),
        "distilled": Way("matching-in-context", distil=True),
        "ours": Way("refined", "effect", distil=True),
    }
)
_IN_FOUR = (
    "importance", "snapkv", "kmeans", "matching", "matching-in-context", "matching by effect", "refined by need",
    "refined by effect", "ours",
)  # fmt: skip
WAYS: Mapping[str, Way] = MappingProxyType(
    {**_IN_FLOAT32, **{f"{name} in 4 bits": replace(_IN_FLOAT32[name], dtype="int4") for name in _IN_FOUR}}
)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What is spent on a prompt, the same for all methods.

    Attributes:
        model: causal.
        tokens: of a prompt.
        queries: of which texts methods are fitted to, as for `ntkprefix compress`.
        rows: texts of each kind.
        length: their tokens.
        epochs: passes over the rows in which ways that distil train.
        learning_rate: of that.
        seed: of all that is random.
    """

    model: str = "smollm2"
    tokens: int = 4096
    queries: Kind = "both"
    rows: int = 32
    length: int = 128
    epochs: int = 2
    learning_rate: float = 0.003
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CompressionConfig(Effort):
    """What is compressed, and how far.

    Attributes:
        data_root: folder that has `books` and `wikitext`.
        texts: files in it; each is cut into prompt and continuation at every place.
        continuation: tokens after it, on which everything is measured.
        places: shares of a text that are left out before a prompt begins; the seed is one more at each than at the one
            before.
        budgets: sizes.
        methods: names among `WAYS`.
        out: folder of what has been measured; start again with the same one to go on.
        results: file to write.
    """

    data_root: Path
    texts: tuple[str, ...] = ("books/moby_dick.txt", "books/pride_and_prejudice.txt", "wikitext/test.txt")
    continuation: int = 512
    places: tuple[float, ...] = (0.3,)
    budgets: tuple[str, ...] = ("32x",)
    methods: tuple[str, ...] = (
        "ends", "uniform", "importance", "snapkv", "expected", "knorm", "keydiff", "kmeans", "wildcat", "measure",
        "favor", "elu", "matching", "matching-in-context", "matching-pursuit", "matching by need",
        "matching by effect", "refined", "refined by need", "refined by effect", "distilled", "ours",
        *(f"{name} in 4 bits" for name in _IN_FOUR),
    )  # fmt: skip
    out: Path = Path("runs/compression")
    results: Path = PATH


class Read(NamedTuple):
    """A prompt, and what all methods share; and what methods made of it, each once."""

    whole: TokenPrefix
    texts: Texts
    asked: Calibration
    compressed: Callable[[Way, str], tuple[Any, Report, float]]
    seconds: float


class Prompt(NamedTuple):
    """One place in one text, and what is measured there."""

    read: Read
    after: Array
    asked_after: Calibration
    full: Float[Array, "T vocabulary"]


def main(config: CompressionConfig) -> dict[str, Any]:
    """Measure what is not measured yet and write the results.

    Returns:
        Configuration, environment, for every text and place the log-likelihoods with and without the prompt, and a row
        for every text, place, budget and method.

    Raises:
        FileNotFoundError: no such text.
        ValueError: an unknown method, or a text that is too short.
    """
    unknown = set(config.methods) - set(WAYS)
    if unknown:
        raise ValueError(f"compression: expected methods among {', '.join(WAYS)}, got {', '.join(sorted(unknown))}.")
    where = environment()
    pieces = Pieces(config.out, str(where["commit"]))
    elsewhere = ("data_root", "out", "results")
    choices = dict.fromkeys((*elsewhere, "methods", "budgets", "texts", "places"))
    texts, rows = [], []
    model, tokenizer = load_text_model(config.model), load_tokenizer(config.model)
    with progress() as bar:
        cases = list(itertools.product(config.budgets, config.methods))
        task = bar.add_task("prompts", total=len(config.texts) * len(config.places) * len(cases))
        for text, (at, place) in itertools.product(config.texts, enumerate(config.places)):
            seeded = replace(config, seed=config.seed + at)
            needed = config.tokens + config.continuation + 1
            tokens = passage(tokenizer, config.data_root / text, place, needed)
            # Read where something is not measured yet, and once.
            ready = cache(partial(_prompt, model, tokens, seeded))
            which = {"text": text, "place": place}
            about = asdict(seeded) | choices | which
            texts.append(which | pieces.get("text", about, partial(_of_text, model, ready, seeded)))
            for budget, method in cases:
                bar.update(task, description=f"{text} from {place:.0%} on, {budget}, {method}")
                measure = partial(_row, model, ready, method, budget, texts[-1], seeded)
                case = {"method": method, "budget": budget}
                rows.append(which | case | pieces.get("row", about | case, measure))
                bar.advance(task)
    config_of_file = {name: value for name, value in asdict(config).items() if name not in elsewhere}
    write_json(config.results, {"config": config_of_file, "environment": where, "texts": texts, "rows": rows})
    return read_json(config.results)


def _prompt(model: TextModel, tokens: np.ndarray, config: CompressionConfig) -> Prompt:
    read, after = read_and_asked(model, tokens[: config.tokens], config), jnp.asarray(tokens[None, config.tokens :])
    asked_after = calibrate(model, after[:, :-1], read.whole, start=config.tokens)
    return Prompt(read, after, asked_after, _said(model, after, read.whole, config.tokens))


def read_and_asked(model: TextModel, tokens: Int[np.ndarray, " M"], effort: Effort) -> Read:
    """A prompt's own keys and values, and what texts ask behind it."""
    began = time.perf_counter()
    whole = read_prompt(model, jnp.asarray(tokens[None]))
    length, seed = len(tokens), effort.seed
    sizes = {"rows": effort.rows, "length": effort.length}
    document = jnp.asarray(tokens[None])
    texts = texts_behind(model, effort.queries, document, without_last(whole), start=length - 1, seed=seed, **sizes)
    asked = jax.block_until_ready(calibrate(model, texts.tokens, texts.seen(whole), start=length))
    seconds = time.perf_counter() - began

    @cache
    def felt() -> tuple[np.ndarray, float]:
        began = time.perf_counter()
        return scores(model, judging(texts), whole, start=length, seed=seed), time.perf_counter() - began

    @cache
    def compressed(way: Way, budget: str) -> tuple[Any, Report, float]:
        """What a way makes before it trains anything."""
        found, seconds = felt() if way.share == "effect" else (None, 0.0)
        began = time.perf_counter()
        how: dict[str, Any] = {"method": way.method, "share": way.share, "dtype": way.dtype, "budget": budget}
        how["felt"] = None if found is None else lambda: found
        made = compress_layers(whole, asked, seed=seed, **how)
        return *jax.block_until_ready(made), seconds + time.perf_counter() - began

    return Read(whole, texts, asked, compressed, seconds)


def made(model: TextModel, read: Read, method: str, budget: str, effort: Effort) -> tuple[Any, Report, float]:
    """A way's prefixes, their report, and the seconds that it took: of both parts, where a prefix is then trained."""
    way = WAYS[method]
    prefixes, report, seconds = read.compressed(replace(way, distil=False), budget)
    if not way.distil:
        return prefixes, report, seconds
    began = time.perf_counter()
    train = TrainConfig(epochs=effort.epochs, batch_size=4, learning_rate=effort.learning_rate, weight_decay=0.0)
    start = read.whole.keys.shape[1]
    taught = read.texts.fitted().taught(start).tokens
    prefixes, _ = distil(model, prefixes, read.whole, taught, start=start, config=train, dtype=way.dtype)
    return jax.block_until_ready(prefixes), report, seconds + time.perf_counter() - began


def pace(model: TextModel, first: Int[Array, "1 1"], prefixes: Any, start: int) -> float:
    """Seconds for each token that is generated behind a prefix."""
    again = partial(generate, model, first, _GENERATED, prefixes=prefixes, start=start)
    jax.block_until_ready(again().tokens)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(again().tokens)
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)) / _GENERATED


def megabytes(prefixes: Any) -> float:
    """What a prefix takes in memory."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(prefixes)) / 1e6


def _said(model: TextModel, after: Array, prefixes: Any, start: int) -> Float[Array, "T vocabulary"]:
    graph, weights = nnx.split(model)
    return _log_probabilities(graph, weights, after[:, :-1], prefixes, jnp.asarray(start))[0]


@partial(jax.jit, static_argnames="graph")
def _log_probabilities(graph, weights, tokens, prefixes, start):
    model = nnx.merge(graph, weights)
    positions = start + jnp.arange(tokens.shape[1])[None]
    return jax.nn.log_softmax(model.logits(model(tokens, prefixes=prefixes, positions=positions)))


def _likelihood(said: Float[Array, "T vocabulary"], after: Array) -> float:
    return float(jnp.mean(jnp.take_along_axis(said, after[0, 1:, None], axis=1)))


def _of_text(model: TextModel, ready: Callable[[], Prompt], config: CompressionConfig) -> dict[str, Any]:
    prompt = ready()
    without = _likelihood(_said(model, prompt.after, None, config.tokens), prompt.after)
    return {
        "full": round(_likelihood(prompt.full, prompt.after), 5),
        "without": round(without, 5),
        "seconds": round(prompt.read.seconds, 2),
        "seconds_per_token": round(_pace(model, prompt, prompt.read.whole, config), 5),
        "seconds_per_token_without": round(_pace(model, prompt, None, config), 5),
        "megabytes": round(megabytes(prompt.read.whole), 2),
    }


def _pace(model: TextModel, prompt: Prompt, prefixes: Any, config: CompressionConfig) -> float:
    return pace(model, prompt.after[:, :1], prefixes, config.tokens)


def _row(
    model: TextModel,
    ready: Callable[[], Prompt],
    method: str,
    budget: str,
    text: dict[str, Any],
    config: CompressionConfig,
) -> dict[str, Any]:
    prompt = ready()
    prefixes, report, seconds = made(model, prompt.read, method, budget, config)
    said = _said(model, prompt.after, prefixes, config.tokens)
    likelihood = _likelihood(said, prompt.after)
    divergence = jnp.mean(jnp.sum(jnp.exp(prompt.full) * (prompt.full - said), axis=-1))
    errors = errors_of_layers(prompt.read.whole, prompt.asked_after, prefixes)
    held = packed(prefixes, WAYS[method].dtype)
    inside = (errors >= report.low[:, None]) & (errors <= report.high[:, None])
    return {
        "ratio": round(report.ratio, 2),
        "log_likelihood": round(likelihood, 5),
        "kept": round((likelihood - text["without"]) / (text["full"] - text["without"]), 4),
        "divergence": round(float(divergence), 5),
        "error": round(float(errors.mean()), 5),
        "error_of_layers": [round(float(error), 4) for error in errors.mean(axis=(1, 2))],
        "estimated_error": round(float(report.error.mean()), 5),
        "coverage": round(float(inside.mean()), 4),
        "seconds": round(seconds, 2),
        "seconds_per_token": round(_pace(model, prompt, held, config), 5),
        "megabytes": round(megabytes(held), 2),
    }


def errors_of_layers(whole: TokenPrefix, asked: Calibration, prefixes: Any) -> Float[Array, "L Q N"]:
    """Relative errors of attention outputs, layer by layer, where a prefix takes the place of all tokens."""
    parts = (whole.keys, whole.values, asked, prefixes)
    layers = range(len(whole.keys))
    return jnp.stack([_errors_of_layer(*jax.tree.map(lambda leaf, at=at: leaf[at], parts)) for at in layers])


@jax.jit
def _errors_of_layer(keys, values, asked, prefix):
    return query_errors(Problem(keys, values, asked.queries, asked.beside, keys.shape[-1] ** -0.5), prefix)


if __name__ == "__main__":
    sys.exit(commands.run("compression", CompressionConfig, main, None))
