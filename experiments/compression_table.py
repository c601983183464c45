"""The table of compressed prompts in `docs/compression.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.compression import PATH
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


def _against_matching(rows: list[dict[str, Any]]) -> str:
    """What fitting and sharing out by need leaves of Attention Matching's error, where both were measured."""
    matching, refined = ([row for row in rows if row["method"] == name] for name in ("matching", "refined by need"))
    if not matching or not refined:
        return ""
    share = float(_mean(refined, "error")) / float(_mean(matching, "error"))
    return f", of `refined by need` {share:.2f} of Attention Matching's"


def _mean(rows: list[dict[str, Any]], name: str) -> str:
    return f"{np.mean([row[name] for row in rows]):.3g}"
