"""Runs of `ntkprefix train` that take seconds, on rows of a few words."""

import json

from ntkprefix.cli import main

SMALL = ["--train-rows", "48", "--test-rows", "30", "--epochs", "2", "--size", "8", "--length", "12"]


def texts(folder, rows):
    folder.mkdir(exist_ok=True)
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(out, *options):
    assert main(["train", *SMALL, "--out", str(out), *options]) == 0
    return json.loads((out / "results.json").read_text())
