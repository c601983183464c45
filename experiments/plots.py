"""Pictures of the experiments' results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.field_table import What
from ntkprefix.records.seeds import of_field, of_seeds

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "P-Tuning v2, 10 tokens": "#E69F00",
    "NTK-Attention": "#0072B2",
}


# What is worse than no prompt by more than this much of the gain is drawn here.
_LOWEST = -0.5
# Panels of a field in a row.
_WIDEST = 5


def compression(results: dict[str, Any]) -> Figure:
    """For every method and text, the share of the prompt's gain that is kept, and the error of attention outputs."""
    methods, texts = results["config"]["methods"], results["config"]["texts"]
    budget = results["config"]["budgets"][0]
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(methods)), layout="constrained")
    axes = figure.subplots(ncols=2, sharey=True)
    for text, colour in zip(texts, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=False):
        rows = [row for row in results["rows"] if (row["text"], row["budget"]) == (text, budget)]
        names = [row["method"] for row in rows]
        kept = [max(row["kept"], _LOWEST) for row in rows]
        axes[0].plot(kept, names, "o", color=colour, label=str(Path(text).with_suffix("")))
        axes[1].plot([row["error"] for row in rows], names, "o", color=colour)
    axes[0].axvline(1, color="#7a7a7a", linewidth=1, linestyle="--")
    axes[0].axvline(0, color="#7a7a7a", linewidth=1)
    axes[0].set(xlabel=f"share of the prompt's gain that is kept, at {budget}", xlim=(_LOWEST - 0.05, 1.1))
    axes[0].set_xticks([_LOWEST, 0, 0.25, 0.5, 0.75, 1], [f"{_LOWEST} or less", "0", "0.25", "0.5", "0.75", "1"])
    axes[0].invert_yaxis()
    axes[1].set(xlabel="relative error of attention outputs", xscale="log")
    axes[1].minorticks_off()
    axes[1].set_xticks([0.05, 0.1, 0.2, 0.5], ["0.05", "0.1", "0.2", "0.5"])
    figure.legend(frameon=False, loc="outside upper center", ncols=len(texts))
    for each in axes:
        each.grid(alpha=0.3)
        each.spines[["top", "right"]].set_visible(False)
    return figure


def field(tables: Sequence[dict[str, Any]], what: What = "right") -> Figure:
    """Accuracy, or loss, of every method on every task of a field, and in the mean over them, with 95 % intervals over
    seeds; a method that a task lacks is left out there.
    """
    made = [{row["method"] for row in table["rows"]} for table in tables]
    methods = list(dict.fromkeys(row["method"] for table in tables for row in table["rows"]))
    panels = [(table["task"], partial(of_seeds, table), of) for table, of in zip(tables, made, strict=True)]
    panels.append(("mean", partial(of_field, tables), set.intersection(*made)))
    rows = math.ceil(len(panels) / _WIDEST)
    columns = math.ceil(len(panels) / rows)
    figure = Figure(figsize=(11, 0.5 + rows * (0.5 + 0.3 * len(methods))), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (title, of, having) in zip(grid, panels, strict=False):
        means = []
        for method in methods:
            if method not in having:
                continue
            found = of(method, what)
            ends = [[found.value - found.low], [found.high - found.value]]
            colour = COLOURS["NTK-Attention"] if method == "NTK-Attention" else "#7a7a7a"
            axes.errorbar(found.value, methods.index(method), xerr=ends, fmt="o", capsize=3, color=colour)
            means.append(found.value)
        # A wide interval must not squeeze all others.
        margin = 0.4 * (max(means) - min(means)) or 0.1  # of a single method
        axes.set(title=title, xlim=(min(means) - margin, max(means) + margin))
        axes.set_yticks(range(len(methods)), methods)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.axes[0].invert_yaxis()
    shown = "accuracy on held-out rows" if what == "right" else "loss of the right answers, nats a token"
    figure.supxlabel(f"{shown}, 95 % interval over seeds", fontsize=10)
    return figure


def algebra(results: dict[str, Any]) -> Figure:
    """For every way for a prefix to stand for two documents, the share of each document's own gain that is kept."""
    texts = results["config"]["texts"]
    ways = list(dict.fromkeys(row["way"] for row in results["rows"] if row["way"]))
    figure = Figure(figsize=(10, 1.2 + 0.3 * len(ways)), layout="constrained")
    panels = figure.subplots(ncols=2, sharey=True)
    labels = {"text": "gain kept, text after a document", "words": "gain kept, words of a document"}
    for axes, (what, label) in zip(panels, labels.items(), strict=True):
        for text, colour, above in zip(texts, ("#0072B2", "#E69F00"), (-0.15, 0.15), strict=True):
            for place, way in enumerate(ways):
                rows = [row for row in results["rows"] if (row["way"], row["document"]) == (way, text)]
                kept = np.array([row[f"{what}_kept"] for row in rows])
                name = str(Path(text).with_suffix("")) if place == 0 and what == "text" else None
                for shares, style in (
                    (kept, {"marker": "o", "alpha": 0.4}),
                    (kept.mean(keepdims=True), {"marker": "d"}),
                ):
                    shown, heights = np.maximum(shares, _LOWEST), np.full(len(shares), place + above)
                    axes.plot(shown, heights, linestyle="", markersize=5, color=colour, **style)
                axes.plot([], [], "d", color=colour, label=name)
        for share, line in ((0, "-"), (1, "--")):
            axes.axvline(share, color="#7a7a7a", linewidth=1, linestyle=line)
        axes.set(xlabel=label, xlim=(_LOWEST - 0.05, 1.1))
        axes.set_xticks([_LOWEST, 0, 0.25, 0.5, 0.75, 1], [f"{_LOWEST} or less", "0", "0.25", "0.5", "0.75", "1"])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(ways)), ways)
    panels[0].invert_yaxis()
    figure.legend(frameon=False, loc="outside upper center", ncols=len(texts))
    return figure


