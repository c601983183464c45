"""Check the convergence theorem over a ladder of prefix lengths: measure, judge, draw, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ntkprefix import hosts
from ntkprefix.checks import yes_or_no
from ntkprefix.hosts import by_first, entered_by_first, first
from ntkprefix.parallel import mesh_of, on_mesh
from ntkprefix.run_folder import prepare_folder, run_folder
from ntkprefix.runs import environment, progress, read_json, write_json
from theory import measure, verdicts
from theory.bound import LAX, allowed_share
from theory.config import Config
from theory.pieces import Pieces
from theory.verdicts import Verdict

_SETTING_FIELDS = ("n", "d", "n_test", "sigma", "data", "projection", "targets", "target_scale", "seed")
_TRAINING_FIELDS = (*_SETTING_FIELDS, "optimizer", "step_size", "batch_size", "steps", "seeds")
_SCALING_FIELDS = (*_TRAINING_FIELDS[:-2], "scaling_seeds", "scaling_lengths", "scaling_max_steps")
_RESULTS = "results.json"
_COLOURS = {"pass": "green", "undecided": "magenta", "fail": "red", "not applicable": "yellow"}


@dataclass(frozen=True)
class Report:
    """What a run came to: its verdicts, and all numbers behind them as written to results.json.

    Attributes:
        verdicts: the seven, in the order of the theorem's lines.
        results: all that `results.json` holds.
        folder: where it is.

    Example:
        >>> from pathlib import Path
        >>> from theory import Finding, Report, Verdict
        >>> from theory.intervals import Estimate
        >>> vague = Finding("exponent of M", Estimate(-0.5, -0.7, -0.3), (-0.6, -0.4))
        >>> Report((Verdict("kernel", "it approaches", (vague,)),), results={}, folder=Path("runs/verify")).passed
        False
    """

    verdicts: tuple[Verdict, ...]
    results: dict[str, Any]
    folder: Path

    @property
    def passed(self) -> bool:
        """True when every verdict that applies passed; an undecided one did not."""
        return all(verdict.holds for verdict in self.verdicts)


def verify(config: Config, *, plots: bool = True, show_progress: bool = False) -> Report:
    """Measure, judge and draw; write `results.json`, and each plot as PNG and PDF, to the run folder.

    A run that was stopped resumes when started again with the same folder and settings.

    Args:
        config: the setting and the ladder.
        plots: draw.
        show_progress: show a progress bar.

    Returns:
        The verdicts and all numbers behind them.

    Raises:
        ImportError: neural_tangents, scikit-learn for digits, or matplotlib with `plots`, is not installed.
        OSError: the run folder cannot be made or written, or another run has it; of this it makes sure before it
            measures anything.
        TypeError: `config` is not a Config, or an option is not a bool.
        ValueError: a piece of an earlier run is damaged, the infinite-prefix kernel is singular, too large or
            overflows, there are not enough digits, or not the devices of the mesh.

    Example:
        A run takes a minute or more. Results that are not its own it leaves as they are:

        >>> import tempfile
        >>> from pathlib import Path
        >>> from ntkprefix.runs import write_json
        >>> from theory import Config, verify
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_json(f"{folder}/results.json", {"accuracy": 0.9})
        ...     verify(Config(quick=True, out=Path(folder)), plots=False)
        Traceback (most recent call last):
        ValueError: .../results.json: expected results of ntkprefix verify, or none, got others. Choose another --out.

    Source: arXiv 2406.14036, convergence theorem; the seven lines are listed in docs.
    """
    if not isinstance(config, Config):
        raise TypeError(f"verify: expected a Config, got {type(config).__name__}. Use Config(quick=True), for example.")
    yes_or_no("verify", plots=plots, show_progress=show_progress)
    hosts.join(config.hosts)
    hosts.same(_plain_config(config))
    mesh, show_progress = mesh_of(config.mesh) if config.mesh else None, show_progress and first()
    with entered_by_first(lambda: run_folder(config.out)):
        by_first(lambda: _prepare(config.out))
        with on_mesh(mesh), progress(disable=not show_progress, transient=True) as bar:
            measured = _measure(config, bar)
        return _told(measured, config, plots)


def _prepare(out: Path) -> None:
    path = out / _RESULTS
    if path.exists() and "verdicts" not in read_json(path):
        raise ValueError(f"{path}: expected results of ntkprefix verify, or none, got others. Choose another --out.")
    prepare_folder(_pieces_folder(out))


def _told(measured: dict[str, Any], config: Config, plots: bool) -> Report:
    """Judge what was measured, and write it."""
    judged = judge(measured, config)
    results = {
        "config": _plain_config(config),
        "environment": environment(),
        "passed": all(verdict.holds for verdict in judged),
        "verdicts": [_plain_verdict(verdict) for verdict in judged],
        **measured,
    }
    by_first(lambda: write_json(config.out / _RESULTS, results))
    if plots and first():
        from theory.plots import draw_all

        draw_all(results, config.out)
    return Report(judged, results, config.out)


def _pieces_folder(out: Path) -> Path:
    return out / "pieces"


def judge(measured: dict[str, Any], config: Config) -> tuple[Verdict, ...]:
    """The seven verdicts on a run's measurements. Those that rest on gradient descent apply to it alone, and those that
    compare with the infinite prefix's training only where that converges.
    """
    kernel, training, rate = measured["kernel"], measured["training"], measured["setting"]["guaranteed_rate"]
    lengths = training["lengths"]
    at_start = (
        verdicts.kernel_error(kernel["lengths"], kernel["error"], measured["agreement"]["difference"]),
        verdicts.smallest_eigenvalue(kernel["eigenvalue_ratio"]),
    )
    of_descent = (
        verdicts.lazy_training(lengths, training["movement"], training["drift"]),
        verdicts.guarantee(
            training["excess"],
            training["rate"],
            rate,
            measured["infinite"]["rate"],
        ),
        verdicts.loss_curve(lengths, training["curve_difference"]),
        verdicts.prediction(lengths, training["prediction_error"]),
        verdicts.requirement(measured["requirement"], config.scaling_lengths),
    )
    allowed = allowed_share(config.steps, rate)
    outside = (_outside(verdict, config, allowed) for verdict in of_descent)
    return (
        *at_start,
        *(dataclasses.replace(verdict, outside=why) for verdict, why in zip(of_descent, outside, strict=True)),
    )


def _outside(verdict: Verdict, config: Config, allowed: float) -> str:
    """Why a verdict on training does not apply; empty when it does."""
    if config.optimizer != "gd":
        return f"the guarantee is about gradient descent, not {config.optimizer}"
    if config.diverges and verdict.name in ("curve", "prediction"):
        return (
            f"with steps of {config.step_size:g}/lambda_max(H*), 2 or more, training diverges on the infinite prefix "
            "itself, so that there is no limit to approach"
        )
    if allowed > LAX and verdict.name == "guarantee":
        return (
            f"after {config.steps} steps of {config.step_size:g}/lambda_max(H*) the bound still allows {allowed:.3g} "
            "of the first loss, which a prefix that learns next to nothing keeps; more steps ask for more"
        )
    return ""


def _measure(config: Config, bar: Any) -> dict[str, Any]:
    """All measurements, from the pieces that are there and the rest made now."""
    setting = measure.make_setting(config)
    variations = _variations(config)
    for vary, value, varied in variations:
        # A setting that cannot be measured should say so now, not after everything else has been.
        try:
            measure.make_setting(varied)
        except ValueError as error:
            raise ValueError(f"scaling_{vary} has {value}, but {error}") from error
    task = bar.add_task("verify", total=2 + len(config.kernel_lengths) + len(config.lengths) + len(variations))
    pieces = Pieces(_pieces_folder(config.out), measure.source())

    def get(name: str, fields: tuple[str, ...], run: Callable[[], dict], of: Config = config, **more: Any) -> dict:
        bar.update(task, description=name)
        chosen = {field: getattr(of, field) for field in fields}
        result = pieces.get(name, chosen | more, run)
        bar.advance(task)
        return result

    agreement = get("agreement", (*_SETTING_FIELDS, "seeds"), partial(measure.measure_agreement, setting, config))
    infinite = get("infinite", _TRAINING_FIELDS, partial(measure.measure_infinite, setting, config))
    kernel = [
        get(f"kernel-{M}", (*_SETTING_FIELDS, "kernel_seeds"), partial(measure.measure_kernel, setting, config, M), M=M)
        for M in config.kernel_lengths
    ]
    training = [
        get(
            f"training-{M}",
            _TRAINING_FIELDS,
            partial(measure.measure_training, setting, config, M, infinite),
            M=M,
        )
        for M in config.lengths
    ]
    requirement = [
        # One name for all: the setting that every variation shares is measured once.
        get("requirement", _SCALING_FIELDS, partial(measure.measure_requirement, varied), of=varied)
        | {"vary": vary, "value": value, "n": varied.n}
        for vary, value, varied in variations
    ]
    return {
        "setting": _plain_setting(setting),
        "agreement": agreement,
        "infinite": infinite,
        "kernel": _stack(config.kernel_lengths, kernel),
        "training": _stack(config.lengths, training),
        "requirement": requirement,
    }


def _variations(config: Config) -> list[tuple[str, float, Config]]:
    """One setting changed at a time, batches no larger than the inputs that are left."""
    values = {"n": config.scaling_n, "d": config.scaling_d, "sigma": config.scaling_sigma}
    changes = [(vary, value, {vary: value}) for vary in values for value in values[vary]]
    return [
        (vary, value, config.replace(**change, batch_size=min(config.batch_size, change.get("n", config.n))))
        for vary, value, change in changes
    ]


def _stack(lengths, pieces):
    """From one mapping per length to one array per measurement, with lengths first."""
    return {"lengths": list(lengths)} | {name: [piece[name] for piece in pieces] for name in pieces[0]}


def _plain_setting(setting: measure.Setting) -> dict[str, float]:
    names = ("lambda_min", "lambda_max", "step_size", "guaranteed_rate")
    return {name: getattr(setting, name) for name in names}


def _plain_config(config: Config) -> dict[str, Any]:
    plain = dataclasses.asdict(config) | {"out": str(config.out)}
    del plain["hosts"]  # each process has its own
    return plain


def _plain_verdict(verdict: Verdict) -> dict[str, Any]:
    findings = [
        {
            "name": finding.name,
            "estimate": measure.plain(finding.estimate.value),
            "interval": measure.plain(finding.estimate[1:]),
            "band": measure.plain(finding.band),
            "passed": finding.passed,
        }
        for finding in verdict.findings
    ]
    return {
        "name": verdict.name,
        "claim": verdict.claim,
        "status": verdict.status,
        "outside": verdict.outside,
        "findings": findings,
    }


def table(report: Report) -> Table:
    """The verdicts as a table for the terminal."""
    result = Table(title="Does training converge as the prefix grows?", title_justify="left", caption_justify="left")
    for column in ("verdict", "finding", "estimate [95 % interval]", "band", ""):
        result.add_column(column)
    for verdict in report.verdicts:
        colour = _COLOURS[verdict.status]
        for index, finding in enumerate(verdict.findings):
            leads = index == 0
            result.add_row(
                verdict.name if leads else "",
                finding.name,
                "{:.3g} [{:.3g}, {:.3g}]".format(*map(_tidy, finding.estimate)),
                f"{finding.band[0]:g} to {finding.band[1]:g}",
                f"[{colour}]{verdict.status}[/]" if leads else "",
                end_section=index == len(verdict.findings) - 1,
            )
    reasons = dict.fromkeys(verdict.outside for verdict in report.verdicts if verdict.outside)
    notes = [f"Not applicable: {reason}." for reason in reasons]
    result.caption = "\n".join(notes + cautions(report.results["verdicts"])) or None
    return result


def cautions(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """What the seeds or cases are too few for.

    That is what is undecided, and what passed and yet says little: growths below their bound whose intervals have room
    for none and for decay.

    Args:
        verdicts: as in `results.json`.

    Returns:
        One sentence for each kind that there is.

    Example:
        >>> from theory.verify import cautions
        >>> growth = {"name": "exponent of n", "interval": [-1.0, 1.3], "band": [None, 2.0]}
        >>> cautions([{"name": "requirement", "status": "pass", "findings": [growth]}])
        ['No growth beyond the band, but too few cases to tell whether there is any: requirement (exponent of n).']
    """
    undecided, vague = [], []
    for verdict in verdicts:
        for finding in verdict["findings"]:
            name = f"{verdict['name']} ({finding['name']})"
            if verdict["status"] == "undecided" and not finding["passed"]:
                undecided.append(name)
            elif verdict["status"] == "pass" and finding["band"][0] is None:
                # JSON has no infinity: a lower end that is null is none.
                low = finding["interval"][0]
                if low is None or low < 0:
                    vague.append(name)
    sentences = {
        "Undecided, with an interval partly within its band; more seeds may tell": undecided,
        "No growth beyond the band, but too few cases to tell whether there is any": vague,
    }
    return [f"{sentence}: {', '.join(names)}." for sentence, names in sentences.items() if names]


def _tidy(number: float) -> float:
    """Without the rounding errors of zero, and its sign."""
    return 0.0 if abs(number) < 1e-12 else number


def main(config: Config) -> int:
    """Run, print the table of verdicts and where to look.

    Returns:
        Exit status: 0 when every verdict that applies passed, else 1.

    Raises:
        ImportError: a package is not installed.
        OSError: the run folder cannot be made or written.
        ValueError: a piece of an earlier run is damaged, or the setting cannot be measured.
    """
    report = verify(config, show_progress=Console().is_terminal)
    console = Console(quiet=not first())
    setting = report.results["setting"]
    console.print(table(report))
    console.print(
        f"lambda_min(H*) = {setting['lambda_min']:.4g}, lambda_max(H*) = {setting['lambda_max']:.4g}, "
        f"step size {setting['step_size']:.4g}, {config.steps} steps, {config.seeds} seeds"
    )
    where = f"Numbers: {report.folder / _RESULTS}. Plots: {report.folder}/*.png and *.pdf."
    console.print(Text(where), soft_wrap=True)
    return 0 if report.passed else 1
