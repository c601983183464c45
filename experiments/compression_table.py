"""The tables of compressed prompts in `docs/compression.md`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments.commands import remaking
from experiments.compression import PATH, SIZES, CompressionConfig
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.runs import read_json

# What shares the budget out between heads, and is compared with Attention Matching.
_SHARED = ("matching by effect", "refined by need", "refined by effect")
# What methods are fitted to.
_TEXTS = {
    "continue": "the model's own",
    "repeat": "pieces of the prompt",
    "apart": "pieces of the prompt, read apart",
    "both": "the model's own and pieces of the prompt, read apart",
}


def compression() -> str:
    """Every method: what of the prompt's gain is kept, and at what error."""
    results = read_json(PATH)
    config, where, texts = results["config"], results["environment"], results["texts"]
    gains = ", ".join(
        f"{np.mean([text['full'] - text['without'] for text in texts if text['text'] == file]):.3f} for {_name(file)}"
        for file in _files(results)
    )
    seconds = np.median([text["seconds"] for text in texts])
    against = _against(results, ["refined by effect"], "matching", config["budgets"][0])
    remade = remaking("compression", config, CompressionConfig(data_root=Path("FOLDER")))
    return "\n".join(
        [
            *_table(results),
            "",
            f"{config['model']}, prompts of {config['tokens']:,} tokens{_places(config)}. Texts: share of the prompt's "
            f"gain in the log-likelihood of the {config['continuation']} tokens after it that is kept, below 0 where "
            f"the model does worse than without the prompt; the gain is {gains} nats a token{_interval(config)}. "
            f"Divergence: from the distribution behind the whole prompt, nats a token. Error: of attention outputs on "
            f"these tokens, mean over layers, heads and tokens{against}; estimated: what "
            f"the report says, from such texts as methods are fitted to, {_TEXTS[config['queries']]}, but others (of "
            f"ways that distil, before they do); coverage: share of these errors within the report's interval for "
            f"nine of ten. Seconds: to compress, behind {seconds:.0f} seconds in which the prompt is read and texts "
            f"are made, once for all methods ({where['processor']}, {where['cores']} cores, beside other work). MB: of "
            f"the prefix in memory, where the whole prompt takes {texts[0]['megabytes']:.0f}. Milliseconds: for each "
            f"token that is generated behind it; {_pace(texts)}. Remade by `{remade}`.",
        ]
    )


def sizes() -> str:
    """Few methods, in fewer bits and at several sizes."""
    results = read_json(SIZES)
    config, where = results["config"], results["environment"]
    seconds = np.median([text["seconds"] for text in results["texts"]])
    remade = remaking("compression", config, CompressionConfig(data_root=Path("FOLDER")))
    ways = [f"{way} in 4 bits" for way in _SHARED]
    against = [
        _against(results, ways, other, each)
        for other, each in itertools.product(("matching", "matching in 4 bits"), config["budgets"])
    ]
    return "\n".join(
        [
            *_table(results),
            "",
            f"As above{_places(config)}{_interval(config)}; of ways in 4 bits a 32nd is one of the prompt's bytes in "
            f"16 bits{''.join(against)}. Measured on its own "
            f"({where['processor']}, {where['cores']} cores, beside other work): {seconds:.0f} seconds before all "
            f"methods; {_pace(results['texts'])}. Remade by `{remade} --results experiments/results/{SIZES.name}`.",
        ]
    )


def _table(results: dict[str, Any]) -> list[str]:
    files, config = _files(results), results["config"]
    head = ["method", "smaller", *map(_name, files), "mean", "divergence", "error", "estimated", "coverage", "seconds"]
    head += ["MB", "ms"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for budget, method in itertools.product(config["budgets"], config["methods"]):
        rows = [row for row in results["rows"] if (row["method"], row["budget"]) == (method, budget)]
        kept = [of_runs([row["kept"] for row in rows if row["text"] == file]) for file in files]
        cells = [method, f"{rows[0]['ratio']:.0f}x", *(plus_minus(share, "{:.2f}".format) for share in kept)]
        cells.append(f"{np.mean([row['kept'] for row in rows]):.2f}")
        cells += [_mean(rows, "divergence"), _mean(rows, "error"), _mean(rows, "estimated_error")]
        cells += [
            f"{np.mean([row['coverage'] for row in rows]):.2f}",
            f"{np.median([row['seconds'] for row in rows]):.0f}",
            f"{rows[0]['megabytes']:.1f}",
            f"{1e3 * np.median([row['seconds_per_token'] for row in rows]):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _files(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(text["text"] for text in results["texts"]))


def _name(file: str) -> str:
    return str(Path(file).with_suffix(""))


def _places(config: dict[str, Any]) -> str:
    if len(config["places"]) == 1:
        return ""
    places = ", ".join(f"{place:.0%}" for place in config["places"])
    return f", beginning at {places} of every text, each with a seed of its own"


def _interval(config: dict[str, Any]) -> str:
    if len(config["places"]) == 1:
        return ""
    return "; after ±, half of the 95 % interval of the mean over places and their seeds, by Student's t"


def _pace(texts: list[dict[str, Any]]) -> str:
    whole, none = (
        1e3 * np.median([text[name] for text in texts]) for name in ("seconds_per_token", "seconds_per_token_without")
    )
    return f"{whole:.0f} ms behind the whole prompt, {none:.0f} ms without any"


def _against(results: dict[str, Any], methods: list[str], other: str, budget: str) -> str:
    """What part methods' errors of attention are of another's, where they were measured at a size."""
    errors = {
        method: [row["error"] for row in results["rows"] if (row["method"], row["budget"]) == (method, budget)]
        for method in (other, *methods)
    }
    found = [method for method in methods if errors[other] and errors[method]]
    shares = [f"{np.mean(errors[method]) / np.mean(errors[other]):.2f} for `{method}`" for method in found]
    return f"; error at {budget} as a part of that of `{other}`: {', '.join(shares)}" if shares else ""


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    return f"{np.mean([row[name] for row in rows]):.3g}"
