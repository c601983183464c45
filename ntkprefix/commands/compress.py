"""`ntkprefix compress`: a text that stands in front of every request -> a small file that stands for it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntkprefix import checks, hosts
from ntkprefix._options import default_told
from ntkprefix.compress import METHODS, Report
from ntkprefix.compress.budget import amount_of
from ntkprefix.fingerprints import of_data, of_model
from ntkprefix.hosts import by_first, entered_by_first, first, to_host
from ntkprefix.models import TextModel, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.parallel import mesh_of, on_mesh, sizes_of
from ntkprefix.parts import parts_folder
from ntkprefix.prompts import CompressedPrompt, compress_prompt, save_prompt
from ntkprefix.prompts.compress import check_method, makes_tokens
from ntkprefix.prompts.layers import Share
from ntkprefix.prompts.precision import Dtype
from ntkprefix.prompts.texts import Kind
from ntkprefix.runs import check_writable, environment, progress
from ntkprefix.train import TrainConfig

# Heads that are named at the end.
_WORST = 3

# Bytes of a number of what a prompt is compared with.
_IN: dict[float, str] = {4.0: " in 32 bits", 2.0: " in 16 bits"}

# Under which a file's notes tell its model from others.
FINGERPRINT = "fingerprint of the model"


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to compress, and how far.

    Attributes:
        prompt: file of the text, UTF-8.
        out: file to write. Until it is, what is done is kept in a folder beside it whose name ends in .parts, and the
            same command goes on from there if it is stopped.
        model: "smollm2", whose weights a package carries; a model folder, a GGUF file, or the name of a model on the
            Hugging Face hub. Causal.
        budget: "32x" for a 32nd of the bytes that the prompt's keys and values take, "128 tokens" for each
            head, on average where shares differ, or "64 KiB" in all. A weight counts as one number more.
        method: how tokens are chosen, or what stands for them; docs/compression.md compares them.
        share: how heads share the budget. Even: all have the same, which takes least time. Need, effect: each has
            from a sixteenth to eight times that, or all of its tokens; by the error that it makes, or by what this
            error does to what the model says next.
        error: the most that a head's attention outputs should be off by. Heads that are off by more keep more than
            their share, and are named if they still are.
        queries: what asks of the prompt, so that it is fitted to that. Continue: texts with which the model goes on.
            Repeat: pieces of the prompt, read once more behind it. Apart: such pieces, each read behind all of the
            prompt but itself. Both: the first and the last of these.
        distil: passes over these texts in which the prefix is then trained to say next what the model says behind the
            whole prompt; 0 for none.
        learning_rate: step size of that training, in units of the spread of keys and values.
        tokens: at most so many of the prompt's first tokens; 0 for all.
        chunk: tokens that are read at a time.
        dtype: of the file's numbers. Of tokens alone int4 and int8 hold about 3 and 1.9 times as many as 16 bits in the
            same bytes. Budgets in bytes count those; a budget such as 32x is against the prompt in the same type, and
            of int8 and int4 against 16 bits, in which models keep it.
        seed: of all that is random.
        mesh: how the devices share the model out, such as tensor=8; docs/parallel.md has the names.
        hosts: of one of several processes that compress together, as for ntkprefix train.

    Raises:
        ValueError: a setting out of range.
    """

    prompt: Path
    out: Path
    model: str = "smollm2"
    budget: str = "32x"
    method: Literal[*METHODS] = "matching-in-context"
    share: Annotated[Share | None, default_told("effect; even where a method makes no tokens")] = None
    error: Annotated[float | None, default_told("none")] = None
    queries: Kind = "both"
    distil: int = 0
    learning_rate: float = 0.003
    tokens: int = 0
    chunk: int = 512
    dtype: Annotated[Dtype | None, default_told("int4; float16 where a method makes no tokens")] = None
    seed: int = 0
    mesh: Annotated[str, default_told("one device")] = ""
    hosts: Annotated[str, default_told("one process")] = ""

    def __post_init__(self):
        if self.mesh:
            sizes_of(self.mesh)
        hosts.check(self.hosts, self.mesh)
        checks.at_least(0, "compress", distil=self.distil, tokens=self.tokens)
        if self.tokens == 1:
            raise ValueError("compress: expected at least two tokens, got tokens=1. Give 0 for all.")
        checks.short_seed("compress", self.seed)
        checks.at_least(1, "compress", chunk=self.chunk)
        amount_of(self.budget)
        checks.finite("compress", least=0.0, learning_rate=self.learning_rate)
        if self.error is not None:
            checks.finite("compress", least=0.0, error=self.error)


