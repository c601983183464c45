"""Tables: the same budget for every method, choices by held-back loss, pieces that are not measured twice."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import tables
from experiments.tables import FIELDS, METHODS, TablesConfig, command, main

BEST = 0.03  # of three step sizes, the one that the fake task is best trained with


class FakeJob:
    """Where a weight ends after training tells its step size: the loss is its distance from that of the best."""

    numbers_per_token = 4
    about = "fake"
    frozen = None
    train = (np.ones((32, 1), np.float32),)

    def __init__(self, config, log):
        self.log = log
        self.log.append((config.adapter, config.learning_rate, config.patience, config.seed))

    def start(self, config, _):
        return {"adapter": {"w": jnp.zeros(3)}, "head": {"b": jnp.full((), float(config.seed))}}

    def loss(self, params, _, x):
        return jnp.sum(params["adapter"]["w"]) + 0 * jnp.sum(x) + 0 * params["head"]["b"]

    def factors(self, _, of_head):
        return {"adapter": 1.0, "head": of_head}

    project = None

    def validate(self, params):
        reached = -float(params["adapter"]["w"][0])
        return float(abs(np.log(max(reached, 1e-9) / self.reach(BEST))))

    @staticmethod
    def reach(step_size):
        """What Adam walks down an even slope in the steps of three passes."""
        return tables.Config(learning_rate=step_size).training().step_sizes(32).sum()

    def test(self, params, _):
        return {"accuracy": float(params["head"]["b"]) / 10}


@pytest.fixture
def log(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(tables, "job_of", lambda config, _: FakeJob(config, made))
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    return made


def config(tmp_path, **options):
    options = {"tasks": ("clothing",), "methods": ("NTK-Attention",), "data_root": tmp_path, **options}
    return TablesConfig(field="vision", out=tmp_path / "pieces", **options)


def test_the_smallest_held_back_loss_decides_and_every_seed_is_tested(log, tmp_path):
    row = main(config(tmp_path))["rows"][0]
    assert row["tried"]["step_sizes"] == pytest.approx([0.01, 0.03, 0.09])
    assert int(np.argmin(row["tried"]["losses"])) == 1
    assert row["step_size"] == pytest.approx(0.03)
    assert row["tests"] == [{"accuracy": 0.0}, {"accuracy": 0.1}, {"accuracy": 0.2}]
    assert (row["adapter_parameters"], row["head_parameters"], row["bytes"], row["break_even_tokens"]) == (
        3,
        1,
        12,
        0.8,
    )
    assert row["steps"] == 6
    # held-back rows for the choice alone
    assert [entry[2] for entry in log] == [1, 0]


def test_what_is_measured_is_not_measured_again(log, tmp_path):
    first = main(config(tmp_path))
    jobs = len(log)
    again = main(config(tmp_path, methods=("NTK-Attention", "head only")))
    assert len(log) == jobs + 2  # those of linear probing
    assert again["rows"][0] == first["rows"][0]
    assert (tmp_path / "results" / "tables_vision.json").exists()


def test_rows_and_epochs_of_all_tasks_can_be_set(log, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(tables, "job_of", lambda config, _: seen.append(config) or FakeJob(config, log))
    main(config(tmp_path, train_rows=64, test_rows=32, epochs=1))
    assert {(each.train_rows, each.test_rows, each.epochs) for each in seen} == {(64, 32, 1)}


def test_every_field_has_settings_that_can_be_made(tmp_path):
    for field in FIELDS.values():
        for task in field.values():
            tables.Config(model=task.model, data_dir=tmp_path / task.folder, **task.options)


def test_every_method_tries_three_step_sizes_and_can_be_spelt():
    for method in METHODS.values():
        tables.spelt(method.adapter)
    assert SimpleNamespace(**FIELDS).vision["cifar100"].options["train_rows"] == 1000


@pytest.mark.parametrize(("option", "message"), [("--tasks", "unknown task 'x'"), ("--methods", "unknown method 'x'")])
def test_unknown_names_are_refused(option, message, tmp_path, capsys):
    assert command(["vision", "--data-root", str(tmp_path), option, "x"]) == 2
    assert message in capsys.readouterr().err
