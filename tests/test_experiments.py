"""The experiments' own arithmetic, and that documents say what the result files say."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx
from models.tiny_vit import TINY

from benchmarks import RESULTS as BENCHMARKS
from benchmarks import prefix_cost
from experiments import RESULTS, documents, notebooks, summary, tuning, vision
from experiments.plots import smooth
from ntkprefix.adapters import HeadAdapter, TokenAdapter
from ntkprefix.images import ImageData, load_images
from ntkprefix.models import ViT
from ntkprefix.runs import read_json
from ntkprefix.train import TrainConfig


def a_run(method, seed, accuracy):
    sizes = {"adapter_parameters": 5, "head_parameters": 2, "steps": 10, "start": "zero", "step_size": 0.1}
    return {"method": method, "seed": seed, "accuracy": accuracy, "seconds": 3.0, "seconds_per_step": 0.3, **sizes}


def test_summary_of_one_seed_uses_the_images_and_of_more_the_seeds():
    one = summary.by_method({"data": {"test": 100}, "runs": [a_run("a", 0, 0.9)]})[0]
    assert one["accuracy"] == pytest.approx(0.9)
    np.testing.assert_allclose(one["interval"], [0.8256, 0.9448], atol=1e-4)  # Wilson, from a published table
    three = summary.by_method(
        {"data": {"test": 100}, "runs": [a_run("a", i, x) for i, x in enumerate((0.8, 0.9, 1.0))]}
    )
    np.testing.assert_allclose(
        three[0]["interval"], [0.9 - 4.3027 * 0.1 / 3**0.5, 0.9 + 4.3027 * 0.1 / 3**0.5], atol=1e-4
    )
    assert [row["method"] for row in three] == ["a"]


def test_methods_are_compared_in_pairs():
    def run(method, seed, right):
        return {"method": method, "seed": seed, "right": right}

    one = {"runs": [run("a", 0, "1101"), run("b", 0, "1001"), run("a", 1, "1111")]}
    found = summary.difference(one, "a", "b")  # seed 1 has no pair
    deviation = np.std([0, 1, 0, 0], ddof=1) / 2
    np.testing.assert_allclose(found, [0.25, 0.25 - 3.1824 * deviation, 0.25 + 3.1824 * deviation], atol=1e-4)
    bits = {"a": ("11", "11", "10"), "b": ("10", "11", "00")}
    runs = [run(method, seed, bits[method][seed]) for method in bits for seed in range(3)]
    half = 4.3027 * np.std([0.5, 0.0, 0.5], ddof=1) / 3**0.5
    np.testing.assert_allclose(
        summary.difference({"runs": runs}, "a", "b"), [1 / 3, 1 / 3 - half, 1 / 3 + half], atol=1e-4
    )


def test_runs_that_learnt_nothing_are_named():
    runs = [a_run("a", 0, 0.1) | {"losses": [2.4] * 30}, a_run("b", 0, 0.9) | {"losses": [2.4] * 10 + [0.1] * 20}]
    told = summary.guesses({"data": {"classes": list("0123456789")}, "runs": runs})
    assert told == [
        "a, seed 0, learnt nothing at its step size 0.1: its training loss ends at 2.40, that of a guess is 2.30."
    ]


def test_break_even_of_a_head_of_64():
    assert summary.break_even(64, 64, 64) == (64 * 64 + 64 + 64 + 1) / 128


def test_smoothing_keeps_length_and_constants():
    np.testing.assert_allclose(smooth(np.full(50, 3.0)), 3.0)
    ramp = smooth(np.arange(48.0))
    assert len(ramp) == 48
    np.testing.assert_allclose(ramp[-1], np.mean([44, 45, 46, 47]))


def test_held_back_images_are_training_images_and_disjoint():
    data = load_images("digits", size=14)
    split = tuning.held_back(data, 200)
    assert len(split.x_train) == 800
    parts = np.concatenate([split.x_train, split.x_test]).reshape(1000, -1)
    whole = data.x_train.reshape(1000, -1)
    np.testing.assert_array_equal(parts[np.lexsort(parts.T)], whole[np.lexsort(whole.T)])


def test_parts_of_sorted_data_have_every_class_in_proportion():
    # as a folder is read: class by class
    labels = np.repeat(np.arange(4, dtype=np.int32), [40, 40, 80, 240])
    pixels = np.broadcast_to(labels[:, None, None, None], (400, 1, 1, 3)).astype(np.uint8)
    data = ImageData(
        x_train=pixels, y_train=labels, x_test=pixels, y_test=labels, class_names=tuple("abcd"), name="", notes=""
    )
    chosen = vision.subset(data, vision.VisionConfig(train_images=200, test_images=100))
    np.testing.assert_array_equal(np.bincount(chosen.y_train), [20, 20, 40, 120])
    np.testing.assert_array_equal(np.bincount(chosen.y_test), [10, 10, 20, 60])
    np.testing.assert_array_equal(chosen.x_train[:, 0, 0, 0], chosen.y_train)  # images and labels moved together
    assert (np.bincount(chosen.y_train[:64], minlength=4) > 0).all()  # the calibration images
    split = tuning.held_back(chosen, 50)
    np.testing.assert_array_equal(np.bincount(split.y_test), [5, 5, 10, 30])
    np.testing.assert_array_equal(split.x_train[:, 0, 0, 0], split.y_train)


@pytest.mark.parametrize("adapter", [HeadAdapter(), TokenAdapter(length=2)], ids=lambda kind: type(kind).__name__)
def test_accuracy_is_the_share_of_held_out_images_that_are_right(adapter):
    # Black and white images are learnt at once; a quarter of the held-out labels are made wrong.
    labels = np.arange(32, dtype=np.int32) % 2
    pixels = np.broadcast_to(255 * labels[:, None, None, None], (32, 8, 8, 3)).astype(np.uint8)
    wrong = np.where(np.arange(32) < 8, 1 - labels, labels).astype(np.int32)
    data = ImageData(
        x_train=pixels, y_train=labels, x_test=pixels, y_test=wrong, class_names=("black", "white"), name="", notes=""
    )
    model = nnx.jit(lambda: ViT(TINY, rngs=nnx.Rngs(0)))()
    config = TrainConfig(epochs=10, batch_size=8, learning_rate=0.03)
    seen = []
    found = vision.fit(model, adapter, data, config, head=config, watch=lambda *told: seen.append(told))
    assert found["accuracy"] == 0.75
    assert found["steps"] == len(found["losses"]) == 40
    # A quarter is wrong by as much as the others are right.
    assert found["held_out_loss"] > 0.25
    if isinstance(adapter, TokenAdapter):
        assert found["losses"][0] < 0.6 < np.log(2)  # the head is trained before the adapter joins it
    stages = [stage.split()[0] for stage, *_ in seen]
    assert list(dict.fromkeys(stages)) == [
        "features",
        "head",
        *(["loss"] if isinstance(adapter, TokenAdapter) else []),
        "testing",
    ]
    assert all(done <= total for _, done, total in seen)


def test_subset_is_the_same_every_time_and_no_larger_than_asked():
    data = load_images("digits", size=14)
    config = vision.VisionConfig(train_images=50, test_images=10_000)
    first, second = (vision.subset(data, config) for _ in range(2))
    np.testing.assert_array_equal(first.x_train, second.x_train)
    assert (len(first.x_train), len(first.x_test)) == (50, 797)


def test_what_was_chosen_is_the_best_of_what_was_tried():
    results = read_json(RESULTS / "tuning.json")
    assert set(results["chosen"]) == set(vision.METHODS)
    for method, chosen in results["chosen"].items():
        tried = {(run["start"], run["step_size"]): run for run in results["runs"] if run["method"] == method}
        assert set(tried) == set(itertools.product(vision.METHODS[method], results["config"]["step_sizes"]))
        best = min(run["loss"] for run in tried.values() if run["loss"] is not None)
        assert tried[chosen["start"], chosen["step_size"]]["loss"] == best


@pytest.mark.parametrize("document", documents.TABLES, ids=lambda path: path.name)
def test_documents_say_what_the_result_files_say(document):
    assert documents.render(document) == document.read_text(encoding="utf-8")


def test_a_document_without_markers_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "page.md").write_text("# nothing")
    monkeypatch.setitem(documents.TABLES, tmp_path / "page.md", (documents.cost,))
    with pytest.raises(ValueError, match=r"page.md: expected the markers of the table 'cost'"):
        documents.render(tmp_path / "page.md")


def test_committed_costs_are_the_compilers():
    results = read_json(BENCHMARKS / "prefix_cost.json")
    if results["environment"]["packages"]["jaxlib"] != jax.lib.__version__:
        pytest.skip("counted by another version of the compiler")
    config = prefix_cost.CostConfig(**{**results["config"], "lengths": (16, 256)})
    inputs, cases = prefix_cost.make_cases(config)
    counted = {(kind, M): prefix_cost.compile_case(prefix, inputs)[1] for kind, M, prefix in cases}
    committed = {(row["prefix"], row["M"]): row for row in results["rows"]}
    for case, found in counted.items():
        assert found == {name: committed[case][name] for name in found}, case


SMALL = {
    "01_infinite_prefix.ipynb": {"WIDTH": 4, "LENGTHS": [16, 64, 256], "DEGREES": [0, 2], "SEEDS": 2},
    "02_convergence.ipynb": {"N": 4, "D": 4, "LENGTHS": [64, 256], "TRAINED": [16, 64], "SEEDS": 2, "STEPS": 20},
    "03_real_models.ipynb": {"ROWS": 2, "CLASSES": 2, "POOL": 8, "HEAD_ROWS": 16, "LENGTHS": [2, 8], "STEPS": 2},
}


@pytest.mark.parametrize("name", SMALL)
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
