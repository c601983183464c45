"""Many examples as a prompt, and what of their help is kept: `python -m experiments.many_shot --data-root FOLDER`.

As many training examples as there is room for, each with its answer, are the prompt; test questions come after it, one
at a time. Measured is how often the model's likeliest answer is right, where answers are classes, and how likely the
right answer is. No setting was chosen here: they are those of `experiments.compression`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from experiments import RESULTS, commands
from experiments.compression import WAYS, Effort, Read, made, read_and_asked
from ntkprefix.models import TextModel, load_text_model
from ntkprefix.models.tokenizers import Tokenizer, load_tokenizer
from ntkprefix.runs import environment, progress, read_json, write_json
from ntkprefix.texts import Answers, Example, TextData, for_decoder, load_texts
from theory.pieces import Pieces

PATH = RESULTS / "many_shot.json"
# Between an example's answer and the next one's question.
_APART = "\n\n"
_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class ManyShotConfig(Effort):
    """Which tasks, how many examples, and how far they are compressed.

    Attributes:
        data_root: folder that has one folder for each data set, by its name.
        tasks: data sets.
        test_rows: of each.
        longest: tokens of a question and its answer; of what is longer the question's first tokens are left out.
        budget: size.
        methods: names among `experiments.compression.WAYS`.
        out: folder of what has been measured; start again with the same one to go on.
    """

    data_root: Path
    tasks: tuple[str, ...] = ("sst2", "agnews", "svamp")
    test_rows: int = 200
    longest: int = 96
    budget: str = "32x"
    methods: tuple[str, ...] = ("ends", "snapkv", "kmeans", "matching", "refined by effect", "ours")
    out: Path = Path("runs/many_shot")


def main(config: ManyShotConfig) -> dict[str, Any]:
    """Measure what is not measured yet and write `experiments/results/many_shot.json`.

    Returns:
        Configuration, environment, and for every task a row for no prompt, the whole prompt and every method.

    Raises:
        FileNotFoundError: no such data.
        ValueError: an unknown task or method.
    """
    unknown = set(config.methods) - set(WAYS)
    if unknown:
        raise ValueError(f"many_shot: expected methods among {', '.join(WAYS)}, got {', '.join(sorted(unknown))}.")
    where = environment()
    pieces = Pieces(config.out, str(where["commit"]))
    about = {name: value for name, value in asdict(config).items() if name not in ("data_root", "out")}
    settings = {name: value for name, value in about.items() if name not in ("tasks", "methods")}
    model, tokenizer = load_text_model(config.model), load_tokenizer(config.model)
    tasks = []
    with progress() as bar:
        total = bar.add_task("examples", total=len(config.tasks) * (2 + len(config.methods)))
        for task in config.tasks:
            data = load_texts(task, config.data_root / task)
            tokens, shown = examples(data.train, tokenizer, config.tokens, config.seed)
            answers = for_decoder(data.test[: config.test_rows], tokenizer, config.longest)
            ask = partial(asked, model, data, answers, tokenizer)
            ready = cache(partial(read_and_asked, model, tokens, config))
            rows = []
            for method in ("none", "all", *config.methods):
                bar.update(total, description=f"{task}, {method}")
                of = settings | {"task": task, "method": method}
                rows.append(
                    {"method": method} | pieces.get("row", of, partial(_row, model, ready, ask, method, config))
                )
                bar.advance(total)
            tasks.append({"task": task, "examples": shown, "tokens": len(tokens), "classes": len(data.choices)})
            tasks[-1] |= {"test_rows": len(answers.starts), "rows": rows}
    write_json(PATH, {"config": about, "environment": where, "tasks": tasks})
    return read_json(PATH)


def examples(train: Sequence[Example], tokenizer: Tokenizer, most: int, seed: int) -> tuple[Int[np.ndarray, " M"], int]:
    """As many examples as `most` tokens hold, in an order drawn at random: their tokens and their number."""
    held: list[int] = []
    shown = 0
    for index in np.random.default_rng(seed).permutation(len(train)):
        text = f"{train[index].prompt}{train[index].answer}{_APART}"
        tokens = tokenizer.encode(text, special=False)
        if len(held) + len(tokens) > most:
            break
        held, shown = held + tokens, shown + 1
    return np.asarray(held, np.int32), shown


def _row(
    model: TextModel,
    ready: Callable[[], Read],
    ask: Callable[[Any, int], dict[str, Any]],
    method: str,
    config: ManyShotConfig,
) -> dict[str, Any]:
    if method == "none":
        return ask(None, 0)
    read = ready()
    start = read.whole.keys.shape[1]
    if method == "all":
        return ask(read.whole, start)
    prefixes, report, seconds = made(model, read, method, config.budget, config)
    return ask(prefixes, start) | {"ratio": round(report.ratio, 2), "seconds": round(seconds, 2)}


def asked(
    model: TextModel, data: TextData, answers: Answers, tokenizer: Tokenizer, prefixes: Any, start: int
) -> dict[str, Any]:
    """How likely the right answers are behind a prefix, and which questions are answered right."""
    graph, weights = nnx.split(model)
    choices = jnp.asarray([tokenizer.encode(choice, special=False)[0] for choice in data.choices], jnp.int32)
    likelihoods, chosen = [], []
    for first in range(0, len(answers.starts), _BATCH):
        rows = [jnp.asarray(array[first : first + _BATCH]) for array in answers]
        likelihood, choice = _answers(graph, weights, *rows, choices, prefixes, jnp.asarray(start))
        likelihoods += np.asarray(likelihood, float).tolist()
        chosen += np.asarray(choice).tolist()
    found: dict[str, Any] = {"log_likelihood": round(float(np.mean(likelihoods)), 5)}
    if data.choices:
        right = [choice == example.label for choice, example in zip(chosen, data.test, strict=False)]
        found["right"] = "".join("01"[one] for one in right)
    return found


@partial(jax.jit, static_argnames="graph")
def _answers(graph, weights, tokens, starts, lengths, choices, prefixes, start):
    """Log-likelihoods of the answers, [B], and which first tokens are the likeliest, [B]."""
    model = nnx.merge(graph, weights)
    places = jnp.arange(tokens.shape[1])[None]
    positions = jnp.broadcast_to(start + places, tokens.shape)
    said = jax.nn.log_softmax(model.logits(model(tokens, prefixes=prefixes, positions=positions)))
    each = jnp.take_along_axis(said[:, :-1], tokens[:, 1:, None], axis=2)[..., 0]
    counted = (places[:, 1:] >= starts[:, None]) & (places[:, 1:] < lengths[:, None])
    before = jnp.take_along_axis(said, (starts - 1)[:, None, None], axis=1)[:, 0]
    likeliest: Array = jnp.argmax(before[:, choices], axis=1) if len(choices) else jnp.zeros_like(starts)
    return jnp.sum(jnp.where(counted, each, 0.0), axis=1), likeliest


if __name__ == "__main__":
    sys.exit(commands.run("many_shot", ManyShotConfig, main, None))
