"""`ntkprefix train` from a shell's words to files, with tiny models."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tyro
from flax import nnx
from safetensors import safe_open
from texts.words import WORDS, word_tokenizer

from ntkprefix.adapters import FeatureAdapter, LoraAdapter, MeasureAdapter, Stack, load_adapter, spelt
from ntkprefix.cli import main
from ntkprefix.commands import jobs
from ntkprefix.commands import train as command
from ntkprefix.feature_maps import feature_map
from ntkprefix.given_options import checked_options
from ntkprefix.models import BlockConfig, TextConfig, TextModel, ViT, ViTConfig
from ntkprefix.train import loop

ROOT = Path(__file__).parents[2]
SMALL = ["--train-rows", "48", "--test-rows", "30", "--epochs", "2", "--size", "8", "--length", "12"]


def tiny(*, causal):
    block = BlockConfig(width=12, heads=3, mlp_width=16, causal=causal)
    options = {"positions": 16, "token_types": 0 if causal else 2, "head": "tied" if causal else "none"}
    config = TextConfig(vocabulary=len(WORDS), layers=2, block=block, **options)
    return nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def models():
    block = BlockConfig(width=12, heads=3, mlp_width=16)
    vit = nnx.jit(lambda: ViT(ViTConfig(patch=4, layers=2, grid=2, block=block), rngs=nnx.Rngs(0)))()
    return SimpleNamespace(vit=vit, encoder=tiny(causal=False), decoder=tiny(causal=True))


@pytest.fixture(autouse=True)
def without_weights(models, monkeypatch):
    monkeypatch.setattr(jobs, "load_dinov2", lambda _, **__: models.vit)
    monkeypatch.setattr(jobs, "load_text_model", lambda name, **_: getattr(models, name))
    monkeypatch.setattr(jobs, "load_tokenizer", lambda name: word_tokenizer(special=name == "encoder"))


def texts(folder, rows):
    folder.mkdir(exist_ok=True)
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def labelled(tmp_path):
    labels = [("one two", 0), ("five six", 1)]
    rows = [{"text": text, "sentence": text, "label": label} for text, label in labels for _ in range(30)]
    folder = texts(tmp_path / "data", rows)
    (folder / "labels.json").write_text('["three", "four"]')
    return folder


def trained(out, *options):
    assert main(["train", *SMALL, "--out", str(out), *options]) == 0
    return json.loads((out / "results.json").read_text())


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


def test_free_answers_of_a_language_model(tmp_path):
    rows = [{"prompt": word, "answer": "three"} for word in ("one", "two") for _ in range(20)]
    options = ["--model", "decoder", "--task", "prompt", "--data-dir", str(texts(tmp_path / "data", rows))]
    results = trained(tmp_path / "run", *options, "--adapter", "lora:targets=up/down", "--learning-rate", "0.1")
    assert set(results["test"]) == {"exact_match", "loss", "right"}
    assert results["test"]["exact_match"] == 1.0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert "exact match" in (tmp_path / "page.html").read_text()


def test_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    whole = trained(tmp_path / "whole")

    def stopping(*arguments, on_step, **options):
        def stop(step, loss):
            on_step(step, loss)
            if step == 5:
                raise KeyboardInterrupt

        return original(*arguments, on_step=stop, **options)

    original = command.train
    monkeypatch.setattr(command, "train", stopping)
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(command, "train", original)
    resumed = trained(tmp_path / "run")
    assert resumed["test"] == whole["test"]
    (tmp_path / "run" / "results.json").unlink()
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), "--learning-rate", "0.5"]) == 2
    assert "but learning_rate is 0.1 there and 0.5 here" in capsys.readouterr().err


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch, capsys):
    trained(tmp_path / "run", "--adapter", "head")
    before = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    monkeypatch.setattr(command, "job_of", lambda *_: pytest.fail("something was computed"))
    trained(tmp_path / "run", "--adapter", "head", "--checkpoint-every", "3")
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before
    assert f"Finished before: look at {tmp_path / 'run' / 'results.json'}." in capsys.readouterr().out
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), "--adapter", "head", "--size", "12"]) == 2
    told = "results.json: expected results of this run, but size is 8 there and 12 here. Choose another folder, or"
    assert told in capsys.readouterr().err
    (tmp_path / "run" / "results.json").write_text('{"config": {}}')
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "expected results of this run, but model is None there and 'dinov2' here" in capsys.readouterr().err
    (tmp_path / "run" / "results.json").write_text("{}")
    assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 2
    assert "results.json: expected results of ntkprefix train, got something else" in capsys.readouterr().err


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.fixture
def begun(tmp_path, labelled, monkeypatch):
    """Begins a run on texts that is stopped at its first checkpoint, and gives its options."""
    options = ["train", *SMALL, "--model", "encoder", "--task", "text", "--data-dir", str(labelled)]
    options += ["--adapter", "lora:rank=2", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(command, "_train", interrupted)
        assert main(options) == 130
    (tmp_path / "run" / "checkpoints" / "1").mkdir(parents=True)
    monkeypatch.setattr(command, "_train", lambda *_: pytest.fail("something was trained"))
    return options


OTHER = {
    "model": ("decoder", "model is 'encoder' there and 'decoder' here"),
    "adapter": ("lora:rank=2,alpha=64", "adapter is 'lora:rank=2' there and 'lora:rank=2,alpha=64' here"),
    "task": ("sst2", "task is 'text' there and 'sst2' here"),
    "size": ("42", "size is 8 there and 42 here"),
    "length": ("9", "length is 12 there and 9 here"),
    "dtype": ("bfloat16", "dtype is 'float32' there and 'bfloat16' here"),
    "epochs": ("3", "epochs is 2 there and 3 here"),
    "micro-batches": ("2", "micro_batches is 1 there and 2 here"),
    "head-learning-rate": ("0.01", "head_learning_rate is 0.001 there and 0.01 here"),
    "head-epochs": ("3", "head_epochs is 10 there and 3 here"),
    "weight-decay": ("0", "weight_decay is 0.0001 there and 0.0 here"),
    "held-back": ("0.2", "held_back is 0.1 there and 0.2 here"),
    "train-rows": ("32", "train_rows is 48 there and 32 here"),
    "test-rows": ("20", "test_rows is 30 there and 20 here"),
    "seed": ("1", "seed is 0 there and 1 here"),
    "mesh": ("data=1", "mesh is '' there and 'data=1' here"),
}


@pytest.mark.parametrize("option", OTHER)
def test_other_settings_are_refused(option, begun, tmp_path, capsys):
    value, told = OTHER[option]
    before = (tmp_path / "run" / "settings.json").read_bytes()
    assert main([*begun, f"--{option}", value]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"ntkprefix train: {tmp_path / 'run'}: expected the run that was begun there, but {told}")
    assert shown.endswith("Choose another with --out, or give the settings that it was begun with.\n")
    assert (tmp_path / "run" / "settings.json").read_bytes() == before


def test_other_rows_of_the_same_number_are_refused(begun, labelled, capsys):
    file = labelled / "train.jsonl"
    file.write_text(file.read_text().replace("one two", "two one"))
    assert main(begun) == 2
    assert re.search(r"but fingerprint of the data is '\w{16}' there and '\w{16}' here\. ", capsys.readouterr().err)


def test_other_weights_of_the_same_shapes_are_refused(begun, models, monkeypatch, capsys):
    other = nnx.clone(models.encoder)
    other.tokens.embedding[...] = other.tokens.embedding[...].at[0, 0].add(1e-6)
    monkeypatch.setattr(models, "encoder", other)
    assert main(begun) == 2
    assert re.search(r"but fingerprint of the model is '\w{16}' there and '\w{16}' here\. ", capsys.readouterr().err)


@pytest.mark.parametrize("left", ["all", "none", "half"])
def test_the_same_settings_go_on_whatever_was_written_of_them(left, begun, tmp_path, monkeypatch):
    file = tmp_path / "run" / "settings.json"
    before = file.read_bytes()
    (tmp_path / "run" / "checkpoints" / "1").rmdir()
    if left != "all":
        file.unlink()
    if left == "half":
        (tmp_path / "run" / ".settings.json.1.ntkprefix-partial").write_bytes(before[:50])
    monkeypatch.setattr(command, "_train", interrupted)
    # No number depends on how often it is kept.
    assert main([*begun, "--checkpoint-every", "1"]) == 130
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "settings.json"]
    assert file.read_bytes() == before


def test_a_run_without_a_checkpoint_leaves_its_folder_to_other_settings(begun, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints" / "1").rmdir()
    monkeypatch.setattr(command, "_train", interrupted)
    assert main([*begun, "--seed", "1"]) == 130
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["seed"] == 1


def test_a_run_that_goes_on_does_not_train_its_head_again(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    enter = loop._Run.enter

    def interrupted_behind_the_start(run, rows):
        enter(run, rows)
        if run._checkpoints is not None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "enter", interrupted_behind_the_start)
        assert main(["train", *SMALL, "--out", str(tmp_path / "run")]) == 130
    monkeypatch.setattr(jobs, "probe", interrupted)
    assert trained(tmp_path / "run")["test"] == whole["test"]


@pytest.mark.parametrize("place", ["", "run"])
def test_a_run_is_no_part_of_its_data(place, labelled, capsys):
    options = ["--model", "encoder", "--task", "text", "--data-dir", str(labelled), "--out", str(labelled / place)]
    assert main(["train", *SMALL, *options]) == 2
    assert f"train: expected --out outside of the data in {labelled}, got" in capsys.readouterr().err
    assert sorted(path.name for path in labelled.iterdir()) == ["labels.json", "test.jsonl", "train.jsonl"]


def test_a_file_in_place_of_checkpoints(begun, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints" / "1").rmdir()
    (tmp_path / "run" / "checkpoints").rmdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    assert main(begun) == 2
    assert f"{tmp_path / 'run' / 'checkpoints'}: expected a folder, found a file. Move" in capsys.readouterr().err


def test_damaged_settings_are_told_with_what_helps(begun, tmp_path, capsys):
    (tmp_path / "run" / "settings.json").write_text("[]")
    assert main(begun) == 2
    told = (
        f"settings.json: expected a JSON object, got a list. Delete {tmp_path / 'run' / 'checkpoints'} to start afresh."
    )
    assert told in capsys.readouterr().err


def test_checkpoints_of_nobody_knows_what_are_refused(begun, tmp_path, capsys):
    (tmp_path / "run" / "settings.json").unlink()
    assert main(begun) == 2
    told = f"{tmp_path / 'run'}: expected settings.json beside checkpoints, which says what run it is, found none."
    assert told in capsys.readouterr().err


def test_options_come_from_a_file_and_the_command_line_wins(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"epochs": 1, "adapter": "head", "remat": True, "seed": 3, "out": None})
    )
    options = ["--epochs", "2", f"--config={tmp_path / 'run.json'}", "--seed", "1"]
    options = checked_options(options, command.Config)
    assert options == ["--epochs", "1", "--adapter", "head", "--remat", "--seed", "3", "--epochs", "2", "--seed", "1"]
    results = trained(tmp_path / "run", "--config", str(tmp_path / "run.json"))
    assert results["config"]["adapter"] == "head"
    assert results["config"]["remat"] is True
    assert results["config"]["seed"] == 3
    assert results["config"]["epochs"] == 2


def test_a_text_of_a_file_is_no_option(tmp_path):
    (tmp_path / "run.json").write_text('{"data_dir": "--remat", "hosts": "-x"}')
    options = checked_options(["--config", str(tmp_path / "run.json")], command.Config)
    assert options == ["--data-dir=--remat", "--hosts=-x"]
    config = tyro.cli(command.Config, args=options[:1])
    assert (config.data_dir, config.remat) == (Path("--remat"), False)


FILES = {
    "nothing": (None, "--config: expected a file, got nothing"),
    "absent": ("absent.json", "absent.json"),
    "no JSON": ("text.json", "text.json: expected JSON"),
    "misspelt": (
        "misspelt.json",
        "misspelt.json: expected settings of this command, got 'epohcs'. Did you mean 'epochs'?",
    ),
    "no flag": ("flag.json", 'flag.json: expected true or false as remat, got "yes".'),
    "a flag": ("count.json", "count.json: expected a value that is no flag as epochs, got true."),
    "NaN": ("nan.json", "nan.json: expected a finite number as batch_size, got nan."),
    "a part": ("part.json", "part.json: expected a whole number as batch_size, got 1.5."),
    "in words": ("words.json", 'words.json: expected a number as warmup, got "much".'),
    "no choice": ("choice.json", 'choice.json: expected one of cosine, linear, constant as schedule, got "sine".'),
    "several": ("several.json", "several.json: expected one value as epochs, got [1, 2]."),
    "nested": ("nested.json", "expected a text, a number, a flag or a list of them as epochs, got {'a': 1}"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_of_options(case, tmp_path, capsys):
    name, message = FILES[case]
    (tmp_path / "text.json").write_text("text")
    (tmp_path / "flag.json").write_text('{"remat": "yes"}')
    (tmp_path / "count.json").write_text('{"epochs": true}')
    (tmp_path / "nan.json").write_text('{"batch_size": NaN}')
    (tmp_path / "part.json").write_text('{"batch_size": 1.5}')
    (tmp_path / "words.json").write_text('{"warmup": "much"}')
    (tmp_path / "choice.json").write_text('{"schedule": "sine"}')
    (tmp_path / "several.json").write_text('{"epochs": [1, 2]}')
    (tmp_path / "misspelt.json").write_text('{"epohcs": 1}')
    (tmp_path / "nested.json").write_text('{"epochs": {"a": 1}}')
    assert main(["train", "--config", *([] if name is None else [str(tmp_path / name)])]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ntkprefix train: ")
    assert message in shown


BAD = {
    "adapter": (["--adapter", "lore"], "unknown name 'lore'; expected one of head, full, lora"),
    "option": (["--adapter", "lora:rnk=2"], "lora has no option 'rnk=2'; expected rank=.., alpha=.., targets=.."),
    "value": (["--adapter", "lora:rank=0"], "rank of at least 1, got 0"),
    "kind": (["--adapter", "lora:rank=x"], "LoraAdapter"),  # types are checked once more in tests
    "held back": (["--held-back", "1"], "held_back between 0 and 1, got 1"),
    "no number": (["--head-learning-rate", "nan"], "expected a finite number as head_learning_rate, got nan"),
    "epochs": (["--epochs", "99999999999999999"], "epochs of at most 16,777,216, got 99,999,999,999,999,999"),
    "head epochs": (["--head-epochs", "99999999999999999"], "head_epochs of at most 16,777,216, got 99,999"),
    "micro": (["--micro-batches", "3"], "micro_batches that divide"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_options(case, capsys):
    options, message = BAD[case]
    assert main(["train", *options]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("ntkprefix train: ")
    assert shown.count("train: ") == 1


@pytest.mark.parametrize("document", ["README.md", "docs/training.md"])
def test_documented_commands_are_understood(document):
    lines = re.findall(r"^ntkprefix (train.*?)(?: +#.*)?$", (ROOT / document).read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        options = [option for option in shlex.split(line)[1:] if option not in ("--config", "run.json")]
        tyro.cli(command.Config, args=options)


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
    ("options", "told"),
    [(["--held-back", "0.999"], "48 held back of 48"), (["--train-rows", "1"], "1 held back of 1")],
)
def test_rows_that_are_all_held_back(options, told, tmp_path, capsys):
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), "--patience", "1", *options]) == 2
    said = f"got {told}, which leaves 0. Give a smaller held_back, more train_rows, or no patience."
    assert said in capsys.readouterr().err


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


def test_texts_need_a_folder(capsys):
    assert main(["train", "--task", "sst2", "--model", "encoder"]) == 2
    assert "expected --data-dir, the folder of the rows of sst2, got none" in capsys.readouterr().err


def test_spelling_of_adapters():
    assert spelt("features:rank=4,heads=kv,train_scale=False") == FeatureAdapter(rank=4, heads="kv", train_scale=False)
    assert spelt("features:feature_map=taylor/0").feature_map == feature_map("taylor", degree=0)
    assert spelt("features:feature_map=favor/8").feature_map.size(4) == 8
    stack = spelt("lora:rank=2+measure:components=3")
    assert isinstance(stack, Stack)
    assert stack.adapters == (LoraAdapter(rank=2), MeasureAdapter(components=3))
