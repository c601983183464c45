import dataclasses
import errno
import importlib
import io
import json
import math
import shutil
import tempfile

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from ntkprefix import cli, records
from ntkprefix.report import write_report
from ntkprefix.runs import read_json
from theory import Config, Finding, Report, Verdict, measure, plots, verify
from theory.intervals import Estimate
from theory.plots import PLOTS, draw_all

# The package offers the function of this name.
verify_module = importlib.import_module("theory.verify")

SMALL = {
    "n": 4,
    "d": 3,
    "n_test": 3,
    "seeds": 5,
    "kernel_seeds": 5,
    "steps": 20,
    "lengths": (4, 8, 16),
    "kernel_lengths": (4, 8, 16),
    "scaling_lengths": (2, 4, 8),
    "scaling_max_steps": 16,
    "scaling_seeds": 5,
    "scaling_n": (3, 4),
    "scaling_d": (3, 4),
    "scaling_sigma": (0.5, 0.6),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run too small to prove anything, with all that a run leaves."""
    return verify(Config(**SMALL, out=tmp_path_factory.mktemp("verify")))


def test_results_hold_all_that_is_needed(finished):
    results = read_json(finished.folder / "results.json")
    assert results["config"]["lengths"] == [4, 8, 16]
    assert results["environment"]["packages"]["jax"]
    assert [verdict["name"] for verdict in results["verdicts"]] == list(PLOTS)
    assert np.shape(results["training"]["excess"]) == (3, 5)
    assert np.shape(results["kernel"]["error"]) == (3, 5)
    for verdict in results["verdicts"]:
        for finding in verdict["findings"]:
            assert set(finding) == {"name", "estimate", "interval", "band", "passed"}


def test_plots_are_drawn_from_the_results_alone(finished, tmp_path):
    written = draw_all(read_json(finished.folder / "results.json"), tmp_path)
    assert {path.name for path in written} == {f"{name}.{suffix}" for name in PLOTS for suffix in ("png", "pdf")}
    assert all(path.stat().st_size > 5000 for path in written)
    for path in written:
        assert (finished.folder / path.name).exists()


def test_a_page_shows_the_run_also_where_it_proves_nothing(finished, tmp_path):
    sections = records.sections(records.read_all([finished.folder]))
    titles = [plot.title for section in sections for plot in section.plots]
    assert "Loss curves" in titles
    assert len(titles) == 10
    write_report(tmp_path / "page.html", title="", lead="", sections=sections, records={})


def test_plots_share_one_size_and_style(finished, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw_all(finished.results, tmp_path)
    assert len(figures) == 2 * len(PLOTS)
    assert len({tuple(figure.get_size_inches()) for figure in figures}) == 1
    axes = [axes for figure in figures for axes in figure.axes]
    legends = [axis.get_legend() for axis in axes if axis.get_legend()]
    assert len({text.get_fontsize() for legend in legends for text in legend.texts}) == 1
    for part in ("xaxis", "yaxis"):
        assert len({getattr(axis, part).label.get_fontsize() for axis in axes}) == 1


@pytest.mark.parametrize(
    ("lowest", "highest", "shown"),
    [(-7.0, 20.0, {"0", "1", "2", "5", "10", "−5"}), (0.5, 9.0, {"1", "2", "5"}), (-1e6, 1e6, {"0", "1e+06"})],
)
def test_rates_can_be_read_off_their_axis(lowest, highest, shown):
    axes = Figure().add_subplot()
    axes.plot([1, 2], [lowest, highest])
    plots._signed_log_axis(axes)
    axes.figure.canvas.draw()
    low, high = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    labels = {label.get_text() for place, label in ticks if low <= place <= high}
    assert shown <= labels
    assert len(labels) <= 15


def stop(*_, **__):
    raise RuntimeError("measured again")


def test_a_second_start_measures_nothing(finished, monkeypatch):
    for name in ("measure_kernel", "measure_training", "measure_requirement", "measure_infinite", "measure_agreement"):
        monkeypatch.setattr(measure, name, stop)
    again = verify(Config(**SMALL, out=finished.folder), plots=False)
    assert repr(again.verdicts) == repr(finished.verdicts)  # NaN is not equal to itself, but reads the same


def test_new_settings_measure_only_what_they_touch(finished, monkeypatch):
    for name in ("measure_kernel", "measure_agreement"):
        monkeypatch.setattr(measure, name, stop)
    monkeypatch.setattr(measure, "measure_requirement", lambda _: {"smallest": [2.0] * 5, "demanded": 0.01})
    report = verify(Config(**(SMALL | {"optimizer": "adam"}), out=finished.folder), plots=False)
    assert [verdict.status for verdict in report.verdicts][2:] == ["not applicable"] * 5
    with pytest.raises(RuntimeError, match="measured again"):
        verify(Config(**(SMALL | {"sigma": 0.6}), out=finished.folder), plots=False)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}, "measured": {}}'])
def test_a_damaged_piece_is_named_and_measured_again_alone(finished, damage, monkeypatch):
    path = next((finished.folder / "pieces").glob("kernel-8-*.json"))
    whole = path.read_text()
    try:
        path.write_text(damage)
        with pytest.raises(ValueError, match=f"{path.name}: expected .* got a damaged file. Delete this one file: "):
            verify(Config(**SMALL, out=finished.folder), plots=False)
        # What the message says is true.
        for name in ("measure_training", "measure_requirement", "measure_infinite", "measure_agreement"):
            monkeypatch.setattr(measure, name, stop)
        path.unlink()
        verify(Config(**SMALL, out=finished.folder), plots=False)
        assert path.read_text() == whole
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("case", ["file", "file/run", "run", "fresh"])
def test_an_unusable_run_folder_is_refused_before_anything_is_measured(case, tmp_path, monkeypatch, capsys):
    """A file, a folder below a file, one whose pieces are a file, and one where nothing can be written."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pieces").write_text("")
    if case == "fresh":
        # Permissions would not stop root.
        def denied(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    monkeypatch.setattr(measure, "make_setting", stop)
    assert cli.main(["verify", "--quick", "--out", str(tmp_path / case)]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    refused = tmp_path / ("run/pieces" if case == "run" else case)
    assert printed.err.startswith(f"ntkprefix verify: {refused}: cannot be made a run folder (")
    assert printed.err.endswith("). Choose another with --out.\n")
    assert printed.err.count("\n") == 1


def test_results_of_another_command_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"test": {}}')
    assert cli.main(["verify", "--quick", "--out", str(tmp_path)]) == 2
    assert "expected results of ntkprefix verify, or none, got others" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == '{"test": {}}'
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("mesh", ["data=2", "tensor=2,prefix=2"])
def test_a_mesh_shares_out_the_prefix_alone(mesh):
    with pytest.raises(ValueError, match="expected mesh along prefix alone, such as prefix=8"):
        Config(mesh=mesh)


def test_an_interrupted_run_says_how_to_go_on_and_does(finished, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measure, "measure_requirement", interrupted)
        assert cli.main(["verify", *options(tmp_path)]) == 130
    said = f"What is done is kept in {tmp_path}: the same command, with the same --out, goes on from there.\n"
    assert capsys.readouterr().err == f"ntkprefix verify: stopped. {said}"
    for name in ("measure_kernel", "measure_training", "measure_infinite", "measure_agreement"):
        monkeypatch.setattr(measure, name, stop)
    again = verify(Config(**SMALL, out=tmp_path), plots=False)
    assert repr(again.verdicts) == repr(finished.verdicts)


def test_an_undecided_verdict_is_no_pass_and_named_everywhere(finished):
    straddles = Finding("exponent of n", Estimate(1.0, 0.5, 2.5), (-math.inf, 2.0))
    verdict = Verdict("requirement", "claim", (straddles,))
    plain = verify_module._plain_verdict(verdict)
    assert plain["status"] == "undecided"
    assert not plain["findings"][0]["passed"]
    report = Report((verdict,), finished.results | {"verdicts": [plain]}, finished.folder)
    assert not report.passed
    sentence = "Undecided, with an interval partly within its band; more seeds may tell: requirement (exponent of n)."
    assert verify_module.cautions([plain]) == [sentence]
    console = Console(width=150, file=io.StringIO())
    console.print(verify_module.table(report))
    shown = " ".join(console.file.getvalue().split())
    assert "│ undecided │" in shown
    assert sentence in shown
    # The same number with all of its interval outside is a failure, and no seeds are asked for.
    beyond = dataclasses.replace(straddles, estimate=Estimate(2.3, 2.1, 2.5))
    failed = verify_module._plain_verdict(dataclasses.replace(verdict, findings=(beyond,)))
    assert failed["status"] == "fail"
    assert verify_module.cautions([failed]) == []


def test_a_pass_without_a_lower_end_is_cautioned_about():
    finding = Finding("exponent of n", Estimate(0.5, -math.inf, 1.5), (-math.inf, 2.0))
    plain = verify_module._plain_verdict(Verdict("requirement", "claim", (finding,)))
    assert plain["status"] == "pass"
    assert verify_module.cautions([plain])[0].startswith("No growth beyond the band")


def test_an_undecided_verdict_ends_with_status_1(finished, monkeypatch):
    undecided = Verdict("curve", "claim", (Finding("exponent of M", Estimate(1.0, 0.5, 2.5), (0.0, 2.0)),))
    monkeypatch.setattr(verify_module, "judge", lambda *_: (undecided,))
    monkeypatch.setattr("theory.plots.draw_all", lambda *_: [])
    before = (finished.folder / "results.json").read_text()
    try:
        assert cli.main(["verify", *options(finished.folder)]) == 1
        results = read_json(finished.folder / "results.json")
        assert not results["passed"]
        assert [verdict["status"] for verdict in results["verdicts"]] == ["undecided"]
    finally:
        (finished.folder / "results.json").write_text(before)


def test_digits_run_and_the_guarantee_does_not_cover_batches(tmp_path):
    config = Config(**SMALL, optimizer="sgd", batch_size=4, data="digits", targets="labels", out=tmp_path)
    # The search also has settings of 3 inputs, fewer than a batch.
    report = verify(config, plots=False)
    assert [verdict.status for verdict in report.verdicts][2:] == ["not applicable"] * 5


def test_command_line_with_a_diverging_step_draws_and_fails(tmp_path, capsys):
    assert cli.main(["verify", *options(tmp_path, step_size=3.0)]) == 1
    assert "Not applicable: with steps of 3/lambda_max(H*)" in " ".join(capsys.readouterr().out.split())
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in PLOTS)


