"""Training on a mesh: the losses of one device, and nothing gathered that is as large as a prefix or a weight matrix.

A program of its own, which `test_parallel.py` starts: how many devices there are is settled when JAX starts.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from collectives import collectives
from flax import nnx
from jax.sharding import PartitionSpec

from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix, attention
from ntkprefix.adapters import FeatureAdapter, TokenAdapter
from ntkprefix.classify import Classifier
from ntkprefix.language import LanguageTask
from ntkprefix.models import BlockConfig, TextConfig, TextModel, ViT, ViTConfig
from ntkprefix.models.rotary import Rotary
from ntkprefix.parallel import adapter_specs, mesh_of, placed, put, put_model, put_rows
from ntkprefix.shared_attention import shared_attention
from ntkprefix.texts import Answers
from ntkprefix.train import TrainConfig, train
from ntkprefix.train.step import optimiser, step_on_mesh

assert jax.device_count() == 8
TOLERANCE = 1e-5
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, fun_name="", **__: COMPILED.append(fun_name) if "backend_compile" in event else None
)
ROWS = np.random.default_rng(0)


def llama():
    block = BlockConfig(
        width=32,
        heads=4,
        kv_heads=2,
        mlp_width=48,
        norm="rms",
        gated=True,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        rotary=Rotary(width=8),
        causal=True,
    )
    return nnx.jit(lambda: TextModel(TextConfig(vocabulary=64, layers=2, block=block), rngs=nnx.Rngs(0)))()


def vit():
    block = BlockConfig(width=12, heads=2, mlp_width=16, layer_scale=True)
    return nnx.jit(lambda: ViT(ViTConfig(patch=4, layers=2, grid=2, block=block), rngs=nnx.Rngs(0)))()


def answers():
    tokens = ROWS.integers(64, size=(40, 12)).astype(np.int32)
    return Answers(tokens, starts=np.full(40, 9, np.int32), lengths=ROWS.integers(10, 13, 40).astype(np.int32))


def language(adapter):
    data = answers()
    task = LanguageTask(llama(), adapter, longest=3)
    return task, task.init(jax.random.key(0), data), tuple(data)


def images(adapter):
    pictures = ROWS.integers(256, size=(40, 8, 8, 3)).astype(np.uint8)
    task = Classifier(vit(), adapter)
    start = task.init(jax.random.key(0), (pictures,), classes=2)
    head = {"kernel": jax.random.normal(jax.random.key(1), (24, 2)), "bias": start["head"]["bias"]}
    return task, start | {"head": head}, (pictures, np.arange(40) % 2)


CASES = {
    "tokens": (language, TokenAdapter(length=16, deviation=1.0), "data=2,tensor=2,prefix=2", 1),
    "states": (images, FeatureAdapter(share=0.3), "data=4,tensor=2", 2),
}
MODELS = {language: llama, images: vit}


def whole(mesh):
    return jax.NamedSharding(mesh, PartitionSpec())


def on_mesh(task, params, adapter, make, mesh):
    """Parameters and weights where they belong."""
    model = MODELS[make]()
    put_model(model, mesh)
    specs = adapter_specs(params["adapter"], adapter, model.config, mesh.shape)
    return {**params, "adapter": put(params["adapter"], specs, mesh)}, nnx.split(model)[1]


for name, (make, adapter, sizes, micro_batches) in CASES.items():
    task, start, data = make(adapter)
    config = TrainConfig(epochs=1, batch_size=8, micro_batches=micro_batches, learning_rate=0.03)
    alone = train(task.loss, start, task.frozen, data, config, project=task.project)
    mesh = mesh_of(sizes)
    params, frozen = on_mesh(task, start, adapter, make, mesh)
    COMPILED.clear()
    together = train(task.loss, params, frozen, data, config, project=task.project, mesh=mesh)
    assert COMPILED.count("jit(update)") == 1, COMPILED
    assert len(alone.losses) == 5
    assert alone.losses[0] != alone.losses[-1]
    np.testing.assert_allclose(together.losses, alone.losses, rtol=TOLERANCE, err_msg=name)
    for one, other in zip(jax.tree.leaves(alone.params), jax.tree.leaves(together.params), strict=True):
        # Adam divides by the root of a gradient's square: where that is rounding alone, so is the step.
        np.testing.assert_allclose(np.asarray(other), np.asarray(one), atol=2e-3, err_msg=name)
    print(name, "largest difference", np.max(np.abs(together.losses / alone.losses - 1)))

# What lies where.
task, start, data = language(TokenAdapter(length=16))
mesh = mesh_of("data=2,tensor=2,prefix=2")
params, frozen = on_mesh(task, start, TokenAdapter(length=16), language, mesh)
where = {entry.path: entry for entry in (*placed(frozen), *placed(params["adapter"]))}
assert where["blocks.attention.query.kernel"].spec == (None, None, "tensor")
assert where["blocks.attention.query.kernel"].bytes_per_device == 2 * 32 * 16 * 4
assert where["blocks.attention.out.kernel"].spec == (None, "tensor")
assert where["blocks.mlp.down.kernel"].spec == (None, "tensor")
assert where["tokens.embedding"].spec == ("tensor",)
assert where["norm.scale"].spec == ()
assert where["keys"].spec == (None, "prefix", "tensor", None)
assert where["keys"].bytes_per_device == 2 * 8 * 1 * 8 * 4

# Attention alone, to every kind of prefix and with every option.
query, other, keys, values = (
    jnp.asarray(ROWS.normal(size=shape), jnp.float32)
    for shape in ((4, 6, 4, 8), (4, 10, 2, 8), (4, 16, 2, 8), (4, 16, 2, 8))
)
several = (
    TokenPrefix(3 * keys[0], values[0], keys[0, :, :, 0]),
    FeaturePrefix.from_tokens(keys[1], values[1]),
    MeasurePrefix(keys[2, :3, :, 0], keys[2, :3], keys[3, :3, ..., None], values[2, :3], values[3, :3, ..., None]),
)
PREFIXES = {
    "joined": JoinedPrefix(several),
    "a number that does not divide": TokenPrefix(keys[0, :5], values[0, :5]),
    "of rows": TokenPrefix(keys, values),
}
OPTIONS = {
    "joined": {"mask": jnp.asarray(ROWS.random((4, 1, 1, 10)) < 0.5)},
    "a number that does not divide": {
        "bias": jnp.asarray(ROWS.normal(size=(1, 4, 6, 10)), jnp.float32),
        "is_causal": True,
        "query_offset": jnp.asarray([4, 3, 2, 1]),
    },
    "of rows": {"key_value_seq_lengths": jnp.asarray([1, 4, 0, 10]), "implementation": "blockwise"},
}
for name, prefix in PREFIXES.items():

    def gradient(attend, query, key, prefix, options=OPTIONS[name]):
        def total(*given):
            query, key, prefix = given
            return jnp.sum(jnp.sin(attend(query, key, 1 - key, prefix=prefix, **options)))

        return jax.value_and_grad(total, (0, 1, 2))(query, key, prefix)

    wanted = jax.jit(partial(gradient, attention))(query, other, prefix)
    with jax.set_mesh(mesh):
        found = jax.jit(partial(gradient, shared_attention))(query, other, prefix)
    for one, two in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5, err_msg=name)

# What is exchanged for a long prefix, which is read in blocks.
LENGTH = 8192
spec = jax.NamedSharding(mesh, PartitionSpec(None, "prefix", "tensor"))
long = jax.ShapeDtypeStruct((2, LENGTH, 2, 8), jnp.float32, sharding=spec)
params, transformation = {"adapter": {"keys": long, "values": long}}, optimiser(0.0, 1.0)
state = jax.tree.map(
    lambda leaf: long if leaf.ndim else jax.ShapeDtypeStruct((), leaf.dtype, sharding=whole(mesh)),
    jax.eval_shape(transformation.init, params),
)
rows = put_rows([array[:8] for array in data], mesh)
with jax.set_mesh(mesh):
    given = task.loss, transformation, None, 1, params, state, frozen, jnp.float32(1), 1.0, rows
    found = collectives(step_on_mesh(params, state).lower(*given).compile().as_text())
assert found
gathered = [size for kind, size in found if kind != "all-reduce"]
assert max(gathered, default=0) < 32 * 32 * 4, gathered  # the smallest of the matrices that are cut
# Gradients of what a device has of one layer's keys are summed over `data`; nothing larger is.
assert max(size for _, size in found) <= 4 * (LENGTH // 2) * 8, sorted(set(found))
