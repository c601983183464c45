"""The kernel of a prefix that devices share out: the same as on one, and they exchange sums alone.

A program of its own, which `test_kernels.py` starts: how many devices there are is settled when JAX starts.
"""

import re

import jax
import jax.numpy as jnp
import numpy_model as oracle
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from theory import finite_ntk, init_stylized, kernels

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
