"""What is in a page, read by the standard library's parser; and run folders made by hand."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

ENVIRONMENT = {
    "ntkprefix": "0.1",
    "commit": "abcdef123456",
    "python": "3.11",
    "packages": {"jax": "0.10.2"},
    "device": "cpu",
    "processor": "a processor",
    "cores": 2,
    "finished": "2026-01-02T03:04:05+00:00",
}


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.tables, self.figures, self.scripts, self.headings, self.text = [], [], [], [], [], []
        self._inside = ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")
        elif tag in ("h2", "h3"):
            self.headings.append("")

    def handle_endtag(self, tag):
        self._inside = ""
        if tag == "script" and self.tags[-1][1].get("type") == "application/json":
            self.figures.append({"title": self.headings[-1], **json.loads(self.scripts.pop())})

    def handle_data(self, data):
        if self._inside in ("th", "td"):
            self.tables[-1][-1][-1] += data
        elif self._inside == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)
            if self._inside in ("h2", "h3"):
                self.headings[-1] += data


def read(path):
    """Elements with attributes, tables of cells, plots with their titles, headings, scripts, and all other text."""
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    return SimpleNamespace(
        tags=parser.tags,
        tables=parser.tables,
        figures=parser.figures,
        scripts=parser.scripts,
        headings=parser.headings,
        text=" ".join(parser.text),
    )


def train_run(folder, *, right="1" * 18 + "00", losses=(2.0, 1.0, 0.5), validation=(0.8, 0.6), **config):
    """A folder as `ntkprefix train` leaves it."""
    folder.mkdir(parents=True)
    known = {"model": "dinov2", "adapter": "lora:rank=2", "task": "images", "data_dir": None, "out": str(folder)}
    known |= {"learning_rate": 0.003, "head_learning_rate": 0.001, "epochs": 2, "seed": 0} | config
    results = {
        "config": known,
        "environment": ENVIRONMENT,
        "data": f"digits: 48 training rows, {len(right)} test rows, 10 classes",
        "test": {"accuracy": right.count("1") / max(1, len(right)), "loss": 0.25 + known["seed"] / 10, "right": right},
        "sizes": {"adapter_parameters": 1234, "head_parameters": 56, "break_even_tokens": 1.5},
        "times": {"steps": len(losses), "seconds": 3.0, "seconds_per_step": 0.5},
        "validation": list(validation),
    }
    (folder / "results.json").write_text(json.dumps(results))
    steps = [{"step": step, "epoch": step / 2, "loss": loss} for step, loss in enumerate(losses, start=1)]
    steps += [{"step": 2 * epoch, "validation": loss} for epoch, loss in enumerate(validation, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder
