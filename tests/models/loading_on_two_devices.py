"""Models from files straight onto a mesh of two devices: cut on the host, as one device would have shared them out.

`test_loading_onto_a_mesh.py` starts it with a folder of a text model and one of a vision transformer.
"""

import sys

import jax
import numpy as np
from flax import nnx

from ntkprefix.models import load_dinov2, load_text_model
from ntkprefix.parallel import mesh_of, placed, put_model

assert jax.device_count() == 2
mesh = mesh_of("tensor=2")
put_on_devices = jax.device_put


def from_the_host(array, *where, **options):
    assert isinstance(array, np.ndarray), "a whole array lay on one device before it was cut"
    return put_on_devices(array, *where, **options)


for load, folder in ((load_text_model, sys.argv[1]), (load_dinov2, sys.argv[2])):
    wanted = load(folder)
    put_model(wanted, mesh)
    jax.device_put = from_the_host
    found = load(folder, mesh=mesh)
    jax.device_put = put_on_devices
    states = [nnx.state(model) for model in (wanted, found)]
    assert placed(states[0]) == placed(states[1])
    assert any("tensor" in each.spec for each in placed(states[1]))
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        assert len(other.sharding.device_set) == 2
        np.testing.assert_array_equal(other, one)
