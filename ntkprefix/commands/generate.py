"""`ntkprefix generate`: text from a model, behind a compressed prompt or behind nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ntkprefix import checks
from ntkprefix.models import generate, load_text_model
from ntkprefix.models.tokenizers import load_tokenizer
from ntkprefix.prompts import load_prompt


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to continue.

    Attributes:
        model: "smollm2", whose weights a package carries; a model folder, a GGUF file, or the name of a model on the
            Hugging Face hub. Causal.
        prefix: a file of `ntkprefix compress`, which must be of the same model; nothing if absent.
        text: to continue; read from the standard input if absent.
        new: how many tokens to make.
        temperature: of the softmax that tokens are drawn from; 0 takes the likeliest.
        top_p: tokens are drawn from the smallest set of likeliest ones that has this probability.
        seed: of the draws.

    Raises:
        ValueError: a setting out of range.
    """

    model: str = "smollm2"
    prefix: Path | None = None
    text: str | None = None
    new: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        checks.at_least(1, "generate", new=self.new)
        checks.at_least(0, "generate", seed=self.seed)


def main(config: Config) -> int:
    """Print the text's continuation.

    Returns:
        0.

    Raises:
        FileNotFoundError: no such model or file.
        ValueError: a text without tokens, a damaged file, one of another model, or as for `generate`.
    """
    stored = None if config.prefix is None else load_prompt(config.prefix)
    text = sys.stdin.read() if config.text is None else config.text
    if stored is not None and stored.notes.get("model", config.model) != config.model:
        raise ValueError(
            f"{config.prefix}: expected a prompt compressed for {config.model}, got one for {stored.notes['model']}. "
            f"Give --model {stored.notes['model']}."
        )
    model, tokenizer = load_text_model(config.model), load_tokenizer(config.model)
    # What a model expects in front of a text is in front of the prompt.
    tokens = np.asarray(tokenizer.encode(text, special=stored is None), np.int32)
    if not len(tokens):
        raise ValueError("expected a text of at least one token, got none. Give --text.")
    made = generate(
        model,
        jnp.asarray(tokens[None]),
        config.new,
        temperature=config.temperature,
        top_p=config.top_p,
        key=jax.random.key(config.seed),
        prefixes=None if stored is None else stored.prefixes,
        start=0 if stored is None else stored.start,
    )
    print(text + tokenizer.decode(made.tokens[0]))
    return 0
