"""Attention of any shape, dtype, mask and prefix on any mesh of four devices: the float64 oracle's.

A program of its own, which `test_attention_properties.py` starts with the number of cases: how many devices there are
is settled when JAX starts.
"""

import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention_properties import OPTIONS, assert_close, cases, expected, made

from ntkprefix.parallel import mesh_of
from ntkprefix.shared_attention import shared_attention

assert jax.device_count() == 4
SIZES = ("data=4", "tensor=4", "prefix=4", "data=2,tensor=2", "data=2,prefix=2", "tensor=2,prefix=2")
_CHECKED = itertools.count(1)


@settings(max_examples=int(sys.argv[1]), **OPTIONS)
@given(cases(), st.sampled_from(SIZES))
def equals_the_oracle(case, sizes):
    inputs, options, prefix = made(case)
    shared = jax.jit(partial(shared_attention, prefix=prefix, **options))
    with jax.set_mesh(mesh_of(sizes)):
        found = jnp.stack([shared(*(array[place] for array in inputs)) for place in (0, 1)])
    assert_close(found, expected(case), case, sizes)
    if next(_CHECKED) % 100 == 0:
        jax.clear_caches()


equals_the_oracle()
