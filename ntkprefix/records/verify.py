"""Runs of `ntkprefix verify`: the verdicts, and the numbers behind their plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntkprefix.records.base import Kind, Record
from ntkprefix.records.shape import Numbers
from ntkprefix.report import Line, Plot, Section, Table, number
from theory import intervals
from theory.bound import within_bound
from theory.curves import centre, fitted_power, spread_out
from theory.verdicts import bracket
from theory.verify import cautions

_FINDING = {
    "name": str,
    "estimate": (float, None),
    "interval": Numbers("2", gaps=True),
    "band": Numbers("2", gaps=True),
    "passed": bool,
}
SHAPE = {
    "config": {"scaling_lengths": Numbers("L")},
    "verdicts": [{"name": str, "claim": str, "status": str, "outside": str, "findings": [_FINDING]}],
    "setting": {"guaranteed_rate": float},
    "infinite": {"loss": Numbers("T", gaps=True), "rate": (float, None)},
    "kernel": {
        "lengths": Numbers("K"),
        "error": Numbers("K S", gaps=True),
        "eigenvalue_ratio": Numbers("K S", gaps=True),
    },
    "training": {
        "lengths": Numbers("M"),
        "steps": Numbers("M C"),
        "loss": Numbers("M s C", gaps=True),
        **{
            name: Numbers("M s", gaps=True)
            for name in ("excess", "rate", "curve_difference", "movement", "drift", "prediction_error")
        },
    },
    "requirement": [{"vary": str, "value": float, "n": int, "demanded": float, "smallest": Numbers("R", gaps=True)}],
}
_M = "prefix length M (tokens)"
_RANGE = "Geometric mean over seeds and their range; dashed, the power that fits the rungs from 1,024 on."
_NAMES = {"n": "inputs n", "d": "width d", "sigma": "standard deviation sigma at the start"}
_INFINITE, _BOUND = "M = infinity (kernel H*)", "guaranteed bound"


def sections(records: Sequence[Record]) -> list[Section]:
    """One section for every run."""
    return [section(record.content, f"Convergence as the prefix grows: {record.name}") for record in records]


def section(results: Mapping[str, Any], title: str, text: str = "") -> Section:
    """A run's verdicts, what they leave open, and their plots.

    Args:
        results: of the run.
        title: of the section.
        text: below it; how many verdicts hold if it is empty.
    """
    verdicts = results["verdicts"]
    outside = dict.fromkeys(verdict["outside"] for verdict in verdicts if verdict["outside"])
    claims = [f"{verdict['name']}: {verdict['claim']}." for verdict in verdicts]
    held = sum(verdict["status"] == "pass" for verdict in verdicts)
    return Section(
        title,
        text=text or f"{held} of {len(verdicts)} verdicts on the convergence theorem hold.",
        table=_table(verdicts),
        notes=[*claims, *(f"Not applicable: {reason}." for reason in outside), *cautions(verdicts)],
        plots=_plots(results),
    )


def _table(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            f"{verdict['name']}: {finding['name']}",
            verdict["status"],
            number(finding["estimate"]),
            " to ".join(map(number, finding["interval"])),
            " to ".join(map(number, finding["band"])),
        ]
        for verdict in verdicts
        for finding in verdict["findings"]
    ]
    return Table(["finding", "verdict", "estimate", "95 % interval", "band"], rows)


def _plots(results: Mapping[str, Any]) -> list[Plot]:
    kernel, training = results["kernel"], results["training"]
    lengths = training["lengths"]
    return [
        _falling(
            results,
            "Kernel at the start against its limit",
            "‖H_M(0) − H*‖ / ‖H*‖",
            kernel["lengths"],
            {"relative error": (kernel["error"], ("kernel", 0))},
        ),
        _eigenvalue(results),
        _falling(
            results,
            "How far weights and kernel move in training",
            "relative movement",
            lengths,
            {
                "weights, max ‖w_r(t) − w_r(0)‖": (training["movement"], ("lazy", 0)),
                "kernel, ‖H_M(T) − H_M(0)‖ / ‖H*‖": (training["drift"], ("lazy", 1)),
            },
        ),
        *_rate(results),
        _shares(results),
        _curves(results),
        _falling(
            results,
            "Distance to the infinite prefix",
            "relative distance",
            lengths,
            {
                "loss curve, sup |L_M(t) − L_∞(t)| / L(0)": (training["curve_difference"], ("curve", 0)),
                "held-out predictions": (training["prediction_error"], ("prediction", 0)),
            },
        ),
        *_requirement(results),
    ]


def _falling(
    results: Mapping[str, Any],
    title: str,
    label: str,
    lengths: Sequence[int],
    measured: Mapping[str, tuple[Any, tuple[str, int]]],
) -> Plot:
    """What falls as M grows, [lengths, seeds], each with the power that was fitted to it."""
    lines = []
    for name, (values, (verdict, index)) in measured.items():
        middle, low, high = (ends.tolist() for ends in centre(values, axis=1))
        lines.append(Line(name, lengths, middle, low, high, group=name, style="both"))
        finding = _finding(results, verdict, index)
        if finding is not None and finding["estimate"] is not None and len(lengths) >= 3:
            rungs, heights = fitted_power(lengths, values, finding["estimate"])
            low, high = map(number, finding["interval"])
            fit = f"fit M^{finding['estimate']:.3f} [{low}, {high}]"
            lines.append(Line(f"{name}: {fit}", rungs.tolist(), heights.tolist(), group=fit, reference=True))
    return Plot(title, _M, label, lines, _RANGE, x_log=True, y_log=True)


def _eigenvalue(results: Mapping[str, Any]) -> Plot:
    kernel = results["kernel"]
    lengths, ratio = kernel["lengths"], np.array(kernel["eigenvalue_ratio"], float)
    lines = [
        *(
            Line(f"seed {index + 1}", lengths, seed.tolist(), group="seeds", weak=True)
            for index, seed in enumerate(ratio.T)
        ),
        Line("mean over seeds", lengths, ratio.mean(axis=1).tolist(), style="both"),
        _level("3/4 of the limit", lengths, 0.75),
    ]
    return Plot("Smallest eigenvalue of the kernel at the start", _M, "λ_min(H_M(0)) / λ_min(H*)", lines, x_log=True)


def _rate(results: Mapping[str, Any]) -> list[Plot]:
    training, guaranteed = results["training"], results["setting"]["guaranteed_rate"]
    if not guaranteed > 0:
        return []
    lengths, ratio = training["lengths"], np.array(training["rate"], float) / guaranteed
    middle, low, high = (each.tolist() for each in (ratio.mean(axis=1), ratio.min(axis=1), ratio.max(axis=1)))
    lines = [
        Line("mean and range over seeds", lengths, middle, low, high, style="both"),
        _level("guaranteed", lengths, 1.0),
    ]
    if results["infinite"]["rate"]:
        lines.append(_level(_INFINITE, lengths, results["infinite"]["rate"] / guaranteed))
    caption = "Fall of the loss per step in the last quarter of training, over the rate that is guaranteed."
    return [Plot("Measured over guaranteed rate", _M, "ratio", lines, caption, x_log=True)]


def _shares(results: Mapping[str, Any]) -> Plot:
    """Shares of seeds with Wilson's intervals."""
    kernel, training = results["kernel"], results["training"]
    lines = []
    for name, lengths, holds in (
        (
            "eigenvalue at least 3/4 of its limit",
            kernel["lengths"],
            np.array(kernel["eigenvalue_ratio"], float) >= 0.75,
        ),
        ("loss within the bound at every step", training["lengths"], within_bound(training["excess"])),
    ):
        shares, low, high = np.array([intervals.share(seeds) for seeds in holds]).T.tolist()
        lines.append(Line(name, lengths, shares, low, high, style="both"))
    return Plot(
        "Share of seeds that keep the theorem's conditions", _M, "share", lines, "With 95 % intervals.", x_log=True
    )