def main(config: Config) -> int:
    """Read, compress, write, and say what it costs.

    Returns:
        0.

    Raises:
        FileNotFoundError: no such prompt or model.
        BlockingIOError: another run is writing this file.
        OSError: the file cannot be written, or what is done cannot be kept; of this it makes sure before it computes
            anything.
        ValueError: a text that is not UTF-8 or empty, or as for `compress_prompt`.
    """
    hosts.join(config.hosts)
    hosts.same({name: value for name, value in vars(config).items() if name != "hosts"})
    chosen = _chosen(config)
    check_method(config.method, **chosen._asdict(), error=config.error)
    text = read_text(config.prompt)
    if config.out.exists() and config.out.samefile(config.prompt):
        raise ValueError(f"{config.out}: expected another file than the prompt's to write to. Choose another --out.")
    by_first(lambda: check_writable(config.out))
    console, parts = Console(quiet=not first()), config.out.with_name(f"{config.out.name}.parts")
    with entered_by_first(lambda: parts_folder(parts)):
        if any(parts.glob("*/*")):
            told = f"Going on from what is kept in {parts}, where it is of the same settings."
            console.print(Text(told), soft_wrap=True)
        mesh = mesh_of(config.mesh) if config.mesh else None
        model = load_text_model(config.model, mesh=mesh)
        if not model.config.block.causal:
            raise ValueError(f"{config.model}: expected a causal language model, got an encoder. Give another --model.")
        tokenizer = load_tokenizer(config.model)
        tokens = np.asarray(tokenizer.encode(text), np.int32)
        own = len(tokens) - len(tokenizer.encode(""))  # what a tokeniser puts around any text is none of it
        if own < 2:
            raise ValueError(f"{config.prompt}: expected a text of at least two tokens, got {own}. Give a longer one.")
        tokens = tokens[: config.tokens] if config.tokens else tokens
        hosts.same({"the prompt's tokens": of_data([tokens])})
        began = time.perf_counter()
        small = _compressed(config, chosen, model, tokens, mesh, parts)
        seconds = time.perf_counter() - began
        notes = _notes(config, chosen, model, small.report, len(tokens))
        by_first(lambda: save_prompt(config.out, small.prefixes, small.start, notes, dtype=chosen.dtype))
    _tell(console, config, small.report, len(tokens), seconds)
    return 0


class _Chosen(NamedTuple):
    """What a command line may leave open."""

    share: Share
    dtype: Dtype


def _chosen(config: Config) -> _Chosen:
    """As it says, or else as least of a prompt is lost with its method."""
    share: Share
    dtype: Dtype
    share, dtype = ("effect", "int4") if makes_tokens(config.method) else ("even", "float16")
    return _Chosen(config.share or share, config.dtype or dtype)


def _compressed(
    config: Config, chosen: _Chosen, model: TextModel, tokens: np.ndarray, mesh: Any, kept: Path
) -> CompressedPrompt:
    with on_mesh(mesh), progress(disable=not first()) as bar:
        task = bar.add_task("reading", total=len(tokens))

        def tell(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        small = compress_prompt(
            model,
            jnp.asarray(tokens[None]),
            method=config.method,
            budget=config.budget,
            **chosen._asdict(),
            error=config.error,
            texts=config.queries,
            distil=_distilling(config),
            seed=config.seed,
            chunk=config.chunk,
            on_step=tell,
            folder=kept,
        )
        return to_host(small)


def _notes(config: Config, chosen: _Chosen, model: TextModel, report: Report, tokens: int) -> dict[str, Any]:
    return {
        "model": config.model,
        FINGERPRINT: of_model(model.config, nnx.state(model)),
        "prompt": config.prompt.name,
        "tokens": tokens,
        "method": config.method,
        "budget": config.budget,
        **chosen._asdict(),
        "queries": config.queries,
        "error": float(report.error.mean()),
        "environment": environment(),
    }


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: it is not UTF-8; the message names it.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"{path}: expected a text file, got a folder. Give one of its files, or join them into one."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a text file here, found none.")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected text as UTF-8, but {error}. Save it as UTF-8, or convert it: iconv -f ENCODING -t UTF-8."
        ) from error


def _distilling(config: Config) -> TrainConfig | None:
    if not config.distil:
        return None
    return TrainConfig(
        epochs=config.distil, batch_size=4, learning_rate=config.learning_rate, weight_decay=0.0, seed=config.seed
    )


def _tell(console: Console, config: Config, report: Report, tokens: int, seconds: float) -> None:
    error = np.asarray(report.error)
    table = Table(title=Text(f"{config.prompt.name}: {tokens:,} tokens in {seconds:.0f} s"), show_header=False)
    rows: list[tuple[str, Any]] = [
        ("file", f"{config.out}, {config.out.stat().st_size / 1e6:.3g} MB"),
        ("smaller than its keys and values" + _IN[report.prompt_itemsize], f"{report.ratio:.3g} times"),
        ("error of attention outputs", f"{error.mean():.3g} on average over layers and heads"),
        ("error of nine of ten queries", f"{np.mean(report.low):.3g} to {np.mean(report.high):.3g}"),
    ]
    if config.error is not None:
        missed = report.above(config.error)
        rows.append((f"heads above {config.error:g}", f"{len(missed)} of {error.size}, though they keep more"))
    rows += [
        (f"layer {layer}, query head {head}", f"{error[layer, head]:.3g}") for layer, head in report.above(0)[:_WORST]
    ]
    for name, value in rows:
        table.add_row(Text(name), Text(str(value)))
    console.print(table)
    command = ["ntkprefix", "generate", "--model", config.model, "--prefix", str(config.out), "--text", "..."]
    console.print(Text(f"Next: {shlex.join(command)}"), soft_wrap=True)
