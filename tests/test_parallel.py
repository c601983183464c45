"""Meshes and shardings; what needs several devices runs in processes of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from simulated_devices import on_devices, simulated

from ntkprefix.adapters import FeatureAdapter, LoraAdapter, Stack, TokenAdapter
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.parallel import (
    AXES,
    adapter_specs,
    even_rows,
    mesh_of,
    path_of,
    sizes_of,
    tokens_over_prefix,
    weight_specs,
)


def test_training_by_two_processes():
    """Real ones, on this machine's own network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("one_of_two_processes.py")
    environment = os.environ | simulated(2)
    started = [
        subprocess.Popen(
            [sys.executable, program, str(number), str(port)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    try:
        told = [process.communicate(timeout=180)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert [process.returncode for process in started] == [0, 0], "\n".join(text[-2000:] for text in told)


def test_training_on_a_mesh():
    on_devices("parallel_on_eight_devices.py", 8)


def test_sizes_in_words():
    assert sizes_of(" tensor=2, data=4") == {"data": 4, "tensor": 2, "prefix": 1}
    assert tuple(sizes_of("prefix=8")) == AXES


@pytest.mark.parametrize(
    "text", ["", "data", "data=", "data=0", "data=-1", "data=2,data=2", "model=2", "data=2;tensor=2"]
)
def test_other_words(text):
    with pytest.raises(ValueError, match="expected sizes of data, tensor, prefix"):
        sizes_of(text)


def test_a_mesh_takes_all_devices():
    with pytest.raises(ValueError, match="number of devices, 1, got 'data=4,tensor=2', 8 devices"):
        mesh_of("data=4,tensor=2", devices=[object()])


def test_what_does_not_divide_is_whole_on_every_device():
    block = BlockConfig(width=12, heads=3, mlp_width=16)
    config = TextConfig(vocabulary=50, layers=2, block=block, positions=4)
    weights = nnx.state(nnx.eval_shape(lambda: TextModel(config, rngs=nnx.Rngs(0))))

    def cut(tensor):
        specs = weight_specs(weights, config, tensor)
        return {path_of(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(specs) if len(spec)}

    matrices = {"query", "key", "value", "out"}
    assert {name for name in cut(3) if name.endswith("kernel")} == {f"blocks.attention.{m}.kernel" for m in matrices}
    assert {name.split(".")[1] for name in cut(3)} == {"attention"}
    assert {name.split(".")[-3] for name in cut(2) if "." in name and "blocks" in name} == {"mlp"}
    assert cut(2)["tokens.embedding"] == PartitionSpec("tensor")
    assert cut(3)["blocks.attention.query.bias"] == PartitionSpec(None, "tensor")
    assert "blocks.attention.out.bias" not in cut(3)
    assert cut(7) == {}


def test_adapters_are_cut_by_the_letters_of_their_axes():
    block = BlockConfig(width=12, heads=4, kv_heads=2, head_width=3, mlp_width=16)
    model = nnx.eval_shape(lambda: TextModel(TextConfig(vocabulary=50, layers=2, block=block), rngs=nnx.Rngs(0)))
    sizes = {"data": 1, "tensor": 2, "prefix": 4}

    def specs(adapter, **shapes):
        params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        return adapter_specs(params, adapter, model.config, sizes)

    tokens = specs(TokenAdapter(length=8), keys=(2, 8, 2, 3), values=(2, 8, 2, 3))
    assert tokens["keys"] == tokens["values"] == PartitionSpec(None, "prefix", "tensor", None)
    assert specs(TokenAdapter(length=6), keys=(2, 6, 2, 3))["keys"] == PartitionSpec(None, None, "tensor", None)
    assert specs(FeatureAdapter(), Z=(2, 4, 3, 3))["Z"] == PartitionSpec(None, "tensor", None, None)
    stacked = adapter_specs(
        {"0": {"query": {"down": jnp.zeros((2, 12, 4))}}, "1": {"k": jnp.zeros((2, 4, 3))}},
        Stack([LoraAdapter(rank=4), FeatureAdapter()]),
        model.config,
        sizes,
    )
    assert not any(stacked["0"]["query"]["down"])
    assert stacked["1"]["k"] == PartitionSpec(None, "tensor", None)


def test_a_batch_that_does_not_divide():
    with pytest.raises(ValueError, match="a multiple of the 2 devices along data, got 3 rows"):
        even_rows(3, 2)


def test_without_a_mesh_tokens_stay_where_they_are():
    W = jnp.zeros((6, 2))
    assert tokens_over_prefix(W) is W