def _curves(results: Mapping[str, Any]) -> Plot:
    """Loss against step for the whole ladder, the infinite prefix and the bound."""
    training, loss = results["training"], np.array(results["training"]["loss"], float)
    steps, shown = training["steps"][0], spread_out(len(training["lengths"]))
    lines = []
    for index, M in enumerate(training["lengths"]):
        middle, low, high = (ends.tolist() for ends in centre(loss[index], axis=0))
        lines.append(Line(f"M = {M:,}", steps, middle, low, high, off=index not in shown))
    infinite = results["infinite"]["loss"]
    there = [step for step in steps if 0 <= step < len(infinite)]
    lines.append(Line(_INFINITE, there, [infinite[int(step)] for step in there], reference=True))
    rate, start = results["setting"]["guaranteed_rate"], loss[0, 0, 0]
    bound = (start * np.power(max(0.0, 1 - rate), np.array(steps, float))).tolist()
    lines.append(Line(_BOUND, steps, bound, reference=True))
    caption = "Geometric mean over seeds and their range. The first step is 0, which a logarithmic axis leaves out."
    return Plot(
        "Loss curves", "step t", "loss ½ Σ ‖F(x_i) − y_i‖²", lines, caption, x_log=True, y_log=True, ladder=True
    )


def _requirement(results: Mapping[str, Any]) -> list[Plot]:
    """Smallest M that keeps the guarantee, as n, d and sigma vary."""
    plots = []
    for vary, name in _NAMES.items():
        settings = [each for each in results["requirement"] if each["vary"] == vary]
        if not settings:
            continue
        values = [each["value"] for each in settings]
        seeds = np.array([bracket(each, results["config"]["scaling_lengths"])[1] for each in settings])
        with np.errstate(invalid="ignore"):
            middle = np.median(seeds, axis=1).tolist()
        lines = [
            Line("median over seeds", values, middle, style="both"),
            Line(
                "seeds", np.repeat(values, seeds.shape[1]).tolist(), seeds.ravel().tolist(), style="points", weak=True
            ),
        ]
        caption = "Seeds for which the ladder or the training was too short are left out of the points."
        plots.append(
            Plot(f"Smallest M that keeps the bound, against {name}", name, "M (tokens)", lines, caption, y_log=True)
        )
    return plots


def _level(name: str, lengths: Sequence[int], height: float) -> Line:
    return Line(name, [lengths[0], lengths[-1]], [height, height], reference=True)


def _finding(results: Mapping[str, Any], name: str, index: int) -> Mapping[str, Any] | None:
    """One finding of a verdict; None where the verdict does not apply, or is not there."""
    for verdict in results["verdicts"]:
        if verdict["name"] == name and verdict["status"] != "not applicable" and index < len(verdict["findings"]):
            return verdict["findings"][index]
    return None


KIND = Kind("ntkprefix verify", ("verdicts",), {"environment": dict, **SHAPE}, sections)
