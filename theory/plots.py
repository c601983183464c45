"""The verdicts' plots, drawn from the contents of results.json alone, as PNG and PDF."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, SymmetricalLogLocator

from ntkprefix.runs import write_bytes
from theory import intervals
from theory.bound import within_bound
from theory.curves import centre, fitted_power, spread_out
from theory.verdicts import KERNEL_AGREEMENT, bracket

# One size for all, so that side by side or one below the other their letters are alike.
_SIZE = (9.2, 3.6)
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.w_pad": 0.08,
    "lines.linewidth": 1.6,
    "pdf.fonttype": 42,
}
# From Okabe and Ito's palette, told apart with any colour vision.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_INFINITE: dict[str, Any] = {"color": "black", "linestyle": "--", "label": r"$M = \infty$ (kernel $H^*$)"}
_SUBS = (1.0, 2.0, 5.0)
_PLAIN = FuncFormatter(lambda number, _: f"{number:g}".replace("-", "−"))
_BOUND: dict[str, Any] = {"color": _ORANGE, "linestyle": ":", "label": "guaranteed bound"}


def draw_all(results: dict[str, Any], folder: str | Path) -> list[Path]:
    """Draw one plot per verdict.

    Args:
        results: contents of a run's results.json.
        folder: where PNG and PDF files go; it is there.

    Returns:
        The files written.

    Raises:
        OSError: a file cannot be written.
    """
    written = []
    for name, draw in PLOTS.items():
        with rc_context(_STYLE):
            figure = draw(results)
            for suffix in ("png", "pdf"):
                path = Path(folder) / f"{name}.{suffix}"
                # Without the date, the same results give the same file.
                metadata = {"CreationDate": None} if suffix == "pdf" else None
                picture = io.BytesIO()
                figure.savefig(picture, format=suffix, dpi=160, metadata=metadata)
                write_bytes(path, picture.getvalue())
                written.append(path)
    return written


def kernel_error(results: dict[str, Any]) -> Figure:
    """Relative error of the kernel at the start against M, and its difference from another computation of it."""
    figure, (left, right) = _panels(2)
    kernel, difference = results["kernel"], _array(results["agreement"]["difference"])
    _falling(left, kernel["lengths"], kernel["error"], _finding(results, "kernel", 0), reference=-0.5)
    left.set(
        ylabel=r"$\|H_M(0) - H^*\| \,/\, \|H^*\|$",
        title=_title(results, "Kernel at the start against its limit", "kernel"),
    )
    right.plot(np.arange(1, len(difference) + 1), difference, "o", color=_GREEN, markersize=4, label="each seed")
    right.axhline(KERNEL_AGREEMENT[1], color=_ORANGE, linestyle=":", label="allowed")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    # An exact agreement has no log.
    right.set_yscale("log", nonpositive="clip")
    right.set_ylim(KERNEL_AGREEMENT[1] * 1e-3, max(10 * KERNEL_AGREEMENT[1], 2 * np.nanmax(difference, initial=0)))
    right.set(xlabel="seed", ylabel="relative difference", title="Kernel at the start against neural_tangents")
    right.legend(loc="lower right")
    return figure


def eigenvalue(results: dict[str, Any]) -> Figure:
    """Smallest eigenvalue over its limit, each seed, and the share of seeds above 3/4."""
    figure, (left, right) = _panels(2)
    kernel = results["kernel"]
    lengths, ratio = kernel["lengths"], _array(kernel["eigenvalue_ratio"])
    for seed in ratio.T:
        left.plot(lengths, seed, color=_BLUE, alpha=0.35, linewidth=0.8)
    left.plot(lengths, ratio.mean(axis=1), color=_BLUE, marker="o", markersize=4, label="mean; thin lines are seeds")
    left.axhline(0.75, color=_ORANGE, linestyle=":", label="3/4")
    left.axhline(1.0, color="black", linestyle="--", linewidth=1, label="limit")
    _lengths_axis(left, lengths)
    left.set(
        ylabel=r"$\lambda_{\min}(H_M(0)) \,/\, \lambda_{\min}(H^*)$",
        title=_title(results, "Smallest eigenvalue", "eigenvalue"),
    )
    left.legend(loc="lower right")
    _share(right, lengths, ratio >= 0.75)
    right.set_title("Ratio of at least 3/4")
    return figure


def lazy(results: dict[str, Any]) -> Figure:
    """How far weights and kernel move during training."""
    figure, (left, right) = _panels(2)
    training = results["training"]
    _falling(left, training["lengths"], training["movement"], _finding(results, "lazy", 0))
    _falling(right, training["lengths"], training["drift"], _finding(results, "lazy", 1), colour=_GREEN)
    left.set(ylabel=r"$\max_{t,r}\, \|w_r(t) - w_r(0)\|$", title=_title(results, "Weight movement", "lazy"))
    right.set(ylabel=r"$\|H_M(T) - H_M(0)\| \,/\, \|H^*\|$", title="Kernel drift")
    return figure


def guarantee(results: dict[str, Any]) -> Figure:
    """Measured and guaranteed rates, and the share of seeds that stay within the bound at every step."""
    figure, (left, right) = _panels(2)
    training, guaranteed = results["training"], results["setting"]["guaranteed_rate"]
    lengths, ratio = training["lengths"], _array(training["rate"]) / guaranteed
    left.plot(
        lengths, ratio.mean(axis=1), color=_BLUE, marker="o", markersize=4, label=f"mean and range, {_seeds(results)}"
    )
    left.fill_between(lengths, ratio.min(axis=1), ratio.max(axis=1), color=_BLUE, alpha=0.18, linewidth=0)
    # None where training diverges on the infinite prefix.
    infinite = (results["infinite"]["rate"] or 0.0) / guaranteed
    if infinite:
        left.axhline(infinite, **_INFINITE)
    left.axhline(1.0, **(_BOUND | {"label": r"guaranteed, $\eta\lambda/2$ per step"}))
    _signed_log_axis(left)
    _lengths_axis(left, lengths)
    left.set(ylabel="rate of the last quarter / guaranteed rate", title="Measured over guaranteed rate")
    left.legend(loc="lower right")
    _share(right, lengths, within_bound(_array(training["excess"])))
    right.set_title(_title(results, "Loss within the bound at every step", "guarantee"))
    return figure


def curves(results: dict[str, Any]) -> Figure:
    """Loss against step for the whole ladder, the infinite prefix and the bound; and the distance between them."""
    figure, (left, right) = _panels(2)
    training, loss = results["training"], _array(results["training"]["loss"])
    lengths, steps = training["lengths"], np.array(training["steps"][0])
    colours = _ladder_colours(len(lengths))
    shown = spread_out(len(lengths))
    for index in shown:
        middle, low, high = centre(loss[index], axis=0)
        left.plot(steps, middle, color=colours[index], label=_length(lengths[index]))
        left.fill_between(steps, low, high, color=colours[index], alpha=0.15, linewidth=0)
    start, infinite = loss[0, 0, 0], np.array(results["infinite"]["loss"], float)
    least = start
    if np.isfinite(infinite).all():
        left.plot(steps, infinite[steps], **_INFINITE)
        least = infinite.min()
    left.plot(steps, start * max(0.0, 1 - results["setting"]["guaranteed_rate"]) ** steps, **_BOUND)
    left.set_xscale("symlog", linthresh=1)
    left.set_yscale("log")
    left.set_xlim(0, steps[-1])
    # The curves of a prefix that diverges would squeeze all others.
    left.set_ylim(max(least / 5, start * 1e-8), start * 5)
    left.set(
        xlabel="step t",
        ylabel=r"loss $\frac{1}{2}\sum_i \|F(x_i) - y_i\|^2$",
        title=f"Loss curves, geometric mean and range, {_seeds(results)}",
    )
    left.legend(loc="lower left", ncols=1 + (len(shown) > 4), columnspacing=1.0)
    _falling(right, lengths, training["curve_difference"], _finding(results, "curve", 0))
    right.set(
        ylabel=r"$\sup_t\, |L_M(t) - L_\infty(t)| \,/\, L(0)$",
        title=_title(results, "Distance to the infinite-prefix curve", "curve"),
    )
    return figure


def prediction(results: dict[str, Any]) -> Figure:
    """Held-out predictions against the infinite prefix's: error against M, and all outputs at the largest M."""
    figure, (left, right) = _panels(2)
    training = results["training"]
    _falling(left, training["lengths"], training["prediction_error"], _finding(results, "prediction", 0))
    left.set(ylabel="relative error on held-out inputs", title=_title(results, "Held-out predictions", "prediction"))
    limit = np.array(results["infinite"]["predictions"], float)
    middle = len(training["lengths"]) // 2
    for index, colour, marker in ((middle, _ORANGE, "^"), (-1, _BLUE, "o")):
        label = _length(training["lengths"][index])
        outputs = np.array(training["predictions"][index][0], float)
        right.plot(limit, outputs, marker, color=colour, markersize=3, alpha=0.6, linestyle="none", label=label)
    if np.isfinite(limit).all():
        ends = np.array([limit.min(), limit.max()])
        right.plot(ends, ends, color="black", linestyle="--", linewidth=1)
        spread = 1.6 * np.abs(limit).max()
        right.set_ylim(-spread, spread)
    right.set(
        xlabel="prediction of kernel regression with $H^*$, same step",
        ylabel="prediction of the trained prefix",
        title="Every held-out output, first seed",
    )
    right.legend(loc="upper left")
    return figure