def test_pieces_of_other_code_are_measured_again(finished, monkeypatch):
    monkeypatch.setattr(measure, "source", lambda: "of other code")
    monkeypatch.setattr(measure, "measure_agreement", stop)
    with pytest.raises(RuntimeError, match="measured again"):
        verify(Config(**SMALL, out=finished.folder), plots=False)


def test_unnormalised_inputs_are_no_excuse_for_a_singular_kernel(monkeypatch):
    repeated = measure.make_data(4, 3, 2)._replace(x=jnp.ones((4, 3)))
    monkeypatch.setattr(measure, "make_data", lambda *_, **__: repeated)
    with pytest.raises(ValueError, match="singular to rounding"):
        measure.make_setting(Config(n=4, d=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 100.0}, r"overflows at n=4, d=3, sigma=100.* Use a smaller sigma"),
        ({"d": 1}, r"singular to rounding at n=4, d=1, sigma=0.5 .* a larger d"),
        ({"n": 2000, "d": 64}, "at most 16384 rows .* got 2000 x 64 = 128000. Use fewer inputs"),
        ({"data": "digits", "n": 1795}, "at most 1797 digits, held-out ones included, .* got 1798 digits"),
        ({"scaling_n": (4, 400)}, "scaling_n has 400, but the infinite-prefix kernel is singular to rounding at n=400"),
    ],
)
def test_settings_that_cannot_be_measured_say_so_at_once(finished, monkeypatch, options, message):
    for name in ("measure_agreement", "measure_requirement"):
        monkeypatch.setattr(measure, name, stop)
    with pytest.raises(ValueError, match=message):
        verify(Config(**(SMALL | options), out=finished.folder), plots=False)


