"""`ntkprefix generate`: texts from a model, behind compressed prompts or behind nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from ntkprefix import checks
from ntkprefix._options import default_told
from ntkprefix.commands.compress import FINGERPRINT
from ntkprefix.fingerprints import of_model
from ntkprefix.models import generate, load_text_model
from ntkprefix.models.checks import drawing, new_tokens
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.prompts import StoredPrompt, batch_prompts, load_prompt, packed


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to continue.

    Attributes:
        model: "smollm2", whose weights a package carries; a model folder, a GGUF file, or the name of a model on the
            Hugging Face hub. Causal.
        prefix: file of a compressed prompt, which must be of the same model. One for all texts, or as many as there
            are texts, each of which is behind its own.
        text: to continue, one or several, which are answered together.
        new: how many tokens to make.
        temperature: of the softmax that tokens are drawn from; 0 takes the likeliest.
        top_p: tokens are drawn from the smallest set of likeliest ones that has this probability.
        seed: of the draws of tokens.

    Raises:
        ValueError: a setting out of range.
    """

    model: str = "smollm2"
    prefix: Annotated[tuple[Path, ...], default_told("none")] = ()
    text: Annotated[tuple[str, ...], default_told("the standard input")] = ()
    new: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        new_tokens(self.new)
        checks.short_seed("generate", self.seed)
        drawing(self.temperature, self.top_p, key=self.seed)


def main(config: Config) -> int:
    """Print every text with its continuation, an empty line between them.

    Returns:
        0.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: a text without tokens, another number of prefixes than one or the texts', a damaged file, one of
            another model, or as for `generate` and `batch_prompts`.
    """
    # Closed, it is None.
    texts = config.text or (sys.stdin.read() if sys.stdin else "",)
    for text in texts:
        checks.characters("--text" if config.text else "the standard input", text)
    if len(config.prefix) not in (0, 1, len(texts)):
        raise ValueError(
            f"expected one --prefix for all texts or one for each of {len(texts)}, got {len(config.prefix)}. "
            "Leave some out, or give a text for each."
        )
    stored = [load_prompt(path) for path in config.prefix]
    model = load_text_model(config.model)
    if not model.config.block.causal:
        raise ValueError(f"{config.model}: expected a causal language model, got an encoder. Give another --model.")
    tokenizer = load_tokenizer(config.model)
    _check_model(config, stored, of_model(model.config, nnx.state(model)))
    # What a model expects in front of a text is in front of the prompt.
    batch = tokenizer.batch(texts, special=not stored)
    if not batch.lengths.all():
        raise ValueError("expected texts of at least one token, got one of none. Give --text.")
    prefixes, start = _in_use(stored)
    made = generate(
        model,
        jnp.asarray(batch.tokens),
        config.new,
        lengths=jnp.asarray(batch.lengths),
        temperature=config.temperature,
        top_p=config.top_p,
        key=jax.random.key(config.seed),
        prefixes=prefixes,
        start=start,
    )
    print("\n\n".join(text + tokenizer.decode(row) for text, row in zip(texts, made.tokens, strict=True)))
    return 0


def _in_use(stored: Sequence[StoredPrompt]) -> tuple[Any, Any]:
    """Prefixes, in the files' bits where all have the same, and where texts behind them start."""
    if not stored:
        return None, 0
    prefixes, start = batch_prompts(stored) if len(stored) > 1 else (stored[0].prefixes, stored[0].start)
    dtypes = {prompt.dtype for prompt in stored}
    return packed(prefixes, dtypes.pop() if len(dtypes) == 1 else "float32"), start


def _check_model(config: Config, stored: Sequence[StoredPrompt], fingerprint: str) -> None:
    """That prompts were compressed for this model, wherever it lay then."""
    for path, prompt in zip(config.prefix, stored, strict=True):
        if prompt.notes.get(FINGERPRINT, fingerprint) != fingerprint:
            raise ValueError(
                f"{path}: expected a prompt compressed for this model, got one for another, which was "
                f"{prompt.notes.get('model')!r} there. Give its --model."
            )