def requirement(results: dict[str, Any]) -> Figure:
    """Smallest M that keeps the guarantee, as n, d and sigma vary."""
    figure, panels = _panels(3, sharey=True)
    names = {"n": "inputs n", "d": "width d", "sigma": r"standard deviation $\sigma$ at the start"}
    growths = {"n": "exponent of n", "d": "exponent of d", "sigma": r"$d \log M / d\sigma$"}
    for index, (axes, vary) in enumerate(zip(panels, names, strict=True)):
        _smallest(axes, results, vary)
        finding = _finding(results, "requirement", index + 1)
        if finding is None or finding["estimate"] is None:
            title = growths[vary]
        else:
            title = f"{growths[vary]}: {_with_interval(finding)}"
        axes.set(xlabel=names[vary], title=title)
    panels[0].set_ylabel("smallest M that keeps the bound")
    text = "Prefix length that the guarantee needs (dots grow with the number of seeds)"
    figure.suptitle(_title(results, text, "requirement"), fontsize=_STYLE["axes.titlesize"])
    return figure


def _smallest(axes: Axes, results: dict[str, Any], vary: str) -> None:
    settings = [setting for setting in results["requirement"] if setting["vary"] == vary]
    ladder, values = results["config"]["scaling_lengths"], [setting["value"] for setting in settings]
    below, smallest = np.array([bracket(setting, ladder) for setting in settings]).transpose(1, 0, 2)
    axes.plot(
        values, np.median(smallest, axis=1), color=_BLUE, label=f"median of {results['config']['scaling_seeds']} seeds"
    )
    for value, lows, seeds in zip(values, below, smallest, strict=True):
        # Seeds coincide on a rung, so the size of a dot says how many; a line leads down to the rung before.
        rungs, counts = np.unique(seeds[np.isfinite(seeds)], return_counts=True)
        axes.scatter(np.full(len(rungs), value), rungs, s=12 * counts, color=_BLUE, alpha=0.35, linewidths=0)
        known = np.isfinite(seeds)
        axes.vlines(np.full(known.sum(), value), lows[known], seeds[known], color=_BLUE, linewidth=0.8)
    for cases, height, marker, label in (
        (np.isinf(smallest), 2.0 * ladder[-1], "x", "above the ladder for some seeds"),
        (np.isnan(smallest), ladder[0] / 2.0, "v", "not known: ladder or training too short"),
    ):
        places = [value for value, seeds in zip(values, cases, strict=True) if seeds.any()]
        if places:
            axes.plot(places, np.full(len(places), height), marker, color=_ORANGE, label=label)
    axes.set_yscale("log", base=2)
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.legend(loc="upper left")


PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "kernel": kernel_error,
    "eigenvalue": eigenvalue,
    "lazy": lazy,
    "guarantee": guarantee,
    "curve": curves,
    "prediction": prediction,
    "requirement": requirement,
}


def _panels(count: int, **options: Any) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, **options)[0])


def _array(rows: Any) -> np.ndarray:
    """Numbers with NaN where JSON has null."""
    return np.array(rows, float)


def _falling(
    axes: Axes,
    lengths: list[int],
    rows: Any,
    finding: dict[str, Any] | None,
    *,
    colour: str = _BLUE,
    reference: float | None = None,
) -> None:
    """What falls as M grows, [lengths, seeds]: mean and range over seeds, and the power that fits."""
    _band(axes, lengths, rows, colour, f"{len(rows[0])} seeds")
    _fit(axes, lengths, rows, finding)
    if reference is not None:
        _reference_power(axes, lengths, rows, reference)
    _lengths_axis(axes, lengths)
    _log_axis(axes)
    axes.legend(loc="upper right")


def _band(axes: Axes, sizes: Any, rows: Any, colour: str, label: str) -> None:
    middle, low, high = centre(_array(rows), axis=1)
    axes.plot(sizes, middle, color=colour, marker="o", markersize=4, label=f"geometric mean and range, {label}")
    axes.fill_between(sizes, low, high, color=colour, alpha=0.18, linewidth=0)


