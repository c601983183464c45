"""`ntkprefix sweep`: its lines, and the runs that they are."""

import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
from flax import nnx
from report.pages import read

from ntkprefix.cli import main
from ntkprefix.commands import jobs, train
from ntkprefix.commands.sweep import Config, folder_name, runs_of
from ntkprefix.models import BlockConfig, ViT, ViTConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
TWO = ["--adapters", "tokens:length=10", "lora:rank=4", "--seeds", "0", "1"]
SMALL = ["--train-rows", "32", "--test-rows", "32", "--epochs", "2", "--size", "8", "--head-epochs", "1"]


def listed(capsys, *options):
    assert main(["sweep", *options]) == 0
    return capsys.readouterr().out.splitlines()


def test_lines_word_by_word(tmp_path, capsys):
    (tmp_path / "base.json").write_text(json.dumps({"epochs": 5, "remat": True, "data_dir": "my photos", "seed": 7}))
    options = [*TWO, "--learning-rates", "0", "0.3", "--config", str(tmp_path / "base.json"), "--runs", "runs/m"]
    common = "ntkprefix train --data-dir 'my photos' --epochs 5 --remat"
    wanted = [
        f"{common} --adapter {adapter} --learning-rate {rate} --seed {seed} --out runs/m/{name}_lr={rate}_seed={seed}"
        for adapter, name, rates in (
            ("tokens:length=10", "tokens-length=10", (0.1, 0.3)),
            ("lora:rank=4", "lora-rank=4", (0.003, 0.3)),
        )
        for rate in rates
        for seed in (0, 1)
    ]
    assert listed(capsys, *options) == wanted
    assert listed(capsys, *options, "--out", str(tmp_path / "new" / "runs.sh")) == [
        f"Look at {tmp_path / 'new' / 'runs.sh'}: 8 of 8 runs."
    ]
    assert (tmp_path / "new" / "runs.sh").read_text().splitlines() == wanted


def test_one_run_is_that_of_train(capsys):
    (line,) = listed(capsys, "--adapter", "lora:rank=2", "--seed", "3", "--learning-rate", "0.01", "--mesh", "data=1")
    own = "--adapter lora:rank=2 --learning-rate 0.01 --seed 3 --out runs/lora-rank=2_lr=0.01_seed=3"
    assert line == f"ntkprefix train --mesh data=1 {own}"


def test_a_head_alone_has_no_step_size_besides_its_own(capsys):
    lines = listed(capsys, "--adapters", "head", "lora", "--learning-rates", "0.1", "0.3")
    assert lines[0] == "ntkprefix train --adapter head --seed 0 --out runs/head_lr=0.001_seed=0"
    assert len(lines) == 3


def test_step_sizes_are_checked_where_no_run_has_them(capsys):
    assert main(["sweep", "--adapters", "head", "--learning-rates", "nan"]) == 2
    assert "sweep: expected a finite number of at least 0 as learning_rates, got nan." in capsys.readouterr().err


def test_lines_are_understood_as_they_were_meant(capsys):
    options = {"adapters": ("lora:rank=1+features", "measure"), "seeds": (0, 2), "patience": 2, "runs": Path("it's a")}
    options |= {"warmup": 1e-7, "schedule": "constant", "dtype": "bfloat16", "data_dir": Path("a b"), "remat": True}
    words = """--adapters lora:rank=1+features measure --seeds 0 2 --patience 2 --runs "it's a" --warmup 1e-7
        --schedule constant --dtype bfloat16 --data-dir 'a b' --remat"""
    lines = listed(capsys, *shlex.split(words))
    meant = list(runs_of(Config(**options)).values())
    assert [tyro.cli(train.Config, args=shlex.split(line)[2:]) for line in lines] == meant


ALIKE = [
    "lora:targets=query/value",
    "lora:targets=query-value",
    "lora:targets=query value",
    "lora:targets=query.value",
    "features:scale=1e-3",
    "features:scale=1e:3",
    "lora:rank=4,alpha=8",
    "lora:rank=4+alpha=8",
    *(f"lora:rank={'1' * 300}{last}" for last in "12"),
]


def test_names_are_safe_short_and_do_not_clash(monkeypatch):
    monkeypatch.setattr(train, "spelt", lambda text: text)  # not all are adapters that there are
    names = [
        folder_name(train.Config(adapter=adapter, learning_rate=rate, seed=seed))
        for adapter in ALIKE
        for rate in (0.1, 0.10000000000000002, 1e-30)
        for seed in (1, 11)
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.,=+-]{1,140}", name) for name in names)
    assert all(name == shlex.quote(name) for name in names)