def test_presets_fill_what_is_left_open():
    quick = Config(quick=True, steps=7)
    assert quick.steps == 7
    assert max(quick.lengths) < max(Config().lengths) == 2**16
    assert quick.scaling_lengths[0] == Config().scaling_lengths[0] == 2


def test_replacing_quick_keeps_what_was_given():
    assert Config().replace(quick=True) == Config(quick=True)
    assert Config(quick=True).replace(n=4).replace(quick=False) == Config(n=4)
    # Given, though it is what the full run would take anyway.
    assert Config(steps=2000).replace(quick=True) == Config(steps=2000, quick=True)


def test_the_smallest_sufficient_length_is_the_first_from_which_on_the_bound_holds(monkeypatch):
    holds = {
        2: [True, True, False, False, False],
        4: [True, False, True, False, False],
        8: [True, True, True, True, False],
    }
    monkeypatch.setattr(measure, "_holds", lambda _, __, M, ___: np.array(holds[M]))
    smallest = measure.measure_requirement(Config(**SMALL))["smallest"]
    assert smallest == [2, 8, 4, 8, None]


def test_rungs_below_a_failure_of_all_seeds_are_not_run(monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "_holds", lambda _, __, M, ___: asked.append(M) or np.full(5, M == 8))
    assert measure.measure_requirement(Config(**SMALL))["smallest"] == [8] * 5
    assert asked == [8, 4]


