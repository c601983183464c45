"""Benchmarks run at small sizes, with and without peers, and compare what they say they compare."""

import sys

import numpy as np
import pytest

from benchmarks import attention, block_sizes, peers
from benchmarks.attention import AttentionConfig
from ntkprefix.kernels.blocks import Blocks, blocks_for
from ntkprefix.runs import read_json

SMALL = AttentionConfig(queries=(16,), heads=2, width=8, tokens=(4, 2**23), clouds=2, rounds=1)


@pytest.fixture
def results(tmp_path, monkeypatch):
    for module in (attention, block_sizes):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.timing._LEAST_SECONDS", 0.0)
    return tmp_path


def test_attention_is_timed_without_pytorch(results):
    written = attention.main(SMALL)
    assert read_json(results / "attention.json")["rows"] == written["rows"]
    names = ["no prefix", "a state", "a measure of 2 clouds", "4 tokens", "jax.nn, no prefix"]
    assert [row["case"] for row in written["rows"]] == 2 * names  # prefixes that take minutes are left out
    assert [row["gradient"] for row in written["rows"]] == 5 * [False] + 5 * [True]
    assert all(row["relative_time"][1] > 0 and row["working_bytes"] > 0 for row in written["rows"])
    assert written["config"]["torch"] is None


def test_pytorch_s_cases_run_in_their_own_process(results, tmp_path, monkeypatch):
    """A process that answers as PyTorch's does stands in for it."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import sys\nprint('9.9', flush=True)\nfor line in sys.stdin:\n    print(line.count('{'), flush=True)"
    )
    monkeypatch.setattr(peers, "WORKER", worker)
    written = attention.main(AttentionConfig(**{**vars(SMALL), "torch": sys.executable}))
    assert written["config"]["torch"] == "9.9"
    assert [row["case"] for row in written["rows"]][5:7] == [attention.FUSED, attention.FORMULA]


def test_an_environment_without_pytorch_is_an_error():
    with pytest.raises(OSError, match=r"torch_attention.py: expected an answer"):
        peers.TorchAttention(sys.executable, threads=1)


def test_all_cases_without_a_prefix_give_the_same(relaxed):
    config = AttentionConfig(queries=(300,), heads=2, width=8, tokens=(4,))
    found = {name: function(prefix, *inputs) for name, function, prefix, inputs in attention.cases_of(config, 300)}
    np.testing.assert_allclose(found[attention.OURS], found[attention.STOCK], atol=1e-5)
    assert np.abs(found["4 tokens"] - found[attention.OURS]).max() > 1e-3


def test_cuts_are_timed_against_the_one_that_is_chosen(results, monkeypatch):
    shape = block_sizes.Shape(1, 32, 48, 4, 2, True)
    monkeypatch.setattr(block_sizes, "SHAPES", (shape, shape._replace(queries=64)))
    row = block_sizes.main(block_sizes.BlockSizesConfig(rounds=1, longest=32))["rows"]
    assert len(row) == 1
    assert row[0]["shape"] == shape._asdict()
    assert row[0]["output"][row[0]["chosen"]]["relative_time"] == 1
    assert "all logits" in row[0]["gradient"]


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((1, 512, 512, 9, 9), Blocks(512, 512, apart=False)),
        ((8, 512, 512, 6, 6), Blocks(512, 512, apart=True)),
        ((1, 4096, 4096, 9, 9), Blocks(1024, 1024, apart=True)),
        ((1, 4096, 4096, 9, 3), Blocks(512, 512, apart=True)),
        ((1, 4096, 4096, 32, 4), Blocks(128, 512, apart=True)),
        ((1, 4096, 4096, 64, 1), Blocks(64, 512, apart=True)),
    ],
)
def test_blocks_by_shape(shape, blocks):
    """A group's queries make one matrix, so larger groups take fewer rows of each head."""
    assert blocks_for("cpu", *shape) == blocks


def test_blocks_stay_as_they_are_where_nothing_was_measured():
    assert blocks_for("gpu", 1, 4096, 4096, 9, 3) == Blocks(512, 512, apart=False)
