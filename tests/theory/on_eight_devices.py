"""The kernel of a prefix that devices share out: the same as on one, and they exchange sums alone.

A program of its own, which `test_kernels.py` starts: how many devices there are is settled when JAX starts.
"""

import re

import jax
import jax.numpy as jnp
import numpy_model as oracle
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ntkprefix.parallel import mesh_of, on_mesh, tokens_over_prefix
from theory import dynamics, finite_ntk, init_stylized, kernels, train

assert jax.device_count() == 8
W, a = init_stylized(jax.random.key(0), 48, 3)
W = W + 0.3 * jax.random.normal(jax.random.key(1), W.shape)
x1, x2 = (jax.random.normal(jax.random.key(seed), (n, 3)) for seed, n in ((2, 4), (3, 2)))

for kind in (AxisType.Explicit, AxisType.Auto):
    mesh = jax.make_mesh((4, 2), ("prefix", "other"), axis_types=(kind, kind))
    for spec in (PartitionSpec("prefix"), PartitionSpec(("other", "prefix")), PartitionSpec(None, None)):
        shared_out = jax.device_put(W, NamedSharding(mesh, spec))
        for chunk in (5, 1024):
            for second in (None, x2):
                found = finite_ntk(shared_out, a, x1, second, chunk=chunk)
                error = oracle.relative(found, oracle.kernel(W, a, x1, x1 if second is None else second))
                assert error < 1e-5, (kind, spec, chunk, error)

    sharding = NamedSharding(mesh, PartitionSpec("prefix"))
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in ((2**16, 3), (2**16,))]
    whole = jax.ShapeDtypeStruct((4, 3), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    program = kernels._sharded_ntk.lower(*shapes, (whole,), chunk=1024, sharding=sharding).compile()
    exchanged = set(re.findall(r"(?:all-[a-z-]+|collective-[a-z-]+|reduce-scatter)(?=\()", program.as_text()))
    assert exchanged == {"all-reduce"}, exchanged

# Training, of so many tokens that each device reads its own in chunks.
W, a = init_stylized(jax.random.key(4), 2**14, 3, 0.5)
x1 = x1 / jnp.linalg.norm(x1, axis=1, keepdims=True)
options = {"steps": 20, "step_size": 0.05}
alone = train(W, a, x1, 0.3 * x1, **options)
with on_mesh(mesh_of("prefix=8")):
    W, a = tokens_over_prefix(W), tokens_over_prefix(a)
    together = train(W, a, x1, 0.3 * x1, **options)
    given = W, a, x1, 0.3 * x1, jnp.float32(0.05), None
    program = dynamics._train.lower(*given, steps=20, optimizer=dynamics.OPTIMIZERS["gd"], batch_size=None).compile()
assert alone.loss[-1] < 0.9 * alone.loss[0], alone.loss
for name in ("loss", "movement"):
    error = oracle.relative(getattr(together, name), getattr(alone, name))
    assert error < 1e-4, (name, error)
assert together.W.sharding.shard_shape(together.W.shape) == (2**11, 3)
exchanged = set(re.findall(r"(?:all-[a-z-]+|collective-[a-z-]+|reduce-scatter)(?=\()", program.as_text()))
assert exchanged == {"all-reduce"}, exchanged
