"""The options of `ntkprefix train`: from files, in documents, and such as are refused."""

import json
import re
import shlex
from pathlib import Path

import pytest
import tyro
from small_runs import SMALL, trained

from ntkprefix.adapters import FeatureAdapter, LoraAdapter, MeasureAdapter, Stack, spelt
from ntkprefix.cli import main
from ntkprefix.commands import plan
from ntkprefix.commands import train as command
from ntkprefix.feature_maps import feature_map
from ntkprefix.given_options import checked_options

ROOT = Path(__file__).parents[2]
# Its fixtures are those of tiny models in place of real ones.
pytest_plugins = ("small_models",)
pytestmark = pytest.mark.usefixtures("without_weights")


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


def test_an_empty_list_of_a_file_is_told_with_the_file(tmp_path):
    (tmp_path / "run.json").write_text('{"meshes": []}')
    with pytest.raises(ValueError, match=r"run\.json: expected at least one value as meshes, got none"):
        checked_options(["--config", str(tmp_path / "run.json")], plan.Config)


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
    "no path": ("nowhere.json", "nowhere.json: expected a path as data_dir, got an empty text."),
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
    (tmp_path / "nowhere.json").write_text('{"data_dir": ""}')
    (tmp_path / "nested.json").write_text('{"epochs": {"a": 1}}')
    assert main(["train", "--config", *([] if name is None else [str(tmp_path / name)])]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ntkprefix train: ")
    assert message in shown


BAD = {
    "adapter": (["--adapter", "lore"], "unknown name 'lore'; expected one of head, full, lora"),
    "task": (["--task", "texts"], "unknown task 'texts'; expected one of images, text, pair, prompt, sst2"),
    "a model of images": (
        ["--task", "sst2", "--data-dir", "x"],
        "model: expected one that reads texts, such as minilm or smollm2, got dinov2, which reads images.",
    ),
    "a model of texts": (["--model", "minilm"], "expected one that reads images, such as dinov2, got minilm"),
    "no path": (["--out", ""], "--out: expected a path, got an empty text. Give one, or leave it out."),
    "no path behind a sign": (["--data-dir="], "--data-dir: expected a path, got an empty text."),
    "option": (["--adapter", "lora:rnk=2"], "lora has no option 'rnk=2'; expected rank=.., alpha=.., targets=.."),
    "option twice": (["--adapter", "lora:rank=4,rank=5"], "expected rank once, got it twice in 'lora:rank=4,rank=5'"),
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


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--held-back", "0.999"], "48 held back of 48"), (["--train-rows", "1"], "1 held back of 1")],
)
def test_rows_that_are_all_held_back(options, told, tmp_path, capsys):
    assert main(["train", *SMALL, "--out", str(tmp_path / "run"), "--patience", "1", *options]) == 2
    said = f"got {told}, which leaves 0. Give a smaller held_back, more train_rows, or no patience."
    assert said in capsys.readouterr().err


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
