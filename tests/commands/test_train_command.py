"""`ntkprefix train` from a shell's words to files, with tiny models."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from small_runs import SMALL, texts, trained

from ntkprefix.adapters import LoraAdapter, load_adapter, spelt
from ntkprefix.cli import main
from ntkprefix.commands import jobs
from ntkprefix.commands import train as command

ROOT = Path(__file__).parents[2]
# Its fixtures are those of tiny models in place of real ones.
pytest_plugins = ("small_models",)
pytestmark = pytest.mark.usefixtures("without_weights")


def test_images(tmp_path, models):
    results = trained(tmp_path / "run", "--adapter", "lora:rank=2")
    assert set(results["test"]) == {"accuracy", "loss", "right"}
    assert 0 <= results["test"]["accuracy"] <= 1
    assert results["data"] == "digits: 48 training rows, 30 test rows, 10 classes"
    adapter, params = load_adapter(tmp_path / "run" / "adapter")
    assert adapter == LoraAdapter(rank=2)
    assert results["sizes"]["adapter_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert np.abs(params["value"]["up"]).max() > 0
    # two layers of three heads of four: a token is 2 x 2 x 12 numbers
    assert results["sizes"]["break_even_tokens"] == round(results["sizes"]["adapter_parameters"] / 48, 1)
    with safe_open(tmp_path / "run" / "head.safetensors", framework="numpy") as head:
        assert head.get_tensor("kernel").shape == (24, 10)
        assert head.metadata()["classes"].split("\n") == [str(digit) for digit in range(10)]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert results["config"]["adapter"] == "lora:rank=2"
    page = str(tmp_path / "page.html")
    assert main(["report", str(tmp_path / "run"), "--out", page]) == 0
    assert f"{results['test']['accuracy']:.3f} [" in Path(page).read_text()


def test_classes_of_texts(tmp_path, labelled):
    options = ["--model", "encoder", "--task", "text", "--data-dir", str(labelled)]
    results = trained(tmp_path / "run", *options, "--learning-rate", "0.05", "--epochs", "6", "--patience", "3")
    assert results["test"]["accuracy"] == 1.0
    assert results["data"] == "text: 43 training rows, 5 held back, 30 test rows, 2 classes"
    assert len(results["validation"]) >= 3


def test_choices_of_a_language_model(tmp_path, labelled):
    options = ["--model", "decoder", "--task", "text", "--data-dir", str(labelled), "--learning-rate", "0.1"]
    options += ["--mesh", "data=1"]
    results = trained(tmp_path / "run", *options, "--adapter", "lora:targets=query/value/up/down", "--epochs", "20")
    assert results["test"]["accuracy"] == 1.0
    assert results["test"]["loss"] < 0.5
    assert not (tmp_path / "run" / "head.safetensors").exists()


def test_choices_that_begin_alike_are_told_by_all_their_tokens(tmp_path, labelled, capsys):
    (labelled / "labels.json").write_text('["three four", "three five"]')
    options = ["--model", "decoder", "--task", "text", "--data-dir", str(labelled), "--learning-rate", "0.1"]
    options += ["--adapter", "lora:targets=query/value/up/down", "--epochs", "20"]
    assert trained(tmp_path / "run", *options)["test"]["accuracy"] == 1.0
    (labelled / "labels.json").write_text(json.dumps(["three four"] + [f"three {'five ' * n}" for n in range(1, 101)]))
    assert main(["train", *SMALL, "--out", str(tmp_path / "many"), *options]) == 2
    told = "expected classes whose names begin with the same token of at most 100, got 101"
    assert told in " ".join(capsys.readouterr().err.split())


def test_images_that_are_no_bytes_are_told_without_a_traceback(tmp_path, capsys):
    images, labels = np.zeros((4, 8, 8, 3), np.float32), np.arange(4) % 2
    np.savez(tmp_path / "set.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert main(["train", "--data-dir", str(tmp_path / "set.npz"), "--out", str(tmp_path / "run")]) == 2
    told = f"ntkprefix train: {tmp_path / 'set.npz'}: expected x_train as uint8 from 0 to 255, got float32.\n"
    assert capsys.readouterr().err == told
    assert not (tmp_path / "run").exists()  # where nothing was done


@pytest.mark.parametrize("line", ['{"step": "x"}', '{"step": null}', "{}"])
def test_lines_of_metrics_that_no_run_wrote_are_dropped(line, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(line + "\n")
    trained(tmp_path / "run", "--adapter", "head")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 31))


@pytest.mark.parametrize("model", ["encoder", "decoder"])
def test_a_job_divided_anew_is_as_if_made_anew_and_shares_its_programs(model, labelled):
    first = command.Config(model=model, task="text", data_dir=labelled, adapter="lora", train_rows=40)
    other = dataclasses.replace(first, patience=1, held_back=0.25, seed=3)
    job = jobs.job_of(first, spelt("lora"))
    divided, made = job.divided(other), jobs.job_of(other, spelt("lora"))
    assert divided.about == made.about != job.about
    assert divided.fingerprints() == made.fingerprints() != job.fingerprints()
    assert divided.loss == job.loss
    assert len(job.train[0]) == 40
    assert len(divided.train[0]) == 30


@pytest.mark.parametrize(("mesh", "message"), [("data=3", "number of devices, 1"), ("rows=1", "sizes of data, tensor")])
def test_a_mesh_of_other_devices(mesh, message, tmp_path, capsys):
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), "--mesh", mesh]) == 2
    assert message in capsys.readouterr().err


def test_a_language_model_has_no_head_to_train_alone(tmp_path, labelled, capsys):
    options = ["--model", "decoder", "--task", "text", "--data-dir", str(labelled), "--adapter", "head"]
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), *options]) == 2
    assert "expected an adapter other than head for a language model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_free_answers_of_a_language_model(tmp_path):
    rows = [{"prompt": word, "answer": "three"} for word in ("one", "two") for _ in range(20)]
    options = ["--model", "decoder", "--task", "prompt", "--data-dir", str(texts(tmp_path / "data", rows))]
    results = trained(tmp_path / "run", *options, "--adapter", "lora:targets=up/down", "--learning-rate", "0.1")
    assert set(results["test"]) == {"exact_match", "loss", "right"}
    assert results["test"]["exact_match"] == 1.0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "exact match" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("place", ["", "run"])
def test_a_run_is_no_part_of_its_data(place, labelled, capsys):
    options = ["--model", "encoder", "--task", "text", "--data-dir", str(labelled), "--out", str(labelled / place)]
    assert main(["train", *SMALL, *options]) == 2
    assert f"train: expected --out outside of the data in {labelled}, got" in capsys.readouterr().err
    assert sorted(path.name for path in labelled.iterdir()) == ["labels.json", "test.jsonl", "train.jsonl"]


def test_documented_python_trains_a_population(models):
    """With fewer configurations: what is shown is the call."""
    text = (ROOT / "docs" / "training.md").read_text()
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("range(3)", "range(1)")
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), dtype=np.uint8)
    names = {"jax": jax, "model": models.vit, "images": images, "labels": np.arange(32, dtype=np.int32) % 10}
    exec(snippet, names)
    assert names["population"].losses.shape == (3, 8)
    assert set(names["best"]) == {"adapter", "head"}


@pytest.mark.parametrize(
    ("rate", "told"),
    [("1e12", r"ends with a loss of \S+, where guessing has 2\.3\. "), ("3e38", "not finite|is nan|is inf")],
)
def test_a_head_that_diverges_is_told_as_such(rate, told, tmp_path, capsys):
    options = ["--head-epochs", "1", "--head-learning-rate", rate]
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), *options]) == 2
    shown = capsys.readouterr().err
    assert re.search(told, shown)
    advice = (
        f"Try a smaller learning_rate than {float(rate)}. This is of the head alone: its step size is head_learning"
    )
    assert advice in shown
