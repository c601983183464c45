"""Attention of any shape, dtype, mask, prefix, transformation and mesh: the float64 oracle's, by any implementation."""

from contextlib import nullcontext
from functools import partial
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
from programs import let_go_of_many
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


# All but the first are programs of their own, which are compiled for every example.
HOWS = ("plain",) * 8 + ("jit", "vmap", "gradient")
# Of the central differences by which the oracle is differentiated: in float64 its error is below 1e-6.
STEP = 1e-5
# Of a slope along a direction, relative to what its terms amount to.
SLOPES = {"float32": 5e-6, "bfloat16": 3e-2, "float16": 1e-3}


@st.composite
def cases(draw, hows=HOWS, prefixes=PREFIXES, *, empty=True):
    """With `empty` also without queries or keys, or with all keys hidden."""
    size = {name: draw(st.sampled_from([size for size in sizes if size or empty])) for name, sizes in SIZES.items()}
    kind = draw(st.sampled_from(prefixes))
    options = {}
    if draw(st.booleans()):
        options["is_causal"] = True
    if draw(st.booleans()):
        options["local_window_size"] = draw(st.sampled_from([(0, 0), (2, 1), (9, 9)]))
    if options and draw(st.booleans()):
        options["query_offset"] = draw(st.sampled_from([0, 3, 100]))
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.1, 1.0, 3.0]))
    masked = draw(st.sampled_from(["no", "some", "all"] if empty else ["no", "some"]))
    arrays = {name: draw(st.booleans()) for name in ("bias", "key_value_seq_lengths")}
    dtype = draw(st.sampled_from(sorted(TOLERANCES)))
    how = draw(st.sampled_from(hows))
    # None, in which the sizes here are one block, or such as they are several.
    blocks = draw(st.sampled_from([None, Blocks(2, 3, apart=False), Blocks(2, 3, apart=True)]))
    return Case(size, kind, options, masked, arrays, dtype, how, blocks, draw(st.integers(0, 2**32 - 1)))


def made(case):
    """Query, key and value with a leading axis of two, the options, and the prefix."""
    random, options = np.random.default_rng(case.seed), dict(case.options)
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


def ours(case, call):
    inputs, options, prefix = made(case)
    call = partial(call, prefix=prefix, **options)
    if case.how == "vmap":
        return jax.vmap(call)(*inputs)
    return in_turn(jax.jit(call) if case.how == "jit" else call, inputs)


def in_turn(call, inputs):
    return jnp.stack([call(*(array[place] for array in inputs)) for place in (0, 1)])


def expected(inputs, options, prefix):
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
    cut = mock.patch.object(blockwise, "_blocks_for", return_value=case.blocks) if case.blocks else nullcontext()
    for implementation in EVERYWHERE:
        with cut:
            assert_right(case, partial(attention, implementation=implementation), implementation)


def assert_right(case, call, by):
    if case.how == "gradient":
        assert_slope(case, call, by)
    else:
        assert_close(ours(case, call), expected(*made(case)), case, by)


def assert_slope(case, call, by):
    """Along a random direction in each array, a random sum of outputs changes as fast as the oracle's does."""
    inputs, options, prefix = made(case)
    random = np.random.default_rng(case.seed + 1)
    start = {"inputs": inputs, "prefix": prefix, "bias": options.pop("bias", None)}
    direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), start)
    weights = random.standard_normal(inputs[0].shape)

    def given(point):
        return options if point["bias"] is None else options | {"bias": point["bias"]}

    def total(point):
        outputs = in_turn(partial(call, prefix=point["prefix"], **given(point)), point["inputs"])
        return jnp.sum(outputs.astype(jnp.float32) * jnp.asarray(weights, jnp.float32))

    def moved(step, name):
        """The sum where one array is moved and the others stay."""
        point = jax.tree_util.tree_map_with_path(
            lambda path, leaf, along: np.asarray(leaf, np.float64) + (step if path == name else 0) * along,
            start,
            direction,
        )
        return np.sum(weights * expected(point["inputs"], given(point), point["prefix"]))

    gradient = jax.jit(jax.grad(total))(start)
    slopes = jax.tree.map(lambda slope, along: np.asarray(slope, np.float64) * along, gradient, direction)
    everything = np.linalg.norm([np.linalg.norm(each) for each in jax.tree.leaves(slopes)])
    for path, each in jax.tree_util.tree_leaves_with_path(slopes):
        wanted = (moved(STEP, path) - moved(-STEP, path)) / (2 * STEP)
        allowed = SLOPES[case.dtype] * (3 * np.linalg.norm(each) + 0.1 * everything + 1e-3)
        assert abs(each.sum() - wanted) <= allowed, (by, jax.tree_util.keystr(path), each.sum(), wanted)


def assert_close(found, wanted, case, by):
    assert found.dtype == case.dtype
    error = np.abs(np.asarray(found, np.float64) - wanted).max(initial=0)
    assert error <= TOLERANCES[case.dtype] * max(1, np.abs(wanted).max(initial=0)), (by, error)


OPTIONS = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=3, **OPTIONS)
@given(cases(empty=False))
def test_equals_the_oracle(case):
    check(case)


@settings(max_examples=3, **OPTIONS)
@given(cases(hows=("gradient",), empty=False))
def test_its_gradient_is_the_oracles(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", PREFIXES)
def test_equals_the_oracle_in_thousands_of_cases(prefix):
    @settings(max_examples=300, **OPTIONS)
    @given(cases(prefixes=(prefix,)))
    def equals_the_oracle(case):
        check(case)
        let_go_of_many()

    equals_the_oracle()


def test_equals_the_oracle_on_several_devices():
    on_devices("properties_on_four_devices.py", 4, "4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", ["data=4", "tensor=4", "prefix=4", "data=2,tensor=2", "data=2,prefix=2", "tensor=2,prefix=2"]
)
def test_equals_the_oracle_on_several_devices_in_a_thousand_cases(mesh):
    on_devices("properties_on_four_devices.py", 4, "170", mesh)
