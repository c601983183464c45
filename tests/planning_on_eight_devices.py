"""The formulas of a plan, against what compiled steps have: bytes of arguments, operations, exchanges.

A program of its own, which `test_planning.py` starts. Loops over layers and micro-batches are written once in a
compiled program, so that operations and exchanges are those of one layer and one micro-batch.
"""

import dataclasses

import jax
import jax.numpy as jnp
from collectives import collectives
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ntkprefix.adapters import FeatureAdapter, TokenAdapter
from ntkprefix.language import LanguageTask
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.models.rotary import Rotary
from ntkprefix.parallel import adapter_specs, mesh_of, sizes_of, weight_specs
from ntkprefix.planning import adapter_of, plan, weights_of
from ntkprefix.train.step import optimiser, step_on_mesh

ROWS, LENGTH, ANSWER = 8, 32, 8
BLOCK = BlockConfig(
    width=128,
    heads=4,
    kv_heads=2,
    mlp_width=256,
    norm="rms",
    gated=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    rotary=Rotary(width=32),
    causal=True,
    remat=True,
)


def compiled(layers, adapter, text, micro_batches):
    """A step on a mesh, of arrays that need not exist."""
    config = TextConfig(vocabulary=512, layers=layers, block=BLOCK, head="untied")
    mesh, sizes = mesh_of(text), sizes_of(text)

    def on(tree, specs):
        return jax.tree.map(
            lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)),
            tree,
            specs,
        )

    weights, trained = weights_of(config), adapter_of(config, adapter)
    frozen = on(weights, weight_specs(weights, config, sizes["tensor"]))
    params = {"adapter": on(trained, adapter_specs(trained, adapter, config, sizes))}
    of_shape = {leaf.shape: leaf for leaf in jax.tree.leaves(params)}
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    transformation = optimiser(0.0, 1.0)
    state = jax.tree.map(
        lambda leaf: of_shape[leaf.shape] if leaf.ndim else count, jax.eval_shape(transformation.init, params)
    )
    numbers = jax.ShapeDtypeStruct((ROWS,), jnp.int32)
    rows = (jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32), numbers, numbers)
    rows = on(rows, (PartitionSpec("data"),) * 3)
    task = LanguageTask(nnx.eval_shape(lambda: TextModel(config, rngs=nnx.Rngs(0))), adapter, ANSWER)
    given = task.loss, transformation, None, micro_batches, params, state, frozen, jnp.float32(1), 1.0, rows
    with jax.set_mesh(mesh):
        return config, step_on_mesh(params, state).lower(*given).compile()


for adapter, text, micro_rows in (
    (TokenAdapter(length=256), "data=2,tensor=2,prefix=2", 4),
    (FeatureAdapter(), "data=4,tensor=2", 1),
):
    data = sizes_of(text)["data"]
    config, program = compiled(2, adapter, text, ROWS // data // micro_rows)
    options = {"batch_size": ROWS, "length": LENGTH, "answer": ANSWER, "micro_rows": micro_rows}
    whole = plan(config, adapter, sizes_of(text), **options)

    # Arguments: weights, adapter, two moments and a count, the batch, a step size.
    batch = (ROWS // data) * (LENGTH + 2) * 4
    expected = whole.bytes["weights"] + 3 * whole.bytes["adapter"] + batch + 4
    assert abs(program.memory_analysis().argument_size_in_bytes - expected) <= 8, (text, expected)

    once = plan(dataclasses.replace(config, layers=1), adapter, sizes_of(text), **options)
    # Besides those of the formulas: norms and losses, a number each.
    found = [size for kind, size in collectives(program.as_text()) if kind == "all-reduce" and size > 4]
    formula = sum(exchange.bytes for exchange in once.exchanges) // once.micro_batches
    count = once.all_reduces // once.micro_batches
    if jax.__version_info__ < (0, 11):
        assert (sum(found), len(found)) == (formula, count), (text, found, once.exchanges)
    else:  # JAX 0.12 joins other arrays, and may sum the tokens' states once more than it needs to
        states = micro_rows * LENGTH * config.block.width * 4
        assert sum(found) - formula in (0, states), (text, found, once.exchanges)

    flops = sum(once.flops.values()) / once.micro_batches
    assert 1 <= program.cost_analysis()["flops"] / flops < 1.05, (text, flops)  # besides: all that is no matrix product

# Each further layer keeps its input, and what trains of it has a gradient.
tokens, text = TokenAdapter(length=16), "data=8"
options = {"batch_size": ROWS, "length": LENGTH, "answer": ANSWER}
temporary, kept = [], []
for layers in (2, 10):
    config, program = compiled(layers, tokens, text, 1)
    whole = plan(config, tokens, sizes_of(text), **options)
    temporary.append(program.memory_analysis().temp_size_in_bytes)
    kept.append(whole.bytes["activations"] + whole.bytes["adapter"])
assert 0.95 < (temporary[1] - temporary[0]) / (kept[1] - kept[0]) < 1.05
# What one block holds at a time is an estimate.
assert 0.7 < temporary[0] / kept[0] < 1.4
