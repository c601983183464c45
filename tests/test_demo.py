"""The demonstration: what cannot run is refused at once, and a method that fails takes no other with it."""

import os

import numpy as np
import pytest
from PIL import Image
from report.pages import read

from experiments import RESULTS, demo
from experiments.demo import DemoConfig, command, lead, prepare
from ntkprefix.cli import main
from ntkprefix.runs import read_json
from theory import Report, neural_tangents_compat

TOKENS = "P-Tuning v2, 10 tokens"
KERNEL = "Kernel at the start against its limit"
SCRIPT = "<script>alert(1)</script>"


def npz(path, train=20, test=4, classes=2, **changes):
    arrays = {
        "x_train": np.zeros((train, 14, 14, 3), np.uint8),
        "y_train": np.arange(train) % classes,
        "x_test": np.zeros((test, 14, 14, 3), np.uint8),
        "y_test": np.arange(test) % classes,
    }
    np.savez(path, **(arrays | changes))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Without the weights, and nothing may run."""
    monkeypatch.setattr(demo, "load_dinov2", lambda: None)
    monkeypatch.setattr(demo.theory, "verify", ran)
    monkeypatch.setattr(demo, "compare", ran)


def ran(*_, **__):
    raise AssertionError("it ran")


def refused(options, capsys):
    assert command(options) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("demo: ")
    assert shown.err.count("\n") == 1
    return shown.err


def folder_with_a_bad_image(path):
    for name in ("a", "b"):
        (path / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (9, 9)).save(path / name / f"{index}.png")
    (path / "a" / "7.png").write_bytes(b"text")
    return path


SOURCES = {
    "nothing": (lambda path: path / "absent", "absent: expected 'digits', a .npz file or a folder"),
    "empty folder": (lambda path: path, "expected one folder of images per class"),
    "text": (lambda path: path / "text.npz", "text.npz: expected plain arrays"),
    "bad image": (lambda path: folder_with_a_bad_image(path / "images"), "7.png: expected an image"),
    "floats": (
        lambda path: npz(path / "set.npz", x_test=np.zeros((4, 9, 9))),
        "set.npz: expected x_test as uint8 from 0 to 255, got float64",
    ),
    "few": (
        lambda path: npz(path / "set.npz", train=15),
        "set: expected at least 16 training images, one batch, got 15",
    ),
    "many classes": (
        lambda path: npz(path / "set.npz", train=60, test=4, classes=30),
        "set: expected at least 30 training images, one for each class, got 20. Raise --train-images.",
    ),
}


@pytest.mark.parametrize("case", SOURCES)
def test_unusable_images_are_refused_at_once(case, quick, tmp_path, capsys):
    make, message = SOURCES[case]
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "folder").mkdir()
    source = make(tmp_path / "folder" if case == "empty folder" else tmp_path)
    options = ["--data-dir", str(source), "--train-images", "20", "--size", "14", "--out", str(tmp_path / "out")]
    assert message in refused(options, capsys)
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_refused_at_once(quick, monkeypatch, capsys):
    def absent():
        raise FileNotFoundError("The pretrained weights come with a package")

    monkeypatch.setattr(demo, "load_dinov2", absent)
    assert "pretrained weights" in refused([], capsys)


def test_a_missing_package_is_refused_at_once(quick, monkeypatch, capsys):
    def absent():
        raise ImportError("This needs the package neural-tangents")

    monkeypatch.setattr(neural_tangents_compat, "load", absent)
    assert "neural-tangents" in refused([], capsys)


def test_a_run_folder_that_is_a_file(quick, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ["--size", "14", "--out", str(tmp_path / "file")]
    assert "file: cannot be made a run folder (File exists). Choose another with --out." in refused(options, capsys)


OPTIONS = {
    "size of no patches": (["--size", "57"], "multiple of 14 pixels, from 14 to 518, got 57"),
    "size 0": (["--size", "0"], "from 14 to 518, got 0"),
    "huge": (["--size", "14000000"], "from 14 to 518, got 14000000"),
    "no epochs": (["--epochs", "0"], "epochs of at least 1, got 0"),
    "less than a batch": (["--train-images", "15"], "train_images of at least 16, got 15"),
    "no test": (["--test-images", "-1"], "test_images of at least 1, got -1"),
    "unknown": (["--epoch-count", "1"], "--epoch-count"),
    "text": (["--epochs", "x"], "Error parsing --epochs"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(case, quick, capsys):
    options, message = OPTIONS[case]
    with pytest.raises(SystemExit) as stopped:
        command(options)
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_called_digits_is_not_the_digits(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder_with_a_bad_image(tmp_path / "digits")
    Image.new("RGB", (9, 9)).save(folder / "a" / "7.png")
    config = DemoConfig(data_dir=folder.relative_to(tmp_path), size=14)
    assert len(prepare(config, tmp_path / "out")[0].x_train) == 16
    assert len(prepare(DemoConfig(size=14), tmp_path / "out")[0].x_train) == 1000


def finished(method, accuracy=0.5, steps=60):
    return {
        "method": method,
        "step_size": 0.1,
        "accuracy": accuracy,
        "adapter_parameters": 5,
        "head_parameters": 2,
        "steps": steps,
        "seconds": 3.0,
        "seconds_per_step": 0.3,
        "losses": np.linspace(2, 0.2, steps).tolist(),
        "right": "".join(str(int(image < round(accuracy * 40))) for image in range(40)),
    }


def failed(method, reason="the loss is nan at step 3"):
    return {"method": method, "step_size": 0.1, "failure": reason}


def results_of(runs, failures=(), **data):
    known = {"name": "set", "notes": "", "classes": ["a", "b"]} | data
    known["about"] = f"{known['name']}: 100 training rows, 40 test rows, {len(known['classes'])} classes"
    return {"config": {}, "environment": {}, "data": known, "runs": runs, "failures": list(failures)}


def verified(config, **_):
    finding = {"name": "f", "estimate": 1.0, "interval": [0.9, 1.1], "band": [0.5, None], "passed": True}
    verdicts = [{"name": "kernel", "claim": "it holds", "status": "pass", "outside": "", "findings": [finding]}]
    measured = read_json(RESULTS / "verify.json")
    return Report((), {**measured, "passed": True, "verdicts": verdicts}, config.out)


def run_with(results, folder, monkeypatch):
    """Exit status, results and page of a demonstration whose second part ends with `results`."""
    monkeypatch.setattr(demo, "prepare", lambda *_: (None, None))
    monkeypatch.setattr(demo.theory, "verify", verified)
    monkeypatch.setattr(demo, "compare", lambda *_: results)
    status = command(["--out", str(folder)])
    return status, read_json(folder / "results.json"), read(folder / "report.html")


def test_all_methods_finish(tmp_path, monkeypatch, capsys):
    runs = [finished("head only", 0.5), finished(TOKENS, 0.6), finished("NTK-Attention", 0.7)]
    status, results, page = run_with(results_of(runs), tmp_path, monkeypatch)
    assert status == 0
    assert results["failures"] == []
    assert [row["accuracy"] for row in results["summary"]] == [0.5, 0.6, 0.7]
    assert (
        "NTK-Attention reaches 70.0% (95 % interval 54.6% to 81.9%) on held-out images, +20.0 points (+7.0 to +33.0)"
        in page.text
    )
    assert f"against training the head alone and +10.0 points (+0.3 to +19.7) against {TOKENS}." in page.text
    assert "1 of 1 verdicts on the theorem behind it hold" in page.text
    assert [figure["title"] for figure in page.figures][:3] == ["Held-out accuracy", "Training loss", KERNEL]
    accuracy, losses, _ = (figure["data"] for figure in page.figures[:3])
    assert accuracy[0]["x"] == [0.5, 0.6, 0.7]
    np.testing.assert_allclose(losses[0]["y"], runs[0]["losses"], rtol=1e-5)
    assert "says little" not in page.text
    # What the demonstration leaves is a run like others.
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    again = read(tmp_path / "again.html")
    assert again.figures == page.figures
    assert again.tables[:2] == page.tables
    assert "set: 100 training rows, 40 test rows, 2 classes." in capsys.readouterr().out


def test_a_method_that_fails_leaves_the_others_results(tmp_path, monkeypatch, capsys):
    results = results_of([finished("head only"), finished(TOKENS)], [failed("NTK-Attention")])
    status, results, page = run_with(results, tmp_path, monkeypatch)
    assert status == 1
    assert [run["method"] for run in results["runs"]] == [row["method"] for row in results["summary"]]
    assert results["failures"] == [failed("NTK-Attention")]
    assert "NTK-Attention did not finish. The head alone reaches 50.0%" in page.text
    assert page.tables[0][-1][:2] == ["NTK-Attention", "failed"]
    reason = "NTK-Attention failed: the loss is nan at step 3"
    assert reason in page.text
    assert page.figures[0]["title"] == "Held-out accuracy"
    printed = capsys.readouterr().out
    assert reason in printed
    assert "0.500" in printed


def test_when_every_method_fails_the_theorem_is_still_reported(tmp_path, monkeypatch, capsys):
    failures = [failed(method, f"[bold]{SCRIPT}") for method in ("head only", TOKENS, "NTK-Attention")]
    status, results, page = run_with(results_of([], failures), tmp_path, monkeypatch)
    assert status == 1
    assert results["summary"] == []
    assert len(results["failures"]) == 3
    assert "No method finished training. 1 of 1 verdicts" in page.text
    assert [row[1] for row in page.tables[0][1:]] == ["failed"] * 3
    assert page.figures[0]["title"] == KERNEL
    assert f"[bold]{SCRIPT}" in page.text
    assert len(page.scripts) == 2
    assert f"[bold]{SCRIPT}" in capsys.readouterr().out  # words, not markup


def test_few_steps_are_pointed_out(tmp_path, monkeypatch):
    runs = [finished("head only", steps=300), finished("NTK-Attention", steps=8)]
    _, _, page = run_with(results_of(runs), tmp_path, monkeypatch)
    assert "A run of 8 training steps says little about a method" in page.text


@pytest.mark.parametrize("name", [SCRIPT, "[/bold]", "long" * 500])
def test_names_are_shown_as_they_are(name, tmp_path, monkeypatch, capsys):
    """A hundred classes with such names, and a set and a run folder too."""
    data = {"name": name, "classes": [f"{name}{label}" for label in range(100)]}
    folder = tmp_path / "[b] & [/b]"
    runs = [finished("head only"), finished("NTK-Attention")]
    status, _, page = run_with(results_of(runs, **data), folder, monkeypatch)
    assert status == 0
    assert len(page.scripts) == 2
    assert name in page.text
    printed = capsys.readouterr().out
    assert name[:20] in printed
    assert os.path.join("[b] & [/b]", "report.html") in printed


LEADS = {
    "neither": ([TOKENS], "Neither NTK-Attention nor training the head alone finished."),
    "no head": (["NTK-Attention"], "on held-out images; training the head alone did not finish."),
    "no rows": ([], "No method finished training."),
}


def test_a_run_that_learnt_nothing_is_pointed_out(tmp_path, monkeypatch, capsys):
    lost = finished("NTK-Attention", 0.5) | {"losses": [0.7] * 60}
    _, _, page = run_with(results_of([finished("head only"), lost]), tmp_path, monkeypatch)
    told = "NTK-Attention learnt nothing at its step size 0.1: its training loss ends at 0.70"
    assert f"{told}, that of a guess is 0.69." in page.text
    assert "head only learnt" not in page.text
    assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("case", LEADS)
def test_lead(case):
    methods, sentence = LEADS[case]
    rows = [{"method": method, "accuracy": 0.5, "interval": [0.4, 0.6]} for method in methods]
    assert lead({"summary": rows, "runs": []}).endswith(sentence)
