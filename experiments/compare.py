"""Methods side by side on one set of images, trained as by `ntkprefix train` with the step sizes that digits chose."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import tables
from experiments.fields import FIELDS
from ntkprefix.adapters import spelt
from ntkprefix.commands.jobs import image_job
from ntkprefix.commands.train import Config, run, shown
from ntkprefix.images import ImageData
from ntkprefix.models import ViT
from ntkprefix.runs import environment, progress, read_json


def compare(data: ImageData, model: ViT, out: Path, methods: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Train every method once, with progress, each in a run folder of its own.

    Args:
        data: images.
        model: the frozen transformer.
        out: folder of the run folders, whose adapters `load_adapter` reads.
        methods: names among `experiments.fields.METHODS`.
        options: of `ntkprefix train`: rows, epochs, size.

    Returns:
        Options, environment, a description of the data, one entry for every run that finished, and `failures`.
    """
    chosen = {row["method"]: row["step_size"] for row in read_json(tables.path_of("vision", "digits"))["rows"]}
    runs, failures, about = [], [], ""
    with progress() as bar:
        for method in methods:
            adapter = FIELDS["vision"].adapter(method)
            config = Config(**tables.options_of(adapter, chosen[method]), **options)
            job = image_job(config, spelt(adapter), data, model)
            about = job.about
            this = {"method": method, "step_size": chosen[method]}
            folder = out / method.replace(",", "").replace(" ", "-").lower()
            try:
                found = run(config, spelt(adapter), job, folder, shown(bar, f"{method:<22}"), resumable=False)
            except FloatingPointError as error:
                failures.append({**this, "failure": str(error)})
                continue
            runs.append({**this, **found["test"], **found["sizes"], **found["times"], "losses": _losses(folder)})
    return {
        "config": options,
        "environment": environment(),
        "data": {"name": data.name, "notes": data.notes, "about": about, "classes": list(data.class_names)},
        "runs": runs,
        "failures": failures,
    }


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]