def real_kernels(results: dict[str, dict[str, Any]]) -> Figure:
    """For each model, against M: the kernel's distance to its limit, its movement, and the linearised model's error.

    Args:
        results: what `real_kernels.main` returns, by the model's name.
    """
    figure = Figure(figsize=(11.5, 3.4 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 3, squeeze=False)
    measures = (
        ("kernel at the start, distance to its limit", "relative distance", lambda entry: entry.get("distance")),
        ("movement of the kernel", "relative movement in training", lambda entry: entry["kernel_movement"]),
        ("error of the linearised model", "relative error, held-out inputs", lambda entry: entry["error"]["test"]),
    )
    for row, (name, found) in enumerate(results.items()):
        tokens = [entry for entry in found["rows"] if entry["M"] is not None]
        state = next(entry for entry in found["rows"] if entry["M"] is None)
        lengths = np.array(sorted({entry["M"] for entry in tokens}))
        for axes, (title, label, measure) in zip(panels[row], measures, strict=True):
            values = np.array([[measure(entry) for entry in tokens if entry["M"] == M] for M in lengths])
            low, middle, high = np.quantile(values, (0.0, 0.5, 1.0), axis=1)
            axes.fill_between(lengths, low, high, color="#0072B2", alpha=0.2, linewidth=0)
            axes.plot(lengths, middle, "o-", color="#0072B2", label="M tokens: median and range of draws")
            if measure(state) is not None:
                axes.axhline(measure(state), color="#D55E00", linestyle="--", label="state (Z, k)")
            else:
                axes.plot(lengths, middle[0] * (lengths / lengths[0]) ** -0.5, ":", color="0.4", label="$M^{-1/2}$")
            axes.set(xscale="log", yscale="log", xlabel="prefix tokens M per layer", ylabel=label)
            axes.set_title(f"{name}: {title}", fontsize=10)
            axes.set_xticks(lengths, [f"{M:,}" for M in lengths])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(y=0.2)
            axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def cost(results: dict[str, Any]) -> Figure:
    """Time of attention with a prefix of M tokens, exact and as a state, relative to none, for two lengths."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    lengths = sorted(results["config"]["queries"])[:2]
    for axes, gradient in zip(figure.subplots(1, 2, sharex=True, sharey=True), (False, True), strict=True):
        for length, line in zip(lengths, ("o-", "s--"), strict=False):
            found = {
                row["case"]: row["relative_time"]
                for row in results["rows"]
                if row["queries"] == length and row["gradient"] == gradient
            }
            exact = {int(name.split()[0].replace(",", "")): t for name, t in found.items() if name.endswith(" tokens")}
            lows, middles, highs = np.array(list(exact.values())).T
            errors = [middles - lows, highs - middles]
            style = {"fmt": line, "markersize": 4, "color": COLOURS["P-Tuning v2, 10 tokens"], "capsize": 3}
            axes.errorbar(list(exact), middles, yerr=errors, label=f"M exact tokens, T = {length:,}", **style)
            low, middle, high = found["a state"]
            ends = min(exact), max(exact)
            style = {"markersize": 4, "color": COLOURS["NTK-Attention"]}
            axes.plot(ends, (middle, middle), line, label=f"a state, whatever M, T = {length:,}", **style)
            axes.fill_between(ends, low, high, color=COLOURS["NTK-Attention"], alpha=0.2, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="prefix length M", title="with gradients" if gradient else "output")
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda M, _: f"$2^{{{round(np.log2(M))}}}$"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("time / time without a prefix")
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure
