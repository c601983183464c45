"""One process of `benchmarks.scaling`: takes its part of a training step for every line that it is sent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.steps import training_step
from ntkprefix.adapters import spelt
from ntkprefix.language import LanguageTask
from ntkprefix.models import BlockConfig, Rotary, TextConfig, TextModel
from ntkprefix.parallel import adapter_specs, mesh_of, placed, put, put_model
from ntkprefix.texts import Answers


def main(asked: dict[str, Any], tell: Callable[[Any], None]) -> None:
    """Serve until the input ends.

    Args:
        asked: a layout, sizes, an adapter, which of the processes this is, its cores and where they meet.
        tell: is told of the bytes on each device, and then of every step.
    """
    os.sched_setaffinity(0, asked["own"])
    if asked["processes"] > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        where = f"127.0.0.1:{asked['port']}"
        jax.distributed.initialize(where, num_processes=asked["processes"], process_id=asked["number"])
    random = np.random.default_rng(0)
    batch, length, width = asked["batch"], asked["length"], asked["width"]
    tokens = random.integers(4096, size=(batch, length)).astype(np.int32)
    data = Answers(tokens, np.full(batch, 1, np.int32), np.full(batch, length, np.int32))
    block = BlockConfig(
        width=width,
        heads=8,
        kv_heads=4,
        mlp_width=3 * width,
        gated=True,
        norm="rms",
        causal=True,
        rotary=Rotary(width=width // 8),
    )
    config = TextConfig(vocabulary=4096, layers=asked["layers"], block=block)
    model = nnx.jit(lambda: TextModel(config, rngs=nnx.Rngs(0)))()
    adapter = spelt(asked["adapter"])
    task = LanguageTask(model, adapter, longest=length - 1)
    start = task.init(jax.random.key(0), data)
    mesh = mesh_of(asked["mesh"])
    put_model(model, mesh)
    params = {"adapter": put(start["adapter"], adapter_specs(start["adapter"], adapter, config, mesh.shape), mesh)}
    task.frozen = nnx.split(model)[1]  # as it lies on the mesh
    held = (*placed(task.frozen), *3 * placed(params))  # what trains, and its two moments
    tell(sum(array.bytes_per_device for array in held))
    take = training_step(task, params, tuple(data), mesh=mesh)
    for _ in sys.stdin:
        take()
        tell(True)


if __name__ == "__main__":
    # Gloo prints to the standard output, where our answers alone belong.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    main(json.loads(sys.argv[1]), lambda what: print(json.dumps(what), file=answers))
