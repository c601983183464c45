"""`ntkprefix compress`: a text that stands in front of every request -> a small file that stands for it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntkprefix import checks
from ntkprefix.compress import METHODS, Report
from ntkprefix.models import TextModel, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.parallel import mesh_of, on_mesh, put_model, sizes_of
from ntkprefix.prompts import CompressedPrompt, compress_prompt, save_prompt
from ntkprefix.run_folder import scratch_folder
from ntkprefix.runs import check_writable, environment, progress
from ntkprefix.train import TrainConfig

# Heads that are named at the end.
_WORST = 3


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
            head, or "64 KiB" in all.
        method: one of ends, uniform, importance, attention, snapkv, expected, knorm, keydiff, kmeans, wildcat,
            matching, matching-in-context, matching-pursuit, elu, taylor, favor, fitted-elu, fitted-favor, measure,
            refined.
        share: the same for all heads (even), or from a quarter to four times that, by the error that it makes (need).
        error: that no head should exceed: those that do keep more than their share, and are named where they still do.
        queries: whose the queries are that it is fitted to: of texts with which the model goes on (continue), or of
            the prompt, read once more (repeat).
        distil: passes over these texts in which the prefix is then trained to say next what the model says behind the
            whole prompt; 0 for none.
        learning_rate: of that, in units of the spread of keys and values.
        tokens: at most so many of the prompt's first tokens; 0 for all.
        chunk: tokens that are read at a time.
        dtype: of the file's numbers: float16 takes half the bytes, see `ntkprefix.prompts.save_prompt`.
        seed: of what is random.
        mesh: how the devices share the model out, `tensor=8` (see `ntkprefix.parallel.mesh_of`); one device if empty.

    Raises:
        ValueError: a setting out of range.
    """

    prompt: Path
    out: Path
    model: str = "smollm2"
    budget: str = "32x"
    method: str = "matching-in-context"
    share: Literal["even", "need"] = "even"
    error: float | None = None
    queries: Literal["continue", "repeat"] = "continue"
    distil: int = 0
    learning_rate: float = 0.01
    tokens: int = 0
    chunk: int = 512
    dtype: Literal["float32", "float16"] = "float32"
    seed: int = 0
    mesh: str = ""

    def __post_init__(self):
        if self.mesh:
            sizes_of(self.mesh)
        checks.at_least(0, "compress", distil=self.distil, tokens=self.tokens, seed=self.seed)
        checks.at_least(1, "compress", chunk=self.chunk)
        checks.one_of("compress", "method", self.method, tuple(METHODS))
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
        OSError: the file cannot be written; of this it makes sure before it computes anything.
        ValueError: a text that is not UTF-8 or empty, or as for `compress_prompt`.
    """
    text = read_text(config.prompt)
    check_writable(config.out)
    mesh = mesh_of(config.mesh) if config.mesh else None
    model, tokenizer = load_text_model(config.model), load_tokenizer(config.model)
    if mesh is not None:
        put_model(model, mesh)
    tokens = np.asarray(tokenizer.encode(text), np.int32)
    tokens = tokens[: config.tokens] if config.tokens else tokens
    if len(tokens) < 2:
        raise ValueError(f"{config.prompt}: expected a text of at least two tokens, got {len(tokens)}.")
    began = time.perf_counter()
    kept = config.out.with_name(f"{config.out.name}.parts")
    if any(kept.glob("*/*")):
        Console().print(
            Text(f"Going on from what is kept in {kept}, where it is of the same settings."), soft_wrap=True
        )
    with scratch_folder(kept):
        small = _compressed(config, model, tokens, mesh, kept)
        seconds = time.perf_counter() - began
        notes = _notes(config, small.report, len(tokens))
        save_prompt(config.out, small.prefixes, small.start, notes, dtype=config.dtype)
    _tell(Console(), config, small.report, len(tokens), seconds)
    return 0


def _compressed(config: Config, model: TextModel, tokens: np.ndarray, mesh: Any, kept: Path) -> CompressedPrompt:
    with on_mesh(mesh), progress() as bar:
        task = bar.add_task("reading", total=len(tokens))

        def tell(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of)

        small = compress_prompt(
            model,
            jnp.asarray(tokens[None]),
            method=config.method,
            budget=config.budget,
            share=config.share,
            error=config.error,
            texts=config.queries,
            distil=_distilling(config),
            seed=config.seed,
            chunk=config.chunk,
            on_step=tell,
            folder=kept,
        )
        return jax.block_until_ready(small)


def _notes(config: Config, report: Report, tokens: int) -> dict[str, Any]:
    return {
        "model": config.model,
        "prompt": config.prompt.name,
        "tokens": tokens,
        "method": config.method,
        "budget": config.budget,
        "error": float(report.error.mean()),
        "environment": environment(),
    }


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a text file here, found none.")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text as UTF-8, but {error}.") from error


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
        ("smaller than its keys and values", f"{report.ratio:.3g} times"),
        ("error of attention outputs", f"{error.mean():.3g} on average over layers and heads"),
        ("nine of ten queries", f"{np.mean(report.low):.3g} to {np.mean(report.high):.3g}"),
    ]
    if config.error is not None:
        missed = report.above(config.error)
        rows.append((f"heads above {config.error:g}", f"{len(missed)} of {error.size}, though they keep more"))
    rows += [(f"layer {layer}, head {head}", f"{error[layer, head]:.3g}") for layer, head in report.above(0)[:_WORST]]
    for name, value in rows:
        table.add_row(Text(name), Text(str(value)))
    console.print(table)
    console.print(f"Next: ntkprefix generate --model {config.model} --prefix {config.out} --text '...'", markup=False)
