"""Tables and plots of runs, against what their files say when read by other means."""

import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from report.pages import ENVIRONMENT, read, train_run
from scipy import stats

from benchmarks import RESULTS as BENCHMARKS
from experiments import RESULTS
from ntkprefix.cli import main
from ntkprefix.commands.report import Config
from ntkprefix.records import KINDS, read_all

TABLES = RESULTS / "tables"
# Student's t for 95 %, from a printed table.
T = {1: 12.7062, 2: 4.3027}


def report(tmp_path, *runs):
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return read(out)


def column(table, name):
    place = table[0].index(name)
    return {row[0]: row[place] for row in table[1:]}


def traces(found, title):
    """Of a plot, without bands."""
    (figure,) = (figure for figure in found.figures if figure["title"] == title)
    return [trace for trace in figure["data"] if "name" in trace]


def plus_minus(values):
    half = T[len(values) - 1] * np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {half:.3f}"


def load(path):
    return json.loads(Path(path).read_text())


@pytest.fixture
def runs(tmp_path):
    """Two methods, three seeds and one."""
    rights = ["1" * 18 + "00", "1" * 15 + "0" * 5, "1" * 20]
    folders = [train_run(tmp_path / f"a{seed}", right=right, seed=seed) for seed, right in enumerate(rights)]
    losses = [2.0, 0.0, 1.0]
    return [
        *folders,
        train_run(tmp_path / "b", adapter="head", right="1" * 81 + "0" * 19, losses=losses, validation=()),
    ]


def test_runs_that_differ_in_their_seed_are_one_method_with_an_interval(runs, tmp_path):
    found = report(tmp_path, *runs)
    table = found.tables[0]
    assert [row[0] for row in table] == ["method", "lora:rank=2", "head"]
    # 81 of 100: Wilson's interval from a published table is 0.722 to 0.875.
    assert column(table, "accuracy") == {
        "lora:rank=2": plus_minus([0.9, 0.75, 1.0]),
        "head": "0.810 [0.722, 0.875]",
    }
    assert column(table, "test loss") == {"lora:rank=2": "0.35 ± 0.248", "head": "0.25"}
    assert column(table, "seeds") == {"lora:rank=2": "0, 1, 2", "head": "0"}
    assert column(table, "step size") == {"lora:rank=2": "0.003", "head": "0.001"}
    assert column(table, "trained numbers")["head"] == "1,234"
    assert "by Student's t" in found.text
    assert found.headings[0] == "dinov2 on digits"
    assert "digits: 48 training rows, 20 test rows, 10 classes" in found.text


def test_losses_are_those_of_the_run(runs, tmp_path):
    found = report(tmp_path, *runs)
    shown = {trace["name"]: trace for trace in traces(found, "Training loss")}
    for run, name in zip(
        runs, ["lora:rank=2, seed 0: a0", *["lora:rank=2, seed 1: a1"], "lora:rank=2, seed 2: a2"], strict=False
    ):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert shown[name]["x"] == [line["step"] for line in lines if "loss" in line]
        assert shown[name]["y"] == [line["loss"] for line in lines if "loss" in line]
    groups = {trace["legendgroup"] for name, trace in shown.items() if name.startswith("lora")}
    assert len(groups) == 1
    assert len(shown) == 8
    validation = traces(found, "Validation loss")
    assert [trace["y"] for trace in validation] == [[0.8, 0.6]] * 3
    accuracy = traces(found, "Accuracy")
    assert accuracy[0]["x"] == [pytest.approx(0.88333, abs=1e-4), 0.81]
    assert accuracy[1]["x"] == [0.9, 0.75, 1.0]
    # a loss of zero has no logarithm
    (loss,) = (figure for figure in found.figures if figure["title"] == "Training loss")
    assert loss["layout"]["yaxis"]["type"] == "linear"


def test_settings_that_differ_name_a_method(tmp_path):
    settings = [{}, {"epochs": 3}, {"epochs": 3, "learning_rate": 0.1}, {"adapter": "full", "learning_rate": 0.5}]
    folders = [train_run(tmp_path / str(index), **each) for index, each in enumerate(settings)]
    assert [row[0] for row in report(tmp_path, *folders).tables[0][1:]] == [
        "lora:rank=2, epochs 2, step size 0.003",
        "lora:rank=2, epochs 3, step size 0.003",
        "lora:rank=2, epochs 3, step size 0.1",
        "full, epochs 2",
    ]


