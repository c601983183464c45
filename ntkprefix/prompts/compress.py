"""`compress_prompt`: every layer's keys and values of a prompt -> a small prefix of every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from ntkprefix import checks
from ntkprefix.compress import Method, Report, compress
from ntkprefix.compress.budget import numbers_within
from ntkprefix.compress.compress import fitted_to, method_of
from ntkprefix.fingerprints import of_model
from ntkprefix.models import BlockConfig, TextModel
from ntkprefix.parts import Parts
from ntkprefix.prefixes import JoinedPrefix, TokenPrefix
from ntkprefix.prompts.calibration import calibrate
from ntkprefix.prompts.distil import distil as distilled
from ntkprefix.prompts.effects import scores
from ntkprefix.prompts.layers import Share, compress_layers, judge_layers
from ntkprefix.prompts.precision import Dtype, as_stored, integers, itemsizes
from ntkprefix.prompts.read import read_prompt
from ntkprefix.prompts.sizes import judging
from ntkprefix.prompts.texts import Kind, Texts, texts_behind, without_last
from ntkprefix.train import Checkpoints, TrainConfig

# Steps of training between checkpoints.
_EVERY = 10
# Queries of the trial without numbers: how many they are does not matter to it.
_ASKED = 16
# Keys of the trial of what a method makes, [M, K, H]: with room for every method at a quarter of it.
_TRIAL = (4096, 1, 8)


class CompressedPrompt(NamedTuple):
    """What stands for a prompt.

    Attributes:
        prefixes: of every layer, for a model's `prefixes=`: arrays have a leading `layers` axis.
        start: position of what comes after it, M: for `generate(start=...)`, and `positions=` of a model's call.
        report: of every layer, with a leading `layers` axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
        >>> from ntkprefix.prompts import compress_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> small = compress_prompt(model, jnp.arange(20)[None], method="ends", budget="4x", texts="repeat")
        >>> small.start, small.report.ratio, small.report.error.shape
        (20, 4.0, (2, 3))
    """

    prefixes: Any
    start: int
    report: Report


def compress_prompt(
    model: TextModel,
    tokens: Int[Array, "1 M"],
    *,
    method: str | Method = "matching-in-context",
    budget: int | str,
    share: Share = "even",
    error: float | None = None,
    texts: Kind | Int[Array, "B T"] = "continue",
    distil: TrainConfig | None = None,
    dtype: Dtype = "float32",
    seed: int = 0,
    chunk: int = 512,
    on_step: Callable[[str, int, int], None] | None = None,
    folder: str | Path | None = None,
) -> CompressedPrompt:
    """A small prefix of every layer that does nearly what a prompt in front of a text does.

    The prompt is read once, a chunk at a time; then texts are read behind it, to see what they ask of each layer; then
    one layer after another is compressed; and then, with `distil`, all layers are trained together to say next what the
    model says behind the whole prompt.

    Keys are kept as the model turned them: to positions 0 to M - 1. What follows is to be given positions from M on,
    as it would have behind the prompt itself: the prefix saves memory and time, and not positions. Behind M + T
    positions beyond what the model was trained with, it is as lost as with the prompt itself.

    Args:
        model: causal.
        tokens: the prompt, [1, M].
        method: as for `compress`.
        budget: as for `compress`, but numbers and bytes are those of all layers together.
        share: `"even"`: all heads of all layers get the same; `"need"`: between a sixteenth and eight times that, or
            all of their tokens, by the error that Attention Matching makes with it (`ntkprefix.prompts.sizes`);
            `"effect"`: by what that error does to the distribution of the next tokens (`ntkprefix.prompts.effects`).
            All heads are as long as the longest, filled up with tokens of no weight; `packed` prefixes, for use, and
            files have none of these.
        error: that no head's attention outputs should exceed, on average over queries that are fitted to: heads that
            do get more than their share, up to all of their tokens. Which still do is told by `report.above(error)`,
            on queries that are held out.
        texts: that ask of the prompt what others will, [B, T], without padding, the last quarter of which is held out
            for the report: `"continue"` for texts that the model itself says next, drawn at temperature 1; `"repeat"`
            for pieces of the prompt, read once more behind it; `"apart"` for such that are each read behind all of the
            prompt but itself, and ask for what the rest has to say; `"both"` for the first and the last of these.
        distil: how to train on the texts that are not held out, and see all of the prompt if there are such; not at
            all if None.
        dtype: in which the prefix will be stored, and budgets in bytes are counted. A ratio is against the prompt in
            the same type, but of int8 and int4 against 16 bits, in which models keep keys and values. It is rounded to
            these (`ntkprefix.prompts.quantized`), so that the report is about that; in memory it is float32 all the
            same, and `save_prompt` is to be given the same type.
        seed: of what is random.
        chunk: tokens that are read at a time.
        on_step: called with what is being done, how much of it is done and how much there is.
        folder: keeps what is done: every chunk that was read, the texts, every layer, and every so many steps of
            training. A call with the same arguments, by a model with the same weights, goes on from there to the same
            numbers; what other calls keep lies beside it. It takes about what the prompt's keys and values do, and is
            yours to remove.

    Returns:
        The prefixes, where a text behind them starts, and the report.

    Raises:
        OSError: the folder cannot be written to.
        TypeError: as for the model and `compress`.
        ValueError: as for the model and `compress`, or a damaged file in the folder, which the message names.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel, generate
        >>> from ntkprefix.prompts import compress_prompt
        >>> block = BlockConfig(width=12, heads=3, mlp_width=24, causal=True, rotary=Rotary(width=4))
        >>> model = TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0))
        >>> prompt = jnp.arange(40)[None]
        >>> small = compress_prompt(model, prompt, method="matching", budget="4x")
        >>> small.prefixes.keys.shape, small.start
        ((2, 8, 3, 4), 40)
        >>> generate(model, jnp.array([[3, 1]]), new=3, prefixes=small.prefixes, start=small.start).tokens.shape
        (1, 3)
    """
    tell = on_step or (lambda *_: None)
    if isinstance(texts, str):
        checks.one_of("compress_prompt", "kind of texts", texts, get_args(Kind))
    length, block = tokens.shape[1], model.config.block
    # What is wrong with these is known before anything is read.
    check_method(method, dtype=dtype, share=share, error=error)
    heads, token = model.config.layers * block.kv_heads, 2 * block.head_width
    even = numbers_within(budget, length=length, heads=heads, token=token, **itemsizes(dtype, token)._asdict())
    if error is None:  # to meet an error, heads may take more than their share
        _check_room(block, as_stored(method, dtype), length, even)
    what = {"method": method, "budget": budget, "share": share, "error": error, "distil": distil, "dtype": dtype}
    parts = _parts(folder, model, tokens, texts, seed=seed, chunk=chunk, **what)
    whole = read_prompt(model, tokens, chunk=chunk, on_chunk=lambda done: tell("reading", done, length), parts=parts)
    tell("asking", 0, 2)
    if isinstance(texts, str):
        draw = partial(texts_behind, model, texts, tokens, without_last(whole), start=length - 1, seed=seed)
        behind = parts("texts", draw)
    else:
        behind = Texts(texts)
    tell("asking", 1, 2)
    asked = jax.block_until_ready(calibrate(model, behind.tokens, behind.seen(whole), start=length))
    tell("asking", 2, 2)
    how: dict[str, Any] = {"method": method, "budget": budget, "share": share}
    how |= {"error": error, "dtype": dtype, "seed": seed}
    if share == "effect":
        judged = judging(behind)
        count = len(judged.tokens)
        options = {"start": length, "seed": seed, "on_texts": lambda done: tell("finding effects", done, count)}
        how["felt"] = cache(partial(scores, model, judged, whole, **options))
    prefixes, report = compress_layers(whole, asked, **how, on_step=tell, parts=parts)
    if distil is not None:
        taught = behind.fitted().taught(length).tokens
        steps = distil.steps(len(taught))
        where = parts.beside("checkpoints")
        prefixes, _ = distilled(
            model,
            prefixes,
            whole,
            taught,
            start=length,
            config=distil,
            dtype=dtype,
            on_step=lambda step, _: tell("distilling", step, steps),
            checkpoints=None if where is None else Checkpoints(where, _EVERY),
        )
        held = jax.tree.map(lambda leaf: leaf[:, fitted_to(leaf.shape[1]) :], asked)
        report = dataclasses.replace(report, **_errors(judge_layers(prefixes, whole, held)))
    return CompressedPrompt(prefixes, length, report)


def _errors(report: Report) -> dict[str, Any]:
    """What is known of a prefix but for its size."""
    return {name: getattr(report, name) for name in ("error", "low", "high", "mass_error", "radius", "value_bound")}


def check_method(method: str | Method, *, dtype: Dtype, share: Share, error: float | None) -> None:
    """That a method's prefixes can be stored as small integers, or have heads of several sizes, where they are to.

    Raises:
        ValueError: they cannot, or there is no such method.
    """
    method_of(method)
    several = share != "even" or error is not None
    if integers(dtype) is None and not several:
        return
    made = _made(method)
    if several and not isinstance(made, TokenPrefix):
        raise ValueError(
            f"compress_prompt: heads of several sizes need a method that makes tokens, got {method!r}. Share the "
            "budget evenly, and ask for no error."
        )
    for part in made.parts if isinstance(made, JoinedPrefix) else (made,):
        if integers(dtype) and not isinstance(part, TokenPrefix):
            raise ValueError(
                f"compress_prompt: dtype={dtype!r} needs a method that makes tokens, got {method!r}. Take float16, or "
                "another method."
            )


def makes_tokens(method: str | Method) -> bool:
    """Whether a method's prefixes are tokens and nothing else: heads may then differ in size, and have few bits."""
    return isinstance(_made(method), TokenPrefix)