BAD = {
    "steps of a head": (
        ["--adapters", "head", "--learning-rates", "1", "2"],
        "sweep: expected an adapter besides head for step sizes of its own, got learning_rates (1.0, 2.0)",
    ),
    "adapter": (["--adapters", "lora:rank=2", "lore"], "unknown name 'lore'; expected one of head, full"),
    "its option": (["--adapters", "lora", "tokens:rank=2"], "tokens has no option 'rank=2'; expected length=.."),
    "step size": (
        ["--learning-rates", "0.1", "-1"],
        "sweep: expected a finite number of at least 0 as learning_rates, got -1",
    ),
    "seed": (["--seeds", "0", "-1"], "train: expected seed of at least 0, got -1"),
    "common": (["--held-back", "1"], "train: expected held_back between 0 and 1, got 1.0"),
    "unknown": (["--epoch", "1"], "Unrecognized options: --epoch"),
    "same": (
        ["--adapters", "head", "lora:rank=8+features", "lora:alpha=16+features:heads=query"],
        "expected adapters that differ, got lora:rank=8+features and lora:alpha=16+features:heads=query. Leave one",
    ),
    "a step of a head": (
        ["--adapters", "head", "--learning-rates", "1"],
        "sweep: expected an adapter besides head for step sizes of its own, got learning_rates (1.0,)",
    ),
    "kind of an option": (["--adapters", "lora", "lora:rank=four"], "What options take: ntkprefix sweep --help"),
    "twice": (["--adapters", "lora", "--learning-rates", "0", "0.003"], "got lora_lr=0.003_seed=0 twice. Leave one"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_one_run_is_told_before_any_is_printed(case, tmp_path, capsys):
    options, message = BAD[case]
    # Of options that there are not, argument parsing ends the program itself.
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["sweep", *options, "--out", str(tmp_path / "runs.sh")]))
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.replace("│", " ").split())
    assert not shown.out
    assert not (tmp_path / "runs.sh").exists()


def test_a_line_has_no_break(capsys):
    assert main(["sweep", "--runs", "two\nlines"]) == 2
    shown = capsys.readouterr()
    assert "ntkprefix sweep: expected files and folders without line breaks in their names" in shown.err
    assert not shown.out


def test_results_of_other_settings_are_not_taken_for_those_of_a_run(tmp_path, capsys):
    folder = tmp_path / "lora_lr=0.003_seed=0"
    folder.mkdir()
    config = vars(train.Config(adapter="lora", epochs=3))
    (folder / "results.json").write_text(json.dumps({"config": config}))
    options = ["--adapters", "lora", "--runs", str(tmp_path), "--left"]
    assert listed(capsys, *options) == []
    assert main(["sweep", *options, "--epochs", "4"]) == 2
    shown = capsys.readouterr()
    assert f"{folder}/results.json: expected results of this run, but epochs is 3 there and 4 here" in shown.err
    assert not shown.out


def test_a_sweep_that_was_stopped_goes_on_and_is_one_table(tmp_path, monkeypatch, capsys):
    block = BlockConfig(width=12, heads=3, mlp_width=16)
    vit = nnx.jit(lambda: ViT(ViTConfig(patch=4, layers=1, grid=2, block=block), rngs=nnx.Rngs(0)))()
    monkeypatch.setattr(jobs, "load_dinov2", lambda _, **__: vit)
    options = ["--adapters", "head", "tokens:length=2", "--seeds", "0", "1", *SMALL]
    options += ["--runs", str(tmp_path / "my runs")]
    lines = listed(capsys, *options)
    random.Random(0).shuffle(lines)
    assert len(lines) == 4
    interrupted = next(line for line in lines if "tokens" in line)

    def run(line):
        return main(shlex.split(line)[1:])

    def killed(*arguments, on_step, **rest):
        def stop(step, loss):
            on_step(step, loss)
            if step == 3:  # in the second of two passes
                raise KeyboardInterrupt

        return original(*arguments, on_step=stop, **rest)

    original = train.train
    with monkeypatch.context() as patch:
        patch.setattr(train, "train", killed)
        assert {line: run(line) for line in lines[:3]}[interrupted] == 130
    capsys.readouterr()
    assert interrupted in listed(capsys, *options, "--left")
    assert [run(line) for line in lines] == [0] * 4
    assert "Finished before" in capsys.readouterr().out
    assert listed(capsys, *options, "--left") == []

    page = tmp_path / "page.html"
    results = sorted(map(str, (tmp_path / "my runs").glob("*/results.json")))
    assert main(["report", *results, "--out", str(page)]) == 0
    header, *rows = read(page).tables[0]
    assert [row[0] for row in rows] == ["head", "tokens:length=2"]
    assert [row[header.index("seeds")] for row in rows] == ["0, 1", "0, 1"]
    assert all("±" in row[header.index("accuracy")] for row in rows)


def test_documented_ways_to_run_a_list(tmp_path):
    """Each line as it is, quotes and blanks included; those of what is not installed are looked at only."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("## Sweeps")[2].partition("\n## ")[0]
    ways = [line for line in text.splitlines() if re.match(r"sh |tr |parallel |sbatch ", line)]
    assert [way.split()[0] for way in ways] == ["sh", "tr", "parallel", "sbatch"]
    place = tmp_path / "it's here"
    place.mkdir()
    lines = [shlex.join(["touch", str(place / f"{name} \\x")]) + "\n" for name in "abc"]
    (tmp_path / "runs.sh").write_text("".join(lines))
    wrapped = shlex.split(ways[3], comments=True)[-1]
    for way, made in ((ways[0], "abc"), (ways[1], "abc"), (f"SLURM_ARRAY_TASK_ID=2; {wrapped}", "b")):
        subprocess.run(["sh", "-c", way], cwd=tmp_path, check=True)
        assert sorted(path.name for path in place.iterdir()) == [f"{name} \\x" for name in made]
        for path in place.iterdir():
            path.unlink()
