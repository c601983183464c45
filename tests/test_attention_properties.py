"""Attention of any shape, dtype, mask, prefix, transformation and mesh: the float64 oracle's, by any implementation."""

import itertools
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import as_oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_devices import on_devices

from ntkprefix import FeaturePrefix, JoinedPrefix, MeasurePrefix, TokenPrefix, attention
from ntkprefix.kernels import EVERYWHERE, blockwise
from ntkprefix.kernels.blocks import Blocks

# Of an output, relative to its largest number; sums are float32 in all.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 4e-3}
# Few, so that most examples meet programs that are compiled.
SIZES = {"rows": (1, 2), "queries": (0, 5), "keys": (0, 7), "kv_heads": (1, 2), "groups": (1, 3), "width": (1, 8)}
PREFIXES = ("none", "tokens", "tokens per row", "clouds", "state", "state of query heads", "joined")


class Case(NamedTuple):
    size: dict[str, int]
    prefix: str
    options: dict[str, Any]
    masked: str
    arrays: dict[str, bool]
    dtype: str
    how: str
    blocks: Blocks | None
    seed: int


@st.composite
def cases(draw):
    size = {name: draw(st.sampled_from(sizes)) for name, sizes in SIZES.items()}
    kind = draw(st.sampled_from(PREFIXES))
    options = {}
    if draw(st.booleans()):
        options["is_causal"] = True
    if draw(st.booleans()):
        options["local_window_size"] = draw(st.sampled_from([(0, 0), (2, 1), (9, 9)]))
    if options and draw(st.booleans()):
        options["query_offset"] = draw(st.sampled_from([0, 3, 100]))
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.1, 1.0, 3.0]))
    masked = draw(st.sampled_from(["no", "some", "all"]))
    arrays = {name: draw(st.booleans()) for name in ("bias", "key_value_seq_lengths")}
    dtype = draw(st.sampled_from(sorted(TOLERANCES)))
    how = draw(st.sampled_from(["plain"] * 8 + ["jit", "vmap"]))  # which compile every time
    # None, in which the sizes here are one block, or such as they are several.
    blocks = draw(st.sampled_from([None, Blocks(2, 3, apart=False), Blocks(2, 3, apart=True)]))
    return Case(size, kind, options, masked, arrays, dtype, how, blocks, draw(st.integers(0, 2**32 - 1)))


def made(case):
    """Query, key and value with a leading axis of two, the options, and the prefix."""
    random, options = np.random.default_rng(case.seed), case.options
    B, T, S, K, G, H = case.size.values()
    N = K * G

    def normal(*shape, scale=1.0):
        return jnp.asarray(scale * random.standard_normal(shape), jnp.dtype(case.dtype))

    inputs = normal(2, B, T, N, H), normal(2, B, S, K, H), normal(2, B, S, K, H)
    if case.masked != "no":
        visible = random.random((B, N, T, S)) < (0.5 if case.masked == "some" else 0)
        options = options | {"mask": jnp.asarray(visible)}
    if case.arrays["bias"]:
        options = options | {"bias": normal(B, N, T, S)}
    if case.arrays["key_value_seq_lengths"]:
        options = options | {"key_value_seq_lengths": jnp.asarray(random.integers(0, S + 1, B), jnp.int32)}

    def tokens(*lead):
        return TokenPrefix(normal(*lead, 4, K, H), normal(*lead, 4, K, H), normal(*lead, 4, K))

    def state(heads):
        # All features positive, or a denominator near zero has no digits.
        return FeaturePrefix(normal(heads, H, H), 0.5 + jnp.abs(normal(heads, H)), log_scale=normal(heads))

    prefix = {
        "none": lambda: None,
        "tokens": tokens,
        "tokens per row": lambda: tokens(B),
        "clouds": lambda: MeasurePrefix(
            normal(3, K), normal(3, K, H), normal(3, K, H, 2, scale=0.3), normal(3, K, H), normal(3, K, H, 2)
        ),
        "state": lambda: state(K),
        "state of query heads": lambda: state(N),
        "joined": lambda: JoinedPrefix((tokens(B), state(N))),
    }[case.prefix]()
    return inputs, options, prefix


def ours(case, implementation):
    inputs, options, prefix = made(case)

    def one(query, key, value):
        return attention(query, key, value, prefix=prefix, implementation=implementation, **options)

    cut = mock.patch.object(blockwise, "_blocks_for", return_value=case.blocks) if case.blocks else nullcontext()
    with cut:
        if case.how == "vmap":
            return jax.vmap(one)(*inputs)
        return jnp.stack(
            [(jax.jit(one) if case.how == "jit" else one)(*(array[place] for array in inputs)) for place in (0, 1)]
        )


def expected(case):
    inputs, options, prefix = made(case)
    N, K = inputs[0].shape[3], inputs[1].shape[3]
    names = {"key_value_seq_lengths": "kv_len", "local_window_size": "window", "query_offset": "offset"}
    renamed = {
        names.get(name, name): np.asarray(value) if isinstance(value, jax.Array) else value
        for name, value in options.items()
    }
    share = as_oracle(prefix, N, K)
    return np.stack(
        [oracle.attention(*(array[place] for array in inputs), prefix=share, **renamed) for place in (0, 1)]
    )


def check(case):
    wanted = expected(case)
    for implementation in EVERYWHERE:
        assert_close(ours(case, implementation), wanted, case, implementation)


def assert_close(found, wanted, case, by):
    assert found.dtype == case.dtype
    error = np.abs(np.asarray(found, np.float64) - wanted).max(initial=0)
    assert error <= TOLERANCES[case.dtype] * max(1, np.abs(wanted).max(initial=0)), (by, error)


_CHECKED = itertools.count(1)
OPTIONS = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=3, **OPTIONS)
@given(cases())
def test_equals_the_oracle(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=2000, **OPTIONS)
@given(cases())
def test_equals_the_oracle_in_thousands_of_cases(case):
    check(case)
    if next(_CHECKED) % 100 == 0:
        jax.clear_caches()  # a process can hold so many programs and no more


@pytest.mark.parametrize("examples", [4, pytest.param(1000, marks=pytest.mark.slow)])
def test_equals_the_oracle_on_several_devices(examples):
    on_devices("properties_on_four_devices.py", 4, str(examples))