def test_plain_numbers_are_json():
    assert json.dumps(measure.plain([1 / 3, math.nan, math.inf])) == "[0.3333333, null, null]"


def options(tmp_path, **changes):
    flat = []
    for name, value in (SMALL | changes).items():
        values = value if isinstance(value, tuple) else (value,)
        flat += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*flat, "--out", str(tmp_path)]


def test_command_line_reports_and_fails(finished, tmp_path, capsys):
    """A ladder up to M = 16 proves nothing, so verdicts fail and the exit status says so."""
    folder = tmp_path / "a[/red]b"  # no markup
    shutil.copytree(finished.folder, folder)
    assert cli.main(["verify", *options(folder)]) == 1
    printed = capsys.readouterr().out
    assert f"Numbers: {folder / 'results.json'}. Plots: {folder}/*.png and *.pdf.\n" in printed
    assert "fail" in printed
    statuses = {verdict["status"] for verdict in read_json(folder / "results.json")["verdicts"]}
    assert "fail" in statuses


def test_command_line_errors(tmp_path, capsys):
    assert cli.main([]) == 2
    assert cli.main(["sing"]) == 2
    assert "no command 'sing'" in capsys.readouterr().err
    assert cli.main(["verify", *options(tmp_path, seeds=2)]) == 2
    assert "expected seeds of at least 5" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert "verify" in capsys.readouterr().out


def test_config_survives_json():
    assert json.loads(json.dumps(dataclasses.asdict(Config()), default=str))["n"] == 8


@pytest.mark.slow
def test_the_quick_run_passes(tmp_path):
    report = verify(Config(quick=True, out=tmp_path))
    assert report.passed, [verdict for verdict in report.verdicts if not verdict.holds]
