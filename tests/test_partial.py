"""The algebra of partials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkprefix import Partial, merge


def a_partial(seed, log_scale):
    rng = np.random.default_rng(seed)
    shape = (2, 3, 2)
    return Partial(
        jnp.asarray(rng.standard_normal((*shape, 4)), jnp.float32),
        jnp.asarray(rng.random(shape) + 0.1, jnp.float32),
        jnp.asarray(log_scale + rng.standard_normal(shape), jnp.float32),
    )


IDENTITY = Partial(jnp.zeros((2, 3, 2, 4)), jnp.zeros((2, 3, 2)), jnp.full((2, 3, 2), -jnp.inf))
scales = st.floats(-1e4, 1e4)


def same(a, b):
    np.testing.assert_allclose(a.normalise(), b.normalise(), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(a.log_mass(), b.log_mass(), rtol=1e-6, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(scales, scales, scales)
def test_merging_is_associative_and_commutative(one, two, three):
    a, b, c = a_partial(1, one), a_partial(2, two), a_partial(3, three)
    same(merge(merge(a, b), c), merge(a, merge(b, c)))
    same(merge(a, b), merge(b, a))
    same(merge(a, b, c), merge(c, a, b))


@settings(max_examples=20, deadline=None)
@given(scales)
def test_the_identity_changes_no_bit(scale):
    partial = a_partial(1, scale)
    for merged in (merge(partial, IDENTITY), merge(IDENTITY, partial)):
        jax.tree.map(np.testing.assert_array_equal, merged, partial)


def test_nothing_merged_with_nothing_is_zero_and_differentiable():
    gradient = jax.grad(lambda p: merge(p, IDENTITY).normalise().sum())(IDENTITY)
    assert not merge(IDENTITY, IDENTITY).normalise().any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_normalised_output_with_its_log_sum_exp_is_a_partial():
    partial, other = a_partial(1, 3.0), a_partial(2, 4.0)
    fused = Partial(partial.normalise(), jnp.ones_like(partial.den), partial.log_mass())
    same(merge(fused, other), merge(partial, other))


def test_gradients_do_not_depend_on_the_representation():
    # the same share, written with another log scale, must pass the same gradient to what made it
    other = a_partial(2, 1.0)

    def out(value, shift):
        den = jnp.ones((2, 3, 2))
        share = Partial(jnp.full((2, 3, 2, 4), value), den, shift * den + value)
        return (
            merge(Partial(share.num * jnp.exp(-shift), den * jnp.exp(-shift), share.log_scale), other).normalise().sum()
        )

    np.testing.assert_allclose(jax.grad(out)(0.7, 0.0), jax.grad(out)(0.7, 5.0), rtol=1e-5)


def test_merging_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one Partial"):
        merge()
