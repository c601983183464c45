"""The table of compressed prompts in `docs/compression.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.compression import PATH
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.runs import read_json


def compression() -> str:
    """Every method at every size: what of the prompt's gain is kept, and at what error."""
    results = read_json(PATH)
    config, where, texts = results["config"], results["environment"], results["texts"]
    files = list(dict.fromkeys(text["text"] for text in texts))
    names = [str(Path(file).with_suffix("")) for file in files]
    head = ["method", "smaller", *names, "mean", "divergence", "error", "estimated", "coverage", "seconds", "MB"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for budget in config["budgets"]:
        for method in config["methods"]:
            rows = [row for row in results["rows"] if (row["method"], row["budget"]) == (method, budget)]
            kept = [of_runs([row["kept"] for row in rows if row["text"] == file]) for file in files]
            cells = [method, f"{rows[0]['ratio']:.0f}x", *(plus_minus(share, "{:.2f}".format) for share in kept)]
            cells.append(f"{np.mean([row['kept'] for row in rows]):.2f}")
            cells += [_mean(rows, "divergence"), _mean(rows, "error"), _mean(rows, "estimated_error")]
            cells += [
                f"{np.mean([row['coverage'] for row in rows]):.2f}",
                f"{np.median([row['seconds'] for row in rows]):.0f}",
                f"{rows[0]['megabytes']:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    gains = ", ".join(
        f"{np.mean([text['full'] - text['without'] for text in texts if text['text'] == file]):.3f} for {name}"
        for file, name in zip(files, names, strict=True)
    )
    places = interval = ""
    if len(config["places"]) > 1:
        places = f", beginning at {', '.join(f'{place:.0%}' for place in config['places'])} of every text"
        interval = "; after ±, half of the 95 % interval of the mean over places, by Student's t"
    seconds = np.median([text["seconds"] for text in texts])
    return "\n".join(
        [
            *lines,
            "",
            f"{config['model']}, prompts of {config['tokens']:,} tokens{places}. Texts: share of the prompt's gain in "
            f"the log-likelihood of the {config['continuation']} tokens after it that is kept, below 0 where the model "
            f"does worse than without the prompt; the gain is {gains} nats a token{interval}. Divergence: from the "
            f"distribution behind the whole prompt, nats a token. Error: of attention outputs on these tokens, mean "
            f"over layers, heads and tokens{_against_matching(results['rows'])}; estimated: what the report says, from "
            f"texts of the model's own that nothing was fitted to (of ways that distil, before they do); coverage: "
            f"share of these errors within the report's interval for nine of ten. Seconds: to compress, behind "
            f"{seconds:.0f} seconds in which the prompt is read and texts are made, once for all methods "
            f"({where['processor']}, {where['cores']} cores, beside other work). "
            f"MB: of the prefix in memory, where the whole prompt takes {texts[0]['megabytes']:.0f}. Remade by "
            f"`python -m experiments.compression --data-root FOLDER`.",
        ]
    )


def _against_matching(rows: list[dict[str, Any]]) -> str:
    """What fitting and sharing out by need leaves of Attention Matching's error, where both were measured."""
    matching, refined = ([row for row in rows if row["method"] == name] for name in ("matching", "refined by need"))
    if not matching or not refined:
        return ""
    share = float(_mean(refined, "error")) / float(_mean(matching, "error"))
    return f", of `refined by need` {share:.2f} of Attention Matching's"


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    return f"{np.mean([row[name] for row in rows]):.3g}"
