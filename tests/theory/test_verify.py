import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from ntkprefix import cli
from ntkprefix.runs import read_json
from theory import Config, measure, verify
from theory.plots import PLOTS, draw_all
from theory.verify import judge

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
    monkeypatch.setattr(measure, "measure_requirement", lambda _: {"smallest": [2.0] * 5})
    report = verify(Config(**(SMALL | {"optimizer": "adam"}), out=finished.folder), plots=False)
    assert [verdict.status for verdict in report.verdicts][2:] == ["not applicable"] * 5
    with pytest.raises(RuntimeError, match="measured again"):
        verify(Config(**(SMALL | {"sigma": 0.6}), out=finished.folder), plots=False)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": {}, "measured": {}}'])
def test_a_damaged_piece_is_named(finished, damage):
    path = next((finished.folder / "pieces").glob("kernel-8-*.json"))
    whole = path.read_text()
    try:
        path.write_text(damage)
        with pytest.raises(ValueError, match=path.name):
            verify(Config(**SMALL, out=finished.folder), plots=False)
    finally:
        path.write_text(whole)


def test_digits_run_and_the_guarantee_does_not_cover_batches(tmp_path):
    report = verify(Config(**SMALL, optimizer="sgd", data="digits", targets="labels", out=tmp_path), plots=False)
    assert [verdict.status for verdict in report.verdicts][2:] == ["not applicable"] * 5


MODEST = {
    "kernel_lengths": (2**10, 2**12, 2**14),
    "lengths": (2**6, 2**8, 2**10),
    "kernel_seeds": 8,
    "seeds": 6,
    "steps": 150,
}


def measured(config):
    """Measurements for all verdicts but the last, whose own are planted."""
    setting = measure.make_setting(config)
    infinite = measure.measure_infinite(setting, config)
    kernel = [measure.measure_kernel(setting, config, M) for M in config.kernel_lengths]
    training = [measure.measure_training(setting, config, M, infinite) for M in config.lengths]
    return setting, {
        "setting": {"guaranteed_rate": setting.guaranteed_rate},
        "agreement": measure.measure_agreement(setting, config),
        "kernel": {"lengths": config.kernel_lengths} | {name: [k[name] for k in kernel] for name in kernel[0]},
        "training": {"lengths": config.lengths} | {name: [t[name] for t in training] for name in training[0]},
        "requirement": [
            {"vary": vary, "value": value, "smallest": [8.0] * 6}
            for vary in ("n", "d", "sigma")
            for value in (1.0, 2.0)
        ],
    }


def statuses(config, content):
    return {verdict.name: verdict.status for verdict in judge(content, config)}


@pytest.fixture(scope="module")
def honest():
    config = Config(**MODEST)
    return config, *measured(config)


def test_the_theorem_holds(honest):
    config, _, content = honest
    status = statuses(config, content)
    assert {status[name] for name in ("kernel", "eigenvalue", "guarantee", "lazy")} == {"pass"}, status


def test_a_wrong_kernel_fails(honest):
    config, setting, _ = honest
    wrong = setting._replace(H=1.3 * setting.H)
    kernel = [measure.measure_kernel(wrong, config, M) for M in config.kernel_lengths]
    content = honest[2] | {
        "kernel": {"lengths": config.kernel_lengths} | {name: [k[name] for k in kernel] for name in kernel[0]}
    }
    assert statuses(config, content)["kernel"] == "fail"


def test_a_wrong_rate_fails(honest):
    config, setting, content = honest
    eager = setting._replace(lambda_min=40 * setting.lambda_min)
    training = [
        measure.measure_training(eager, config, M, measure.measure_infinite(setting, config)) for M in config.lengths
    ]
    content = content | {
        "setting": {"guaranteed_rate": eager.guaranteed_rate},
        "training": {"lengths": config.lengths} | {name: [t[name] for t in training] for name in training[0]},
    }
    assert statuses(config, content)["guarantee"] == "fail"


def test_a_step_size_that_is_too_large_fails():
    config = Config(**MODEST, step_size=6.0)
    status = statuses(config, measured(config)[1])
    assert status["kernel"] == "pass"
    assert {status[name] for name in ("guarantee", "curve", "prediction")} == {"fail"}


def test_unnormalised_inputs_are_no_excuse_for_a_singular_kernel(monkeypatch):
    repeated = measure.make_data(4, 3, 2)._replace(x=jnp.ones((4, 3)))
    monkeypatch.setattr(measure, "make_data", lambda *_, **__: repeated)
    with pytest.raises(ValueError, match="singular to rounding"):
        measure.make_setting(Config(n=4, d=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": -1.0}, "sigma must be positive, got -1.0"),
        ({"seeds": 4}, "seeds must be at least 5"),
        ({"lengths": (4, 8)}, "lengths must be at least 3 even prefix lengths"),
        ({"lengths": (4, 8, 8)}, "increasing"),
        ({"kernel_lengths": (3, 4, 5)}, "even prefix lengths"),
        ({"targets": "labels"}, "need data='digits'"),
        ({"batch_size": 99}, "batch_size must be within 0..n=8, got 99"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_presets_fill_what_is_left_open():
    quick = Config(quick=True, steps=7)
    assert quick.steps == 7
    assert max(quick.lengths) < max(Config().lengths) == 2**16


def test_plain_numbers_are_json():
    assert json.dumps(measure.plain([1 / 3, math.nan, math.inf])) == "[0.3333333, null, null]"


def options(tmp_path, **changes):
    flat = []
    for name, value in (SMALL | changes).items():
        values = value if isinstance(value, tuple) else (value,)
        flat += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*flat, "--out", str(tmp_path)]


def test_command_line_reports_and_fails(finished, capsys):
    """A ladder up to M = 16 proves nothing, so verdicts fail and the exit status says so."""
    assert cli.main(["verify", *options(finished.folder)]) == 1
    printed = capsys.readouterr().out
    assert "results.json" in printed
    assert "fail" in printed
    statuses = {verdict["status"] for verdict in read_json(finished.folder / "results.json")["verdicts"]}
    assert "fail" in statuses


def test_command_line_errors(tmp_path, capsys):
    assert cli.main([]) == 2
    assert cli.main(["sing"]) == 2
    assert "no command 'sing'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["verify", *options(tmp_path, seeds=2)])
    assert stopped.value.code == 2
    assert "seeds must be at least 5" in capsys.readouterr().err
    assert cli.main(["--help"]) == 0
    assert "verify" in capsys.readouterr().out


def test_config_survives_json():
    assert json.loads(json.dumps(dataclasses.asdict(Config()), default=str))["n"] == 8


@pytest.mark.slow
def test_the_quick_run_passes(tmp_path):
    report = verify(Config(quick=True, out=tmp_path))
    assert report.passed, [verdict for verdict in report.verdicts if verdict.status == "fail"]
