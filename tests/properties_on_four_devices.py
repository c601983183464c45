"""Attention of any shape, dtype, mask and prefix on any mesh of four devices: the float64 oracle's.

A program of its own, which `test_attention_properties.py` starts with the number of cases and, if it is to be one mesh,
its sizes: how many devices there are is settled when JAX starts.
"""

import sys

import jax
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import let_go_of_many
from test_attention_properties import OPTIONS, assert_right, cases

from ntkprefix.parallel import mesh_of
from ntkprefix.shared_attention import shared_attention

assert jax.device_count() == 4
SIZES = sys.argv[2:] or ("data=4", "tensor=4", "prefix=4", "data=2,tensor=2", "data=2,prefix=2", "tensor=2,prefix=2")


@settings(max_examples=int(sys.argv[1]), **OPTIONS)
@given(cases(hows=("jit", "jit", "gradient")), st.sampled_from(SIZES))
def equals_the_oracle(case, sizes):
    with jax.set_mesh(mesh_of(sizes)):
        assert_right(case, shared_attention, sizes)
    let_go_of_many()


equals_the_oracle()
