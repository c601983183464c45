"""What merging, appending and subtracting compressed prompts costs: `python -m experiments.algebra --data-root FOLDER`.

Two documents, and two kinds of questions on each: how likely is the text that follows in it, and how likely is a word
that stands in this document once and in the other one never, behind the words in front of it. Each is asked behind the
document by itself, behind both read one after the other, and behind what stands for both in every way there is. No
setting was chosen on these texts but the sizes, so that it takes minutes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import RESULTS, commands
from experiments.passages import passage
from experiments.questions import Questions, answers, following, own_words
from ntkprefix.compress import KeepFirst, Sums
from ntkprefix.compress.problem import Problem
from ntkprefix.compress.report import query_errors
from ntkprefix.models import TextModel, load_text_model
from ntkprefix.models.tokenizers import Tokenizer, load_tokenizer
from ntkprefix.prompts import (
    Calibration,
    JoinedPrompt,
    append_document,
    calibrate,
    compress_layers,
    merge_prompts,
    read_prompt,
    recompress_prompt,
    shift_prompt,
    subtract_prompt,
)
from ntkprefix.prompts.texts import texts_behind, without_last
from ntkprefix.runs import environment, progress, read_json, write_json
from theory.pieces import Pieces

PATH = RESULTS / "algebra.json"


@dataclass(frozen=True, kw_only=True)
class AlgebraConfig:
    """Which documents, and how far they are compressed.

    Attributes:
        data_root: folder that has `books` and `wikitext`.
        texts: two files in it.
        model: causal, one that turns its keys by their positions.
        tokens: of a document.
        continuation: tokens after it.
        places: where documents begin, as shares of their text: one pair for each.
        rows: texts on a document that methods are fitted to: half of them the model's own, half pieces of it.
        length: their tokens.
        budget: of a document, as a ratio: `4x`.
        method: among `METHODS`; it makes tokens.
        questions: words that are asked for in each document.
        cue: tokens in front of each.
        seed: of all that is random.
        out: folder of what has been measured; start again with the same one to go on.
    """

    data_root: Path
    texts: tuple[str, str] = ("books/moby_dick.txt", "wikitext/test.txt")
    model: str = "smollm2"
    tokens: int = 1024
    continuation: int = 256
    places: tuple[float, ...] = (0.3, 0.5, 0.7)
    rows: int = 32
    length: int = 64
    budget: str = "4x"
    method: str = "matching-in-context"
    questions: int = 24
    cue: int = 16
    seed: int = 0
    out: Path = Path("runs/algebra")


class Pair:
    """Two documents at one place, and what is made of them, each when it is first wanted and once.

    Args:
        model: causal.
        tokenizer: of the model.
        texts: paths of the two files.
        place: where documents begin.
        config: of the experiment.
    """

    def __init__(self, model: TextModel, tokenizer: Tokenizer, texts: list[Path], place: float, config: AlgebraConfig):
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self._exact: dict[tuple[str, int], tuple[JoinedPrompt, Calibration]] = {}
        needed = config.tokens + config.continuation + 1
        found = [passage(tokenizer, path, place, needed) for path in texts]
        self.documents = [jnp.asarray(tokens[None, : config.tokens]) for tokens in found]
        self.after = [tokens[config.tokens :] for tokens in found]

    @cached_property
    def questions(self) -> list[tuple[Questions, Questions]]:
        """On each document: the text after it, and words of its own."""
        texts = [self.tokenizer.decode(document[0]) for document in self.documents]
        found = []
        for own in (0, 1):
            sizes = {"questions": self.config.questions, "cue": self.config.cue}
            words = own_words(self.tokenizer, np.asarray(self.documents[own][0]), texts[1 - own], **sizes)
            found.append((following(self.after[own]), words))
        return found

    @cached_property
    def whole(self) -> list[JoinedPrompt]:
        """Each document, read by itself."""
        return [JoinedPrompt(read_prompt(self.model, each), self.config.tokens) for each in self.documents]

    @cached_property
    def texts(self) -> list[Array]:
        """What asks each document what others will: its continuations and its pieces, mixed."""
        found = []
        for document, whole in zip(self.documents, self.whole, strict=True):
            sizes = {"rows": self.config.rows // 2, "length": self.config.length, "seed": self.config.seed}
            before, start = without_last(whole.prefixes), document.shape[1] - 1
            found.append(texts_behind(self.model, "both", document, before, start=start, **sizes).tokens)
        return found

    @cached_property
    def asked(self) -> list[Calibration]:
        """What these texts ask behind each document."""
        pairs = zip(self.texts, self.whole, strict=True)
        return [calibrate(self.model, texts, whole.prefixes, start=whole.start) for texts, whole in pairs]

    def compressed(self, method: Any, budget: str) -> list[JoinedPrompt]:
        """Each document by itself."""
        made = []
        for whole, asked in zip(self.whole, self.asked, strict=True):
            options = {"method": method, "budget": budget, "seed": self.config.seed}
            made.append(JoinedPrompt(compress_layers(whole.prefixes, asked, **options)[0], whole.start))
        return made

    @cached_property
    def small(self) -> list[JoinedPrompt]:
        """Each document, compressed by itself."""
        return self.compressed(self.config.method, self.config.budget)

    @cached_property
    def smaller(self) -> list[JoinedPrompt]:
        """Each within half the budget."""
        return self.compressed(self.config.method, f"{2 * float(self.config.budget.removesuffix('x')):g}x")

    @cached_property
    def states(self) -> list[JoinedPrompt]:
        """Each as its first tokens and sums of features around one point, within the same budget."""
        return self.compressed(KeepFirst(Sums("favor", recentre=False)), self.config.budget)

    @cached_property
    def both(self) -> JoinedPrompt:
        """Both, the second read behind the first."""
        return self.behind(self.whole[0], 1)

    def behind(self, prompt: JoinedPrompt, index: int) -> JoinedPrompt:
        """A prompt of exact tokens with a document behind it."""
        more = read_prompt(self.model, self.documents[index], prefixes=prompt.prefixes, start=prompt.start)
        return JoinedPrompt(prompt.prefixes + more, prompt.start + self.config.tokens)

    def appended(self, prompt: JoinedPrompt, index: int, **options: Any) -> JoinedPrompt:
        """A prompt with a document compressed behind it."""
        made = append_document(
            self.model, prompt, self.documents[index], texts=self.texts[index], seed=self.config.seed, **options
        )
        return JoinedPrompt(made.prefixes, made.start)

    @cached_property
    def common(self) -> JoinedPrompt:
        """A beginning of one token, the end of a line, for both."""
        line = jnp.asarray([self.tokenizer.encode("\n")], jnp.int32)
        return JoinedPrompt(read_prompt(self.model, line), line.shape[1])

    @cached_property
    def behind_common(self) -> list[JoinedPrompt]:
        """Each document, read behind the common beginning."""
        return [self.behind(self.common, index) for index in (0, 1)]

    @cached_property
    def small_behind_common(self) -> list[JoinedPrompt]:
        """Each document, compressed behind the common beginning."""
        options = {"budget": self.config.budget, "method": self.config.method}
        return [self.appended(self.common, index, **options) for index in (0, 1)]

    @cached_property
    def merged(self) -> JoinedPrompt:
        """Both, compressed and merged."""
        return merge_prompts(self.model, *self.small)

    @cached_property
    def appended_small(self) -> JoinedPrompt:
        """The first, compressed, and the second compressed behind it."""
        return self.appended(self.small[0], 1, budget=self.config.budget, method=self.config.method)

    @cached_property
    def appended_states(self) -> JoinedPrompt:
        """The first as a state, which has taken in the second."""
        return self.appended(self.states[0], 1)

    @cached_property
    def merged_states(self) -> JoinedPrompt:
        """Both as one state."""
        return merge_prompts(self.model, *self.states, shift=False)

    @cached_property
    def refitted(self) -> JoinedPrompt:
        """Both, merged, and fitted again within the budget of one."""
        texts = np.random.default_rng(self.config.seed).permutation(np.concatenate(self.texts))
        made = recompress_prompt(
            self.model, self.merged, jnp.asarray(texts), budget="2x", method=self.config.method, seed=self.config.seed
        )
        return JoinedPrompt(made.prefixes, made.start)

    def without(self, both: JoinedPrompt, parts: list[JoinedPrompt], own: int) -> JoinedPrompt:
        """Two that were merged, less the one that is not asked about."""
        by = self.config.tokens if both.start > self.config.tokens else 0
        other = shift_prompt(self.model, parts[1], by) if own == 0 else parts[0]
        return subtract_prompt(both, other, start=self.config.tokens if own == 0 else None)

    def exactly(self, which: str, own: int) -> tuple[JoinedPrompt, Calibration]:
        """Exact tokens, and what the text after a document asks behind them, layer by layer.

        Args:
            which: `own`, the document; `both`, one read behind the other; `common`, these behind the common beginning.
            own: the document.
        """
        if (which, own) not in self._exact:
            if which == "common":
                exact = self.behind(self.behind_common[0], 1)
            else:
                exact = self.whole[own] if which == "own" else self.both
            asked = calibrate(self.model, jnp.asarray(self.after[own][None, :-1]), exact.prefixes, start=exact.start)
            self._exact[which, own] = exact, asked
        return self._exact[which, own]


class Way(NamedTuple):
    """What stands for documents.

    Attributes:
        made: of a pair, for questions on one of its documents: 0 or 1.
        exactly: what it replaces, in the words of `Pair.exactly`, if that is asked from the same positions.
    """

    made: Callable[[Pair, int], JoinedPrompt]
    exactly: str | None = None


def _merged(pair: Pair, parts: list[JoinedPrompt], **options: Any) -> JoinedPrompt:
    return merge_prompts(pair.model, *parts, **options)


ALONE = "the document alone"
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        ALONE: Way(lambda pair, own: pair.whole[own]),
        "the other one alone": Way(lambda pair, own: pair.whole[1 - own]),
        "read one behind the other": Way(lambda pair, _: pair.both),
        "merged": Way(lambda pair, _: _merged(pair, pair.whole), "both"),
        "merged, overlapping": Way(lambda pair, _: _merged(pair, pair.whole, shift=False)),
        "merged, common beginning": Way(
            lambda pair, _: _merged(pair, pair.behind_common, common=pair.common), "common"
        ),
        "merged, common beginning, overlapping": Way(
            lambda pair, _: _merged(pair, pair.behind_common, common=pair.common, shift=False)
        ),
        "small: the document alone": Way(lambda pair, own: pair.small[own], "own"),
        "small: appended": Way(lambda pair, _: pair.appended_small, "both"),
        "small: merged": Way(lambda pair, _: pair.merged, "both"),
        "small: merged, overlapping": Way(lambda pair, _: _merged(pair, pair.small, shift=False)),
        "small: merged, common beginning": Way(
            lambda pair, _: _merged(pair, pair.small_behind_common, common=pair.common), "common"
        ),
        "small: merged, common beginning, overlapping": Way(
            lambda pair, _: _merged(pair, pair.small_behind_common, common=pair.common, shift=False)
        ),
        "small: merged, the other one subtracted": Way(lambda pair, own: pair.without(pair.merged, pair.small, own)),
        "small: merged, then refitted to half": Way(lambda pair, _: pair.refitted, "both"),
        "half as small: merged": Way(lambda pair, _: _merged(pair, pair.smaller), "both"),
        "state: the document alone": Way(lambda pair, own: pair.states[own], "own"),
        "state: appended": Way(lambda pair, _: pair.appended_states, "both"),
        "state: merged, overlapping": Way(lambda pair, _: pair.merged_states),
        "state: merged, the other one subtracted": Way(
            lambda pair, own: pair.without(pair.merged_states, pair.states, own), "own"
        ),
    }
)


def main(config: AlgebraConfig) -> dict[str, Any]:
    """Measure what is not measured yet and write `experiments/results/algebra.json`.

    Returns:
        Configuration, environment, and a row for every place, document and way.

    Raises:
        FileNotFoundError: no such text.
        ValueError: a text that is too short, or has too few words of its own.
    """
    where = environment()
    pieces = Pieces(config.out, str(where["commit"]))
    settings = asdict(config) | {"data_root": None, "out": None, "places": None}
    model, tokenizer = load_text_model(config.model), load_tokenizer(config.model)
    texts = [config.data_root / name for name in config.texts]
    rows = []
    with progress() as bar:
        task = bar.add_task("places", total=2 * len(config.places) * (len(WAYS) + 1))
        for place in config.places:
            pair = Pair(model, tokenizer, texts, place, config)
            for own, name in enumerate(config.texts):
                about = settings | {"place": place, "document": own}
                nothing = pieces.get("nothing", about, partial(_answers, pair, own, None, config.tokens))
                bar.advance(task)
                best = nothing
                for way in WAYS:
                    bar.update(task, description=f"{place:g}, {name}, {way}")
                    row = pieces.get("row", about | {"way": way}, partial(_row, pair, own, way))
                    best = row if way == ALONE else best
                    kept = {
                        f"{what}_kept": round((row[what] - nothing[what]) / (best[what] - nothing[what]), 4)
                        for what in ("text", "words")
                    }
                    rows.append({"place": place, "document": name, "way": way} | row | kept)
                    bar.advance(task)
                rows.append({"place": place, "document": name, "way": None} | nothing)
    config_of_file = {name: value for name, value in asdict(config).items() if name not in ("data_root", "out")}
    write_json(PATH, {"config": config_of_file, "environment": where, "rows": rows})
    return read_json(PATH)


def _row(pair: Pair, own: int, name: str) -> dict[str, Any]:
    way = WAYS[name]
    made = way.made(pair, own)
    found = _answers(pair, own, made.prefixes, made.start)
    stored = sum(leaf.size for leaf in jax.tree.leaves(made.prefixes))
    found["ratio"] = round(2 * sum(leaf.size for leaf in jax.tree.leaves(pair.whole[0].prefixes)) / stored, 2)
    if way.exactly is not None:
        exact, asked = pair.exactly(way.exactly, own)
        errors = _errors(exact.prefixes, made.prefixes, asked)
        found["error"] = round(float(errors.mean()), 6)
    return found


def _answers(pair: Pair, own: int, prefixes: Any, start: int) -> dict[str, Any]:
    """Log-likelihoods of the text after a document, a token, and of words of its own; and which words are said."""
    after, words = (answers(pair.model, each, prefixes, start) for each in pair.questions[own])
    return {
        "text": round(float(after[0][0]) / (len(pair.after[own]) - 1), 5),
        "words": round(float(words[0].mean()), 5),
        "right": round(float(words[1].mean()), 4),
    }


@jax.jit
def _errors(exact: Any, prefixes: Any, asked: Calibration) -> Float[Array, "L Q N"]:
    """Of attention outputs, of queries that the text after a document asks behind exact tokens."""

    def of_layer(layer):
        exact, prefix, asked = layer
        problem = Problem(exact.keys, exact.values, asked.queries, asked.beside, exact.keys.shape[-1] ** -0.5)
        return query_errors(problem, prefix)

    return jax.lax.map(of_layer, (exact, prefixes, asked))


if __name__ == "__main__":
    sys.exit(commands.run("algebra", AlgebraConfig, main, None))
