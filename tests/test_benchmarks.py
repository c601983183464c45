"""Benchmarks run at small sizes, with and without peers, and compare what they say they compare."""

import dataclasses
import os
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from tiny_classifier import IMAGES, LABELS, initial, tiny_model

from benchmarks import attention, block_sizes, gpu, kernels, models, peers, scaling, steps
from benchmarks.attention import AttentionConfig
from benchmarks.pytorch import memory
from benchmarks.timing import in_rounds
from ntkprefix.adapters import LoraAdapter
from ntkprefix.kernels.blocks import Blocks, blocks_for
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.runs import read_json

SMALL = AttentionConfig(queries=(16,), heads=2, width=8, tokens=(4, 2**24), clouds=2, rounds=1)


@pytest.fixture
def results(tmp_path, monkeypatch):
    for module in (attention, block_sizes, gpu, kernels, models, scaling):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.timing._LEAST_SECONDS", 0.0)
    return tmp_path


def test_every_case_has_its_turn_in_every_round_and_another_place(monkeypatch):
    monkeypatch.setattr("benchmarks.timing._LEAST_SECONDS", 0.0)
    order = []
    cases = [partial(order.append, number) for number in range(4)]
    slow = [*cases[:3], lambda: (cases[3](), time.sleep(0.02))]
    seconds = in_rounds(slow, 5)
    rounds = np.reshape(order, (6, 4, 2))  # the first warms up, and all run once more before they are timed
    assert (rounds[..., 0] == rounds[..., 1]).all()
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds[..., 0].tolist())
    assert len({tuple(each) for each in rounds[..., 0].tolist()}) > 3
    assert (seconds[3] >= 0.02).all()
    assert (seconds[:3] < 0.02).all()


def test_attention_is_timed_without_pytorch(results):
    written = attention.main(SMALL)
    assert read_json(results / "attention.json")["rows"] == written["rows"]
    names = ["no prefix", "a state", "a measure of 2 clouds", "4 tokens", "jax.nn, no prefix"]
    assert [row["case"] for row in written["rows"]] == 2 * names  # prefixes that take minutes are left out
    assert [row["gradient"] for row in written["rows"]] == 5 * [False] + 5 * [True]
    assert all(row["relative_time"][1] > 0 and row["working_bytes"] > 0 for row in written["rows"])
    assert written["config"]["torch"] is None


def test_the_gpu_s_cases_are_held_against_the_first(results, monkeypatch):
    """Attention by other means stands in for a GPU's; how fast a product of matrices is, too."""
    config = gpu.GpuConfig(queries=(128,), all_at=128, tokens=256, width=(64,), model_width=64, prefix_tokens=3)
    cases = list(gpu.cases_of(config, 128, 64))
    assert cases[0][0] == gpu.CUDNN
    assert {inputs[0].shape for *_, inputs in cases} == {(2, 128, 1, 64)}
    assert [name for name, *_ in cases if "tokens" in name] == ["cudnn, 3 tokens"]
    runs_here = [case for case in cases if case[0].startswith("xla")]
    monkeypatch.setattr(gpu, "cases_of", lambda *_: iter(runs_here))
    monkeypatch.setattr(gpu, "gpu_limits", lambda: {"operations": 1e9, "bytes": 1e9})
    written = gpu.main(dataclasses.replace(config, rounds=1, calls=1))
    assert read_json(results / "gpu.json")["rows"] == written["rows"]
    assert [(row["case"], row["gradient"]) for row in written["rows"]] == [
        (name, gradient) for gradient in (False, True) for name, *_ in runs_here
    ]
    for row in written["rows"]:
        # Half of 2 x 128 x 128 logits, each a product and a sum for 64 numbers, in 2 or 7 matrix products.
        operations = (7 if row["gradient"] else 2) * 2 * 64 * 2 * 128**2 / 2
        assert row["of_matmul_rate"] == pytest.approx(operations / row["milliseconds"] / 1e6, rel=0.01)
        assert row["working_bytes"] > 0


