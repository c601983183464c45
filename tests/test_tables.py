"""Tables: the same budget for every method, choices by held-back loss, pieces that are not measured twice."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tables
from experiments.fields import FIELDS, OURS, SAME_SIZE
from experiments.tables import TablesConfig, command, main
from ntkprefix.adapters import spelt
from ntkprefix.commands.jobs import Start
from ntkprefix.models import ViTConfig
from ntkprefix.runs import read_json


class FakeJob:
    """Where a weight ends after training tells its step size: the loss is its distance from that of the best."""

    best = 0.1
    numbers_per_token = 4
    about = "fake"
    frozen = None
    train = (np.ones((32, 1), np.float32),)

    def __init__(self, log):
        self.log = log

    def divided(self, config):
        self.log.append((config.adapter, config.learning_rate, config.patience, config.seed))
        return self

    def start(self, config, _):
        return Start({"adapter": {"w": jnp.zeros(3)}, "head": {"b": jnp.full((), float(config.seed))}}, None)

    def loss(self, params, _, x):
        return jnp.sum(params["adapter"]["w"]) + 0 * jnp.sum(x) + 0 * params["head"]["b"]

    def factors(self, _, of_head):
        return {"adapter": 1.0, "head": of_head}

    project = None

    def validate(self, params):
        reached = -float(params["adapter"]["w"][0])
        return float(abs(np.log(max(reached, 1e-9) / self.reach(self.best))))

    @staticmethod
    def reach(step_size):
        """What Adam walks down an even slope in the steps of three passes."""
        return tables.Config(learning_rate=step_size).training().step_sizes(32).sum()

    def test(self, params, _):
        return {"accuracy": float(params["head"]["b"]) / 10, "right": "10"}


@pytest.fixture
def log(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(tables, "job_of", lambda *_: FakeJob(made))
    monkeypatch.setattr(tables, "TABLES", tmp_path / "results")
    return made


def config(tmp_path, **options):
    options = {"tasks": ("clothing",), "methods": ("NTK-Attention",), "data_root": tmp_path, **options}
    return TablesConfig(field="vision", out=tmp_path / "pieces", **options)


def test_the_smallest_held_back_loss_decides_and_every_seed_is_tested(log, tmp_path):
    row = main(config(tmp_path))["clothing"]["rows"][0]
    assert row["tried"]["step_sizes"] == pytest.approx([1 / 30, 0.1, 0.3])
    assert int(np.argmin(row["tried"]["losses"])) == 1
    assert row["step_size"] == pytest.approx(0.1)
    assert row["tests"] == [{"accuracy": seed / 10, "right": "10"} for seed in range(5)]
    sizes = ("adapter_parameters", "head_parameters", "bytes", "break_even_tokens")
    assert [row[name] for name in sizes] == [3, 1, 12, 0.8]
    assert row["steps"] == 6
    # held-back rows for the choice alone, by seeds of its own
    assert [entry[2:] for entry in log] == [(1, 100), (0, 0)]
    assert not set(row["tried"]["seeds"]) & set(range(5))


@pytest.mark.parametrize(
    ("best", "sizes", "chosen"),
    [(0.01, [1 / 270, 1 / 90, 1 / 30, 0.1, 0.3], 1), (1e-5, [1 / 270, 1 / 90, 1 / 30, 0.1, 0.3], 0)],
    ids=["followed", "no further than twice"],
)
def test_a_best_step_size_at_an_end_is_followed(best, sizes, chosen, log, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeJob, "best", best)
    row = main(config(tmp_path))["clothing"]["rows"][0]
    assert row["tried"]["step_sizes"] == pytest.approx(sizes)
    assert row["step_size"] == pytest.approx(sizes[chosen])


def test_a_best_step_size_at_the_upper_end_is_followed_until_it_is_passed(log, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeJob, "best", 0.35)
    row = main(config(tmp_path))["clothing"]["rows"][0]
    assert row["tried"]["step_sizes"] == pytest.approx([1 / 30, 0.1, 0.3, 0.9])
    assert row["step_size"] == pytest.approx(0.3)


def test_of_step_sizes_that_do_equally_well_the_smallest_is_taken(log, tmp_path, monkeypatch):
    losses = iter(np.repeat([0.4049, 0.4044, 0.4043, 0.4016, 0.4486], 3))
    monkeypatch.setattr(FakeJob, "validate", lambda *_: next(losses))
    row = main(config(tmp_path))["clothing"]["rows"][0]
    assert row["step_size"] == pytest.approx(1 / 30)
    losses = iter(np.repeat([0.41, 0.4044, 0.4049], 3))
    row = main(config(tmp_path / "other"))["clothing"]["rows"][0]
    assert row["step_size"] == pytest.approx(0.1)


def test_a_step_size_with_which_one_seed_fails_is_not_taken(log, tmp_path, monkeypatch):
    losses = iter([0.5, 0.5, 0.5, 0.4, 0.4, 0.9, 0.8, 0.8, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7])
    monkeypatch.setattr(FakeJob, "validate", lambda *_: next(losses))
    row = main(config(tmp_path))["clothing"]["rows"][0]
    assert row["tried"]["losses"][-3:] == [0.5, pytest.approx(1.7 / 3, abs=1e-5), 0.8]
    assert row["step_size"] == pytest.approx(1 / 30)


def test_other_methods_of_a_table_keep_their_rows_with_what_made_them(log, tmp_path, monkeypatch):
    on_gpu = {"commit": "first", "platform": "gpu", "device": "NVIDIA H200", "processor": "Xeon", "cores": 16}
    monkeypatch.setattr(tables, "environment", lambda: on_gpu)
    main(config(tmp_path, methods=(OURS, "LoRA, r = 8")))
    on_cpu = {"commit": "second", "platform": "cpu", "device": "cpu", "processor": "EPYC", "cores": 2}
    monkeypatch.setattr(tables, "environment", lambda: on_cpu)
    rows = main(config(tmp_path, methods=("head only", OURS)))["clothing"]["rows"]
    assert [(row["method"], row["commit"], row["machine"]) for row in rows] == [
        ("head only", "second", "EPYC, 2 cores"),
        ("LoRA, r = 8", "first", "NVIDIA H200"),
        (OURS, "second", "EPYC, 2 cores"),
    ]
    # of other settings none stays
    rows = main(config(tmp_path, methods=(OURS,), seeds=(3, 4, 5)))["clothing"]["rows"]
    assert [row["method"] for row in rows] == [OURS]


def test_rows_that_other_seeds_chose_do_not_stay_beside_new_ones(log, tmp_path, monkeypatch):
    main(config(tmp_path, methods=(OURS, "LoRA, r = 8")))
    monkeypatch.setattr(tables, "_CHOOSING", (100, 101))
    assert [row["method"] for row in main(config(tmp_path, methods=(OURS,)))["clothing"]["rows"]] == [OURS]


def test_one_job_serves_a_row_and_none_what_is_measured_already(log, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(tables, "job_of", lambda *_: made.append(FakeJob(log)) or made[-1])
    monkeypatch.setattr(FakeJob, "best", 1e-5)  # followed twice
    main(config(tmp_path))
    assert len(made) == 1
    main(config(tmp_path))
    assert len(made) == 1


def test_what_is_measured_is_not_measured_again(log, tmp_path):
    first = main(config(tmp_path))["clothing"]
    jobs = len(log)
    again = main(config(tmp_path, methods=(OURS, "head only")))["clothing"]
    assert len(log) == jobs + 2 + 2  # those of linear probing, whose step sizes are followed twice
    assert again["rows"][1] == first["rows"][0]
    assert read_json(tmp_path / "results" / "vision" / "clothing.json")["rows"] == again["rows"]


def test_rows_and_epochs_of_all_tasks_can_be_set(log, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tables, "job_of", lambda config, _: seen.append(config) or FakeJob(log))
    main(config(tmp_path, train_rows=64, test_rows=32, epochs=1))
    assert {(each.train_rows, each.test_rows, each.epochs) for each in seen} == {(64, 32, 1)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_settings_that_can_be_made(name, tmp_path):
    field = FIELDS[name]
    for task in field.tasks.values():
        for method in field.methods:
            tables.Config(
                model=task.model, adapter=field.adapter(method), data_dir=tmp_path / task.folder, **task.options
            )


def test_a_states_size_is_that_of_a_state():
    """Of DINOv2, whose sizes are known without its weights."""
    block, layers = ViTConfig().block, ViTConfig().layers
    width = block.head_width
    state = layers * block.heads * (width * (width + 1) + width + 1)
    tokens = spelt(FIELDS["vision"].adapter(SAME_SIZE)).length
    lora = spelt(FIELDS["vision"].adapter("LoRA, a state's size"))
    assert tokens * layers * block.heads * 2 * width == pytest.approx(state, rel=0.04)
    assert layers * len(lora.targets) * 2 * block.width * lora.rank == pytest.approx(state, rel=0.04)
    assert lora.alpha == 2 * lora.rank


def test_data_need_a_folder(capsys):
    assert command(["vision", "--tasks", "clothing"]) == 2
    assert "tables: expected --data-root, the folder of the data sets, got none" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "message"), [("--tasks", "unknown task 'x'"), ("--methods", "unknown method 'x'")])
def test_unknown_names_are_refused(option, message, tmp_path, capsys):
    assert command(["vision", "--data-root", str(tmp_path), option, "x"]) == 2
    assert message in capsys.readouterr().err
