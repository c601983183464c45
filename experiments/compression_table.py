"""The table of compressed prompts in `docs/compression.md`."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from experiments.compression import PATH, SIZES
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.runs import read_json


def compression() -> str:
    """Every method at every size: what of the prompt's gain is kept, and at what error."""
    results = read_json(PATH)
    config, where, texts = results["config"], results["environment"], results["texts"]
    names = [str(Path(text["text"]).with_suffix("")) for text in texts]
    head = ["method", "smaller", *names, "mean", "divergence", "error", "estimated", "coverage", "seconds", "MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for budget in config["budgets"]:
        for method in config["methods"]:
            rows = [row for row in results["rows"] if (row["method"], row["budget"]) == (method, budget)]
            kept = [row["kept"] for row in rows]
            cells = [method, f"{rows[0]['ratio']:.0f}x", *(f"{share:.2f}" for share in kept), f"{np.mean(kept):.2f}"]
            cells += [_mean(rows, "divergence"), _mean(rows, "error"), _mean(rows, "estimated_error")]
            cells += [
                f"{np.mean([row['coverage'] for row in rows]):.2f}",
                f"{np.median([row['seconds'] for row in rows]):.0f}",
                f"{rows[0]['megabytes']:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    gains = ", ".join(
        f"{text['full'] - text['without']:.3f} for {name}" for name, text in zip(names, texts, strict=True)
    )
    seconds = np.median([text["seconds"] for text in texts])
    return "\n".join(
        [
            *lines,
            "",
            f"{config['model']}, prompts of {config['tokens']:,} tokens. Texts: share of the prompt's gain in the "
            f"log-likelihood of the {config['continuation']} tokens after it that is kept, below 0 where the model "
            f"does worse than without the prompt; the gain is {gains} nats a token. Divergence: from the distribution "
            f"behind the whole prompt, nats a token. Error: of attention outputs on these tokens, mean over layers, "
            f"heads and tokens{_against_matching(results['rows'])}; estimated: what the report says, from texts "
            f"of the model's own that nothing was fitted to (of ways that distil, before they do); coverage: share of "
            f"these errors within the report's interval for nine of ten. Seconds: to compress, behind {seconds:.0f} "
            f"seconds in which the prompt is read and texts are made, once for all methods ({where['processor']}, "
            f"{where['cores']} cores, beside other work). "
            f"MB: of the prefix in memory, where the whole prompt takes {texts[0]['megabytes']:.0f}. Remade by "
            f"`python -m experiments.compression --data-root FOLDER`.",
        ]
    )


def sizes() -> str:
    """Some methods at several sizes, in several places of every text."""
    results = read_json(SIZES)
    config, where, texts, rows = (results[name] for name in ("config", "environment", "texts", "rows"))
    files = list(dict.fromkeys(text["text"] for text in texts))
    names = [str(Path(file).with_suffix("")) for file in files]
    head = ["method", "smaller", *names, "mean", "divergence", "error", "coverage", "seconds", "ms a token", "MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method, budget in itertools.product(config["methods"], config["budgets"]):
        of = [row for row in rows if (row["method"], row["budget"]) == (method, budget)]
        kept = [[row["kept"] for row in of if row["text"] == file] for file in files]
        cells = [method, f"{of[0]['ratio']:.0f}x", *(plus_minus(of_runs(shares)) for shares in kept)]
        cells += [plus_minus(of_runs([row[name] for row in of])) for name in ("kept", "divergence", "error")]
        cells += [
            f"{np.mean([row['coverage'] for row in of]):.2f}",
            f"{np.median([row['seconds'] for row in of]):.0f}",
            f"{1e3 * np.median([row['seconds_per_token'] for row in of]):.0f}",
            f"{of[0]['megabytes']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    whole, none = (
        1e3 * np.median([text[name] for text in texts]) for name in ("seconds_per_token", "seconds_per_token_without")
    )
    command = ["--data-root", "FOLDER", "--results", "experiments/results/compression_sizes.json"]
    for name in ("places", "budgets", "methods"):
        command += [f"--{name}", *(str(value) for value in config[name])]
    return "\n".join(
        [
            *lines,
            "",
            f"As above, with the prompt beginning at {_shares(config['places'])} of every text: means over places, and "
            f"over texts and places, and half of their 95 % intervals by Student's t. Milliseconds for each token "
            f"that is generated, one text at a time: {whole:.0f} behind the whole prompt, {none:.0f} without any; "
            f"of both and of seconds the median ({where['processor']}, {where['cores']} cores). The whole "
            f"prompt takes {texts[0]['megabytes']:.0f} MB. Remade by "
            f"`python -m experiments.compression {shlex.join(command)}`.",
        ]
    )


def _shares(places: list[float]) -> str:
    *first, last = (f"{place:.0%}" for place in places)
    return f"{', '.join(first)} and {last}" if first else last


def _against_matching(rows: list[dict[str, Any]]) -> str:
    """What fitting and sharing out by need leaves of Attention Matching's error, where both were measured."""
    matching, refined = ([row for row in rows if row["method"] == name] for name in ("matching", "refined by need"))
    if not matching or not refined:
        return ""
    share = float(_mean(refined, "error")) / float(_mean(matching, "error"))
    return f", of `refined by need` {share:.2f} of Attention Matching's"


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    return f"{np.mean([row[name] for row in rows]):.3g}"