def test_other_data_are_another_section_and_a_repetition_is_no_second_seed(tmp_path):
    first, again = (train_run(tmp_path / name) for name in ("first", "again"))
    other = train_run(tmp_path / "other", data_dir="/photos")
    found = report(tmp_path, first, again, other, tmp_path / "first")
    assert [len(table) for table in found.tables] == [2, 2, 4]
    assert "again has the settings and the seed of first; it is left out." in found.text


def test_every_run_says_where_it_was_made(runs, tmp_path):
    found = report(tmp_path, *runs, RESULTS / "scale.json")
    table = found.tables[-1]
    assert [row[0] for row in table[1:]] == ["a0", "a1", "a2", "b", "scale.json"]
    assert table[1][1:] == ["abcdef123456", "0.1", "3.11", "0.10.2", "cpu, a processor", "2", "2026-01-02 03:04"]
    assert '"adapter": "lora:rank=2"' in found.text
    assert str(runs[0] / "results.json") in found.text


def test_names_are_told_apart(tmp_path):
    folders = [train_run(tmp_path / name, seed=index) for index, name in enumerate(("x/run", "y/run", "z"))]
    (tmp_path / "z.json").write_text((RESULTS / "scale.json").read_text())
    names = [record.name for record in read_all([*folders, tmp_path / "z.json"])]
    assert names == ["x/run", "y/run", "z", "z.json"]


def test_verdicts_and_the_numbers_behind_them(tmp_path):
    results = load(RESULTS / "verify.json")
    found = report(tmp_path, RESULTS / "verify.json")
    rows = [(verdict, finding) for verdict in results["verdicts"] for finding in verdict["findings"]]
    table = found.tables[0]
    assert len(table) == 1 + len(rows)
    for cells, (verdict, finding) in zip(table[1:], rows, strict=True):
        assert cells[:3] == [f"{verdict['name']}: {finding['name']}", verdict["status"], cells[2]]
        assert float(cells[2]) == pytest.approx(finding["estimate"], rel=5e-3)
        ends = [math.nan if end == "none" else float(end) for end in cells[3].split(" to ")]
        np.testing.assert_allclose(ends, finding["interval"], rtol=5e-3, atol=1e-9)
    error = traces(found, "Kernel at the start against its limit")[0]
    assert error["x"] == results["kernel"]["lengths"]
    np.testing.assert_allclose(error["y"], stats.gmean(results["kernel"]["error"], axis=1), rtol=1e-5)
    ranges = [[min(seeds), max(seeds)] for seeds in results["kernel"]["error"]]
    np.testing.assert_allclose(error["customdata"], ranges, rtol=1e-5)
    # The fit over the rungs from 1,024 on, by another library.
    long = np.array(results["kernel"]["lengths"]) >= 1024
    middle = stats.gmean(np.array(results["kernel"]["error"])[long], axis=1)
    line = stats.linregress(np.log(np.array(results["kernel"]["lengths"])[long]), np.log(middle))
    fit = traces(found, "Kernel at the start against its limit")[1]
    np.testing.assert_allclose(fit["y"], np.exp(line.intercept) * np.array(fit["x"]) ** line.slope, rtol=1e-4)
    curves = {trace["name"]: trace for trace in traces(found, "Loss curves")}
    last = results["training"]["loss"][-1]
    np.testing.assert_allclose(curves["M = 65,536"]["y"], stats.gmean(last, axis=0), rtol=1e-5)
    steps = results["training"]["steps"][0]
    infinite = curves["M = infinity (kernel H*)"]
    assert infinite["x"] == steps
    np.testing.assert_allclose(infinite["y"], np.array(results["infinite"]["loss"])[steps], rtol=1e-5)
    assert sum(trace["visible"] for name, trace in curves.items() if name.startswith("M = ") and "inf" not in name) == 7


