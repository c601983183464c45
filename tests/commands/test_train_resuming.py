"""`ntkprefix train` with a folder that it has been in: what goes on, what is left alone and what is refused."""

import json
import re

import pytest
from flax import nnx
from small_runs import SMALL, trained

from ntkprefix.cli import main
from ntkprefix.commands import jobs
from ntkprefix.commands import train as command
from ntkprefix.train import loop

# Its fixtures are those of tiny models in place of real ones.
pytest_plugins = ("small_models",)
pytestmark = pytest.mark.usefixtures("without_weights")


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


def interrupted(_, __, out, *___):
    (out / "checkpoints" / "1").mkdir(parents=True)
    raise KeyboardInterrupt


@pytest.fixture
def begun(tmp_path, labelled, monkeypatch):
    """Begins a run on texts that is stopped at its first checkpoint, and gives its options."""
    options = ["train", *SMALL, "--model", "encoder", "--task", "text", "--data-dir", str(labelled)]
    options += ["--adapter", "lora:rank=2", "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(command, "_train", interrupted)
        assert main(options) == 130
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