def test_pytorch_s_cases_run_in_their_own_process(results, tmp_path, monkeypatch):
    """A process that answers as PyTorch's does stands in for it."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        f"import sys; sys.path.insert(0, {str(peers.ATTENTION.parent)!r})\n"
        "from worker import serve\n"
        "expected = ['case', 'gradient', 'heads', 'queries', 'width']\n"
        "serve('9.9', lambda **asked: lambda: sorted(asked) == expected or 1 / 0)"
    )
    monkeypatch.setattr(attention, "ATTENTION", worker)
    written = attention.main(AttentionConfig(**{**vars(SMALL), "torch": sys.executable}))
    assert written["config"]["torch"] == "9.9"
    assert [row["case"] for row in written["rows"]][5:7] == [attention.FUSED, attention.FORMULA]
    assert {"peak_bytes", "working_bytes"} <= set(written["rows"][5])


@pytest.mark.parametrize("program", [peers.ATTENTION, peers.MODELS])
def test_an_environment_without_pytorch_is_an_error(program):
    with pytest.raises(OSError, match=rf"{program.name}: expected an answer"):
        peers.Peer(sys.executable, program, threads=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a run")
def test_peak_memory_is_what_a_run_takes_and_gives_back():
    taken = 2**26
    for _ in range(2):
        assert 0.99 * taken < memory.peak_bytes(lambda: np.ones(taken // 8).sum()) < 1.2 * taken
    assert memory.peak_bytes(lambda: None) < 0.1 * taken


def test_kernels_are_timed_against_those_of_neural_tangents(results, relaxed):
    written = kernels.main(kernels.KernelsConfig(n=3, d=2, lengths=(8, 16), most=8, rounds=1))
    assert read_json(results / "kernels.json")["rows"] == written["rows"]
    assert [(row["M"], row["case"]) for row in written["rows"]] == [
        (8, kernels.OURS),
        *((8, name) for name in kernels.PEERS),
        (16, kernels.OURS),
    ]
    assert all(row["difference"] < 1e-5 for row in written["rows"])


def test_all_cases_without_a_prefix_give_the_same(relaxed):
    config = AttentionConfig(queries=(300,), heads=2, width=8, tokens=(4,))
    cases = attention.cases_of(config, 300)
    found = {name: jax.jit(function)(prefix, *inputs) for name, function, prefix, inputs in cases}
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


def test_blocks_are_large_where_the_cache_of_a_core_decides_nothing():
    assert blocks_for("gpu", 1, 4096, 4096, 9, 3) == Blocks(2048, 2048, apart=False)


def test_training_and_generation_are_timed_beside_a_peer(results, tmp_path, monkeypatch):
    """With models small enough for a test, and a process that answers as PEFT's does."""
    block = BlockConfig(width=12, heads=3, mlp_width=16, causal=True)
    config = TextConfig(vocabulary=1000, layers=2, block=block, positions=32)
    text = nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()
    monkeypatch.setattr(models, "load_text_model", {"smollm2": text}.get)
    monkeypatch.setattr(models, "load_dinov2", tiny_model)
    worker = tmp_path / "worker.py"
    worker.write_text(
        f"import sys; sys.path.insert(0, {str(peers.MODELS.parent)!r})\n"
        "from worker import serve\n"
        "expected = {'what', 'model', 'adapter', 'size', 'batch', 'length'}\n"
        "serve('9.9', lambda **asked: lambda: expected <= set(asked) or 1 / 0)"
    )
    monkeypatch.setattr(models, "MODELS", worker)
    sizes = {"dinov2": (8, 8, 0), "smollm2": (2, 10, 3)}
    cases = {"dinov2": ("a state", "LoRA, r = 8"), "smollm2": ("a state", "no prefix", "10 tokens")}
    small = tuple(
        each._replace(
            **dict(zip(("batch", "length", "new"), sizes[each.model], strict=True)),
            adapters={name: each.adapters[name] for name in cases[each.model] if name in each.adapters},
        )
        for each in models.WORKLOADS
    )
    monkeypatch.setattr(models, "WORKLOADS", small)
    written = models.main(models.ModelsConfig(rounds=1, torch=sys.executable))
    assert read_json(results / "models.json")["workloads"] == written["workloads"]
    for workload, found in zip(small, written["workloads"], strict=True):
        assert [row["case"] for row in found["rows"]] == [*workload.adapters, *workload.peers]
        assert found["rows"][0]["relative_time"] == [1, 1, 1]


@pytest.mark.parametrize("layouts", [(), (1, 2), (0, 9), (0, -1)])
def test_scaling_is_against_one_core(layouts):
    with pytest.raises(ValueError, match="expected layouts of 0 to 7, and first 0"):
        scaling.ScalingConfig(layouts=layouts)


def test_scaling_needs_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    scaling.ScalingConfig(layouts=(0,))
    with pytest.raises(ValueError, match="expected 2 cores for these layouts, got 1"):
        scaling.ScalingConfig(layouts=(0, 1))


@pytest.mark.slow
def test_scaling(results):
    """Two processes, a core each, beside one: a device has half of what is shared out, and both take the steps."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    config = scaling.ScalingConfig(layouts=(0, 3), rounds=1, width=16, layers=1, batch=4, length=4)
    written = scaling.main(config)
    assert read_json(results / "scaling.json")["rows"] == written["rows"]
    alone, shared, state = written["rows"]
    assert (alone["prefix"], shared["mesh"], state["prefix"]) == ("4,096 tokens", "prefix=2", "a state")
    # Keys and values of 4 heads of 2, with two moments.
    assert alone["bytes_per_device"] - shared["bytes_per_device"] == 3 * 2 * 2048 * 4 * 2 * 4
    assert min(shared["relative_time"]) > 0


def test_a_timed_step_trains():
    """What is timed must not be a step that the compiler left out: the loss falls."""
    classifier, params = initial(tiny_model(), LoraAdapter(rank=2))
    losses = []

    class Watched:
        frozen, project = classifier.frozen, staticmethod(classifier.project)

        @staticmethod
        def loss(*arguments):
            value = classifier.loss(*arguments)
            jax.debug.callback(losses.append, value)
            return value

    run = steps.training_step(Watched, params, (IMAGES, LABELS))
    for _ in range(60):
        run()
    jax.effects_barrier()
    assert losses[-1] < 0.9 * losses[0]
