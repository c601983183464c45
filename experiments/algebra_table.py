"""The table of merged, appended and subtracted prompts in `docs/algebra.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.algebra import ALONE, PATH, WAYS
from ntkprefix.runs import read_json


def algebra() -> str:
    """Every way for a prefix to stand for two documents: what is kept of each one's gain, and at what error."""
    results = read_json(PATH)
    config, where = results["config"], results["environment"]
    names = [str(Path(text).with_suffix("")) for text in config["texts"]]
    head = ["prefix", "smaller", *(f"{what}, {name}" for what in ("text", "words") for name in names), "said", "error"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in WAYS:
        rows = [row for row in results["rows"] if row["way"] == way]
        cells = [way, f"{rows[0]['ratio']:.3g}x"]
        for what in ("text_kept", "words_kept"):
            cells += [
                f"{np.mean([row[what] for row in rows if row['document'] == text]):.2f}" for text in config["texts"]
            ]
        errors = [row["error"] for row in rows if "error" in row]
        cells += [f"{np.mean([row['right'] for row in rows]):.2f}", f"{np.mean(errors):.2g}" if errors else ""]
        lines.append(f"| {' | '.join(cells)} |")
    gains = "; ".join(
        f"{_gain(results, text, 'text'):.2f} nats a token and {_gain(results, text, 'words'):.1f} a word for {name}"
        for text, name in zip(config["texts"], names, strict=True)
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{config['model']}, two documents of {config['tokens']:,} tokens each, mean over {len(config['places'])} "
            f"places in the texts. Smaller: than the keys and values of both documents. Text: share of the gain in the "
            f"log-likelihood of the {config['continuation']} tokens after a document that is kept, 1 behind this "
            f"document alone and 0 behind nothing; words: the same for {config['questions']} words of each document "
            f"that are in it once and in the other one never, behind the {config['cue']} tokens in front of them. The "
            f"whole gain is {gains}. Said: share of these words of which every token is the model's likeliest. Error: "
            f"of attention outputs on the text after the document, mean over layers, heads, tokens and documents, "
            f"against exact tokens of what the prefix stands for, where these are asked from the same positions. "
            f"Compressed by {config['method']} at {config['budget']} ({where['processor']}, {where['cores']} cores). "
            f"Remade by `python -m experiments.algebra --data-root FOLDER`.",
        ]
    )


def _gain(results: dict[str, Any], text: str, what: str) -> float:
    """What a document alone adds to a log-likelihood, in nats."""
    found = {
        way: np.mean([row[what] for row in results["rows"] if (row["way"], row["document"]) == (way, text)])
        for way in (ALONE, None)
    }
    return float(found[ALONE] - found[None])
