"""The table of compressed token sets in `docs/compression.md`."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.token_sets import PATH, TokenSetsConfig
from ntkprefix.given_options import spelt_out
from ntkprefix.records.seeds import of_runs, plus_minus
from ntkprefix.runs import read_json

_NAMES = {"dinov2": "DINOv2", "minilm": "MiniLM"}


def token_sets() -> str:
    """Error of attention outputs, by method, model and size."""
    results = read_json(PATH)
    config, rows = results["config"], results["rows"]
    cases = [(model, budget) for model in config["models"] for budget in config["budgets"]]
    head = ["method", *(f"{_NAMES[model]}, {budget}" for model, budget in cases), "of matching's", "coverage"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in config["methods"]:
        cells = [plus_minus(of_runs(_errors(rows, method, *case))) for case in cases]
        shares = [
            np.mean(_errors(rows, method, *case)) / np.mean(matching)
            for case in cases
            if (matching := _errors(rows, "matching", *case))
        ]
        covered = np.mean([row["coverage"] for row in rows if row["method"] == method])
        cells += [f"{min(shares):.2f} to {max(shares):.2f}" if shares else "", f"{covered:.2f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    sizes = ", ".join(
        f"{next(row['tokens'] for row in rows if row['model'] == model):,} of {config['inputs']} {what}"
        for model, what in (("dinov2", "digits"), ("minilm", "texts of agnews"))
        if model in config["models"]
    )
    return "\n".join(
        [
            *lines,
            "",
            f"The set is all tokens of some inputs ({sizes}), in every layer; methods are fitted to {config['asking']} "
            f"other inputs, and errors are those of attention outputs of {config['others']} further ones, relative, in "
            f"the mean over layers, heads and tokens. Mean over {config['seeds']} draws of all inputs, and half of its "
            f"95 % interval. Of matching's: smallest and largest ratio to Attention Matching's error in these columns. "
            f"Coverage: share of the errors within the report's interval for nine of ten. Remade by "
            f"`python -m experiments.token_sets --data-dir FOLDER{_others(config)}`.",
        ]
    )


def _others(config: dict[str, Any]) -> str:
    """What was asked for otherwise than by default, as options."""
    usual = asdict(TokenSetsConfig(data_dir=Path()))
    given = {name: value for name, value in config.items() if value != json.loads(json.dumps(usual[name]))}
    return "".join(f" {shlex.join([part])}" for part in spelt_out(given, "token_sets"))


def _errors(rows: list[dict[str, Any]], method: str, model: str, budget: str) -> list[float]:
    wanted = (method, model, budget)
    return [row["error"] for row in rows if (row["method"], row["model"], row["budget"]) == wanted]
