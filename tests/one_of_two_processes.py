"""Training shared by two processes, two devices each: the losses of one device in one process.

`test_parallel.py` starts it twice, with the number of the process and the port at which they meet.
"""

import sys

import jax
import numpy as np
from flax import nnx

from ntkprefix.adapters import TokenAdapter
from ntkprefix.language import LanguageTask
from ntkprefix.models import BlockConfig, TextConfig, TextModel
from ntkprefix.parallel import adapter_specs, mesh_of, put, put_model
from ntkprefix.texts import Answers
from ntkprefix.train import TrainConfig, train

number, port = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number), initialization_timeout=60)
assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 4, 2)

random = np.random.default_rng(0)
tokens = random.integers(24, size=(20, 6)).astype(np.int32)
data = Answers(tokens, starts=np.full(20, 4, np.int32), lengths=random.integers(5, 7, 20).astype(np.int32))
block = BlockConfig(width=8, heads=2, mlp_width=12, causal=True)
model = nnx.jit(lambda: TextModel(TextConfig(vocabulary=24, layers=2, block=block, positions=8), rngs=nnx.Rngs(0)))()
adapter, config = TokenAdapter(length=4, deviation=1.0), TrainConfig(epochs=1, batch_size=4, learning_rate=0.03)

task = LanguageTask(model, adapter, longest=2)
start = task.init(jax.random.key(0), data)
mesh = mesh_of("data=2,prefix=2")
put_model(model, mesh)
params = {"adapter": put(start["adapter"], adapter_specs(start["adapter"], adapter, model.config, mesh.shape), mesh)}
together = train(task.loss, params, nnx.split(model)[1], tuple(data), config, mesh=mesh)
if number == "0":
    alone = train(task.loss, start, task.frozen, tuple(data), config)
    np.testing.assert_allclose(together.losses, alone.losses, rtol=1e-5)
    assert len(set(alone.losses)) == 5