def test_tables_of_a_field_stand_side_by_side(tmp_path):
    paths = [TABLES / "vision" / f"{task}.json" for task in ("digits", "clothing")]
    found = report(tmp_path, *paths)
    for task, path in zip(("digits", "clothing"), paths, strict=True):
        cells = column(found.tables[0], task)
        for row in load(path)["rows"]:
            shares = [test["right"].count("1") / len(test["right"]) for test in row["tests"]]
            assert cells[row["method"]] == plus_minus(shares)
    accuracy = traces(found, "Accuracy")
    assert accuracy[0]["text"] == [row[0] for row in found.tables[0][1:]]
    assert "error_x" in accuracy[0]
    tried = traces(found, "Step sizes that were tried, digits")
    wanted = [row["tried"]["losses"] for row in load(paths[0])["rows"]]
    for trace, losses in zip(tried, wanted, strict=True):
        np.testing.assert_allclose(np.array(trace["y"], float), np.array(losses, float), rtol=1e-5)
    assert not [heading for heading in found.headings if "cifar" in heading]


def test_seeds_that_diverged_are_told(tmp_path):
    content = load(TABLES / "vision" / "digits.json")
    content["rows"][0]["tests"][1] = None
    (tmp_path / "digits.json").write_text(json.dumps(content))
    found = report(tmp_path, tmp_path / "digits.json")
    assert "head only on digits: 1 of 3 seeds diverged; they are in no mean." in found.text


def test_compressed_prompts(tmp_path):
    results = load(RESULTS / "compression.json")
    found = report(tmp_path, RESULTS / "compression.json")
    kept = column(found.tables[0], "kept, mean")
    for method in ("refined by effect", "elu"):
        values = [row["kept"] for row in results["rows"] if row["method"] == method]
        assert kept[method] == plus_minus(values)
    means, parts = traces(found, "Share of the prompt's gain that is kept")
    assert len(means["x"]) == len(results["config"]["methods"])
    assert sorted(parts["x"]) == sorted(row["kept"] for row in results["rows"])
    assert "Numbers below -0.5 are out of view" in found.text
    layers = {trace["name"]: trace["y"] for trace in traces(found, "Error by layer, mean over texts")}
    wanted = np.mean(
        [row["error_of_layers"] for row in results["rows"] if row["method"] == "refined by effect"], axis=0
    )
    np.testing.assert_allclose(layers["refined by effect"], wanted, rtol=1e-5)


def test_many_examples(tmp_path):
    tasks = {task["task"]: task["rows"] for task in load(RESULTS / "many_shot.json")["tasks"]}
    found = report(tmp_path, RESULTS / "many_shot.json")
    assert found.tables[0][0] == ["method", "sst2, kept", "sst2, right", "agnews, kept", "agnews, right", "svamp, kept"]
    said = {row["method"]: row["log_likelihood"] for row in tasks["svamp"]}
    kept = (said["kmeans"] - said["none"]) / (said["all"] - said["none"])
    assert column(found.tables[0], "svamp, kept")["kmeans"] == f"{kept:.3g}"
    right = next(row["right"] for row in tasks["agnews"] if row["method"] == "none")
    share = right.count("1") / len(right)
    assert column(found.tables[0], "agnews, right")["no examples"].startswith(f"{share:.3f} [")
    shown = {trace["name"]: trace for trace in traces(found, "Share of test rows that is right")}
    assert set(shown) == {"sst2", "agnews"}
    assert share in shown["agnews"]["x"]


def test_kernels_of_real_models_and_benchmarks(tmp_path):
    kernels, times = load(RESULTS / "real_kernels_dinov2.json"), load(BENCHMARKS / "kernels.json")
    found = report(tmp_path, RESULTS / "real_kernels_dinov2.json", BENCHMARKS / "kernels.json")
    distances = [row["distance"] for row in kernels["rows"] if row["M"] == 4]
    cell = next(row for row in found.tables[0] if row[0] == "4 tokens")[2]
    assert cell == f"{np.median(distances):.3g} ({min(distances):.3g} to {max(distances):.3g})"
    assert traces(found, "Movement of the kernel in training")[0]["x"] == [4, 16, 64, 256]
    shown = {trace["name"]: trace for trace in traces(found, "Time against prefix length M (tokens)")}
    rows = [row for row in times["rows"] if row["case"] == "finite_ntk"]
    assert shown["finite_ntk"]["x"] == [row["M"] for row in rows]
    assert shown["finite_ntk"]["y"] == [row["milliseconds"] for row in rows]