def _made(method: str | Method) -> Any:
    """A method's prefix of a trial without numbers."""
    tokens = jax.ShapeDtypeStruct(_TRIAL, jnp.float32)
    return jax.eval_shape(
        lambda keys, values, queries: compress(keys, values, method=method, budget="4x", queries=queries).prefix,
        *(tokens,) * 3,
    )


def _check_room(block: BlockConfig, method: str | Method, length: int, even: int) -> None:
    """That a method's smallest state has room in an even share of the budget: its shapes alone tell."""
    tokens = jax.ShapeDtypeStruct((length, block.kv_heads, block.head_width), jnp.float32)
    queries = jax.ShapeDtypeStruct((_ASKED, block.heads, block.head_width), jnp.float32)
    budget = f"{even * block.kv_heads} numbers"
    jax.eval_shape(
        lambda keys, values, queries: compress(keys, values, method=method, budget=budget, queries=queries).prefix,
        tokens,
        tokens,
        queries,
    )


def _parts(folder: str | Path | None, model: TextModel, tokens: Any, texts: Any, **what: Any) -> Parts:
    """The parts of one compression."""
    if folder is None:
        return Parts()
    what["model"] = of_model(model.config, nnx.state(model))
    what["texts"] = texts if isinstance(texts, str) else np.asarray(texts).tolist()
    return Parts.of(folder, tokens=np.asarray(tokens).tolist(), **what)