def _fit(axes: Axes, lengths: list[int], rows: Any, finding: dict[str, Any] | None) -> None:
    """The fitted power over the rungs that it was fitted to."""
    if finding is None or finding["estimate"] is None:
        return
    rungs, heights = fitted_power(lengths, _array(rows), finding["estimate"])
    low, high = finding["interval"]
    label = f"fit: $M^{{{finding['estimate']:.2f}}}$, 95 % interval [{low:.2f}, {high:.2f}]"
    axes.plot(rungs, heights, color=_ORANGE, linestyle="--", label=label)


def _reference_power(axes: Axes, lengths: list[int], rows: Any, power: float) -> None:
    ends = np.array([lengths[0], lengths[-1]], float)
    height = 0.6 * centre(_array(rows), axis=1)[0][-1] * (ends / ends[-1]) ** power
    axes.plot(ends, height, color="0.5", linestyle=":", linewidth=1.2, label=f"$M^{{{power:g}}}$")


def _share(axes: Axes, lengths: list[int], holds: np.ndarray) -> None:
    estimates = np.array([intervals.share(seeds) for seeds in holds])
    axes.plot(lengths, estimates[:, 0], color=_GREEN, marker="o", markersize=4, label="share")
    axes.fill_between(
        lengths, estimates[:, 1], estimates[:, 2], color=_GREEN, alpha=0.18, linewidth=0, label="95 % interval"
    )
    _lengths_axis(axes, lengths)
    axes.set(ylabel="share of seeds", ylim=(-0.05, 1.05))
    axes.legend(loc="lower right")


def _lengths_axis(axes: Axes, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    # matplotlib finds no limits by itself when every run diverged.
    margin = (lengths[-1] / lengths[0]) ** 0.05
    axes.set_xlim(lengths[0] / margin, lengths[-1] * margin)
    axes.xaxis.set_major_locator(LogLocator(base=4 if len(lengths) > 5 else 2, numticks=9))
    axes.set_xlabel("prefix length M (tokens)")


def _log_axis(axes: Axes) -> None:
    # Nothing is there to scale when every run diverged.
    if not any(np.nanmax(_array(line.get_ydata()), initial=0) > 0 for line in axes.lines):
        axes.text(0.5, 0.5, "training diverged", transform=axes.transAxes, ha="center")
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    # Within few decades, powers of ten alone would leave most of the axis without a number.
    if high / low < 1e3:
        axes.yaxis.set_major_locator(LogLocator(subs=_SUBS))
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())


def _signed_log_axis(axes: Axes) -> None:
    """Ratios, which are compared by their logs, but for those of short prefixes that may be near 0 or negative."""
    axes.set_yscale("symlog", linthresh=1, linscale=0.5)
    far = max(map(abs, axes.get_ylim()))
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=_SUBS if far < 1e3 else [1]))
    axes.yaxis.set_major_formatter(_PLAIN)


def _ladder_colours(count: int) -> list:
    # Short of the map's pale end, which would vanish on white.
    return [colormaps["viridis_r"](0.1 + 0.9 * index / max(1, count - 1)) for index in range(count)]


def _length(M: int) -> str:
    return f"$M = 2^{{{M.bit_length() - 1}}}$" if M & (M - 1) == 0 else f"$M = {M}$"


def _with_interval(finding: dict[str, Any]) -> str:
    # An end that JSON has as null is infinite. Adding zero takes the sign off a rounded -0.00.
    low, high = (far if end is None else end for end, far in zip(finding["interval"], (-np.inf, np.inf), strict=True))
    value, low, high = (f"{round(number, 2) + 0.0:.2f}" for number in (finding["estimate"], low, high))
    return f"{value} [{low}, {high}]"


def _finding(results: dict[str, Any], name: str, index: int) -> dict[str, Any] | None:
    verdict = next(verdict for verdict in results["verdicts"] if verdict["name"] == name)
    return verdict["findings"][index] if verdict["status"] != "not applicable" else None


def _title(results: dict[str, Any], text: str, name: str) -> str:
    verdict = next(verdict for verdict in results["verdicts"] if verdict["name"] == name)
    return f"{text}: {verdict['status']}"


def _seeds(results: dict[str, Any]) -> str:
    return f"{results['config']['seeds']} seeds"
