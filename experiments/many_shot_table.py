"""The table of compressed examples in `docs/compression.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.commands import remaking
from experiments.many_shot import PATH, ManyShotConfig
from ntkprefix.records.many_shot import called, kept_of, right_of
from ntkprefix.runs import read_json


def many_shot() -> str:
    """What of the help of many examples each method keeps, and how often answers are right."""
    results = read_json(PATH)
    config, where, tasks = results["config"], results["environment"], results["tasks"]
    columns = ["method"]
    for task in tasks:
        columns += [f"{task['task']}, kept", "right"] if task["classes"] else [f"{task['task']}, kept"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for method in [row["method"] for row in tasks[0]["rows"]]:
        cells = [called(method)]
        for task in tasks:
            cells.append(f"{kept_of(task)[method].value:.2f}")
            if task["classes"]:
                found = right_of(task)[method]
                cells.append(f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]")
        lines.append(f"| {' | '.join(cells)} |")
    shown = ", ".join(f"{task['examples']} of {task['task']}" for task in tasks)
    gains = ", ".join(
        f"{_row(task, 'all')['log_likelihood'] - _row(task, 'none')['log_likelihood']:.2f} for {task['task']}"
        for task in tasks
    )
    # Before they could be chosen, queries were those of the model's own texts.
    found = config | {"queries": config.get("queries", "continue")}
    remade = remaking("many_shot", found, ManyShotConfig(data_root=Path("FOLDER")))
    return "\n".join(
        [
            *lines,
            "",
            f"{config['model']}; the examples that {config['tokens']:,} tokens hold ({shown}), compressed "
            f"{config['budget']}, before {tasks[0]['test_rows']} test questions each. Kept: share of the examples' "
            f"gain in the log-likelihood of the right answer, which is {gains} nats an answer. Right: share of "
            f"questions whose likeliest class is the right one, with Wilson's 95 % interval ({where['processor']}, "
            f"{where['cores']} cores). Remade by `{remade}`.",
        ]
    )


def _row(task: dict[str, Any], method: str) -> dict[str, Any]:
    return next(row for row in task["rows"] if row["method"] == method)