def test_every_committed_result_file_is_recognised(tmp_path):
    paths = [*RESULTS.rglob("*.json"), *BENCHMARKS.glob("*.json")]
    assert len(paths) > 15
    found = report(tmp_path, *paths)
    assert len(found.tables[-1]) == 1 + len(paths)
    assert {record.kind.name for record in read_all(paths)} == {kind.name for kind in KINDS[2:]}


# How files are damaged, and what is said.
DAMAGES = {
    "no test": ("train", lambda it: it.pop("test"), "expected results of one of: ntkprefix train; "),
    "text for a loss": (
        "train",
        lambda it: it["test"].update(loss="small"),
        "expected a number as test.loss, in a file of ntkprefix train, got 'small'",
    ),
    "no seed": ("train", lambda it: it["config"].pop("seed"), "expected the key 'seed' as config, in a file of"),
    "a list of settings": ("train", lambda it: it.update(config=[1]), "expected an object as config, in a file of"),
    "ragged": (
        "verify",
        lambda it: it["kernel"]["error"][2].pop(),
        "expected numbers [K, S] with K = 13 as kernel.error, in a file of ntkprefix verify, got something else,",
    ),
    "short": (
        "verify",
        lambda it: it["training"]["rate"].pop(),
        "expected numbers [M, s] with M = 15, s = 10 as training.rate, in a file of ntkprefix verify, got",
    ),
    "words": (
        "verify",
        lambda it: it["kernel"].update(error=[["x"]]),
        "expected numbers [K, S] with K = 13 as kernel.",
    ),
    "a seed too many": (
        "tables",
        lambda it: it["seeds"].append(3),
        "expected a list of 4 as rows[0].tests, in a file of experiments.tables, got a list of 3",
    ),
    "a number without end": (
        "train",
        lambda it: it["test"].update(loss=10**400),
        "expected a number as test.loss, in a file of ntkprefix train, got 1000",
    ),
    "no test rows": (
        "train",
        lambda it: it["test"].update(right=""),
        "expected digits 0 and 1 as test.right, in a file",
    ),
    "more than all": (
        "train",
        lambda it: it["test"].update(accuracy=7),
        "expected a number from 0 to 1 as test.accuracy, in a file of ntkprefix train, got 7",
    ),
    "rows half right": (
        "tables",
        lambda it: it["rows"][0]["tests"][1].update(right="0½"),
        "expected digits 0 and 1 as rows[0].tests[1].right, in a file of",
    ),
    "no rows": ("compression", lambda it: it.update(rows=None), "expected a list as rows, in a file of"),
    "a number as a method": (
        "compression",
        lambda it: it["rows"][1].update(method=1),
        "expected text as rows[1].method, in a file of experiments.compression, got 1",
    ),
    "true for a number": (
        "kernels",
        lambda it: it["rows"][0].update(parameters=True),
        "expected an integer as rows[0].",
    ),
}
FILES = {
    "verify": RESULTS / "verify.json",
    "tables": TABLES / "vision" / "digits.json",
    "compression": RESULTS / "compression.json",
    "kernels": RESULTS / "real_kernels_minilm.json",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_named_and_leaves_what_is_there(case, tmp_path, capsys):
    kind, damage, message = DAMAGES[case]
    path = tmp_path / "file.json"
    content = load(train_run(tmp_path / "run") / "results.json" if kind == "train" else FILES[kind])
    damage(content)
    path.write_text(json.dumps(content))
    out = tmp_path / "page.html"
    out.write_text("before")
    assert main(["report", str(RESULTS / "scale.json"), str(path), "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"ntkprefix report: {path}: ")
    assert message in told
    assert told.count("\n") == 1
    assert out.read_text() == "before"
    assert not list(tmp_path.glob(".page*"))


def unfinished(folder):
    (train_run(folder / "run") / "results.json").unlink()
    return folder / "run"


def begun(folder):
    (folder / "run").mkdir()
    (folder / "run" / "settings.json").write_text("{}")
    return folder / "run"


def of_runs(folder):
    for index in range(7):
        train_run(folder / "all" / f"run{index}")
    return folder / "all"


def without_metrics(folder):
    (train_run(folder / "run") / "metrics.jsonl").unlink()
    return folder / "run"


def with_text(name, text):
    def make(folder):
        run = train_run(folder / "run")
        (run / name).write_bytes(text)
        return run

    return make


PLACES = {
    "nothing": (lambda folder: folder / "absent", "absent: expected a run folder or a result file here, found none."),
    "empty": (lambda folder: folder, "expected a run folder, with results.json in it, found none."),
    "unfinished": (unfinished, "The run has not finished: the command that began it goes on with it."),
    "begun": (begun, "The run has not finished: the command that began it goes on with it."),
    "of runs": (of_runs, "run3, "),
    "more runs": (of_runs, " and 2 more."),
    "no metrics": (without_metrics, "metrics.jsonl: expected the steps of the run here, beside results.json"),
    "cut": (with_text("results.json", b'{"config": '), "expected a result file of ntkprefix, which is a JSON object ("),
    "no JSON": (with_text("results.json", b"\xff\xfe\x00"), "expected a result file of ntkprefix"),
    "a list": (with_text("results.json", b"[1]"), "which is a JSON object (found other JSON)"),
    "deep": (with_text("results.json", b"[" * 100_000), "expected a result file of ntkprefix"),
    "other": (with_text("results.json", b'{"a": 1}'), "Got an object with the keys 'a'."),
    "broken line": (with_text("metrics.jsonl", b'{"step": 1}\n{\n'), "metrics.jsonl, line 2: expected JSON"),
    "no step": (with_text("metrics.jsonl", b'{"loss": 1}\n'), "metrics.jsonl: expected the key 'step' as [0]"),
    "null loss": (with_text("metrics.jsonl", b'{"step": 1, "loss": null}\n'), "expected a number as [0].loss"),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_no_run_is_told(case, tmp_path, capsys):
    make, message = PLACES[case]
    assert main(["report", str(make(tmp_path)), "--out", str(tmp_path / "page.html")]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_hostile_runs_do_not_break_the_page(tmp_path):
    """Names that are markup, templates or endless; numbers that are none, or too large."""
    script = "</script><script>alert(1)</script>"
    numbers = [math.nan, math.inf, -math.inf, 1e308, -1e308, 0, -1, 1e-320]
    names = [script, "%{x}${y}{{ z }}", "a" * 5000, "<b>'\"&amp;", ""]
    folders = []
    for index, name in enumerate(names):
        run = train_run(tmp_path / f"r{index}", adapter=name, model=name, losses=numbers, validation=numbers[:3])
        content = load(run / "results.json")
        content["test"].update(loss=numbers[index], accuracy=[1e-320, math.nan, 0, 1, -0.0][index])
        content["data"] = name
        content["environment"] |= {"commit": name, "packages": name, "finished": name}
        (run / "results.json").write_text(json.dumps(content))
        folders.append(run)
    found = report(tmp_path, *folders)
    assert [tag for tag, _ in found.tags].count("script") == 2 + 3 * len(names)
    assert f"{script} on {script}" in found.headings
    assert max(map(len, found.headings)) < 200
    for figure in found.figures:
        drawn = [value for trace in figure["data"] for value in trace["y"] if value is not None]
        assert all(abs(value) <= 1e100 for value in drawn)


def test_documented_commands_are_understood():
    lines = re.findall(
        r"^ntkprefix report (.*)$", (RESULTS.parents[1] / "docs" / "report.md").read_text(), re.MULTILINE
    )
    assert len(lines) == 3
    for line in lines:
        assert tyro.cli(Config, args=shlex.split(line)).runs


def test_options(tmp_path, capsys):
    run = str(train_run(tmp_path / "run"))
    assert main(["report", run, "--out", str(tmp_path / "a.html"), "--title", "Mine"]) == 0
    assert "Look at" in capsys.readouterr().out
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<title>Mine</title>" in text
    assert ENVIRONMENT["commit"] in text
    bad = {"expected a file that ends in .html": [run, "--out", "results.json"], "files, got none": []}
    for message, options in bad.items():
        assert main(["report", *options]) == 2
        assert message in capsys.readouterr().err
