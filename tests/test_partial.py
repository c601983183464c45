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


@pytest.mark.parametrize("shift", [-80.0, -60.0, 0.0, 60.0])
def test_a_share_counts_with_its_mass_however_it_is_written(shift):
    # the same share with a denominator of e^shift, as far features leave it: neither group may vanish
    partial, other = a_partial(1, 0.0), a_partial(2, -40.0)

    def out(num, other):
        factor = jnp.exp(jnp.float32(shift))
        share = Partial(num * factor, partial.den * factor, partial.log_scale - shift)
        merged = merge(share, other)
        return merged.normalise(), merged.log_mass()

    ours, plain = out(partial.num, other), merge(partial, other)
    np.testing.assert_allclose(ours[0], plain.normalise(), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1], plain.log_mass(), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(
        jax.grad(lambda p: out(partial.num, p)[1].sum())(other).den,
        jax.grad(lambda p: merge(partial, p).log_mass().sum())(other).den,
        rtol=2e-4,
    )
    gradient = jax.grad(lambda num: out(num, other)[0].sum())(partial.num)
    same_gradient = jax.grad(lambda p: merge(p, other).normalise().sum())(partial).num
    np.testing.assert_allclose(gradient, same_gradient, rtol=2e-4)


@pytest.mark.parametrize("den", [1e-37, 1e-20, 1.0, 1e20, 1e37, -1e-20])
def test_normalising_and_the_mass_are_differentiable_for_every_denominator(den):
    num = jnp.asarray([[[[0.5, -2.0]]]])
    partial = Partial(num * den, jnp.full((1, 1, 1), den), jnp.zeros((1, 1, 1)))
    np.testing.assert_allclose(partial.normalise(), num, rtol=1e-6)
    gradient = jax.grad(lambda p: p.normalise().sum())(partial)
    # d(num/den) = -num/den^2 dden: with den = 1e-37 beyond float32, with den = 1e37 below it
    np.testing.assert_allclose(np.asarray(gradient.den, np.float64) * den, 1.5, rtol=1e-5)
    if den > 0:
        slope = jax.grad(lambda p: p.log_mass().sum())(partial).den
        np.testing.assert_allclose(np.asarray(slope, np.float64) * den, 1.0, rtol=1e-5)
    else:
        assert jnp.isnan(partial.log_mass()).all()


def test_the_mass_of_nothing():
    assert (IDENTITY.log_mass() == -jnp.inf).all()
    gradient = jax.grad(lambda p: jnp.where(jnp.isfinite(p.log_mass()), p.log_mass(), 0.0).sum())(IDENTITY)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_shares_of_two_dtypes_merge_in_the_wider():
    # a kernel that gives its output in bf16 and its log-sum-exp in float32; promotion is strict in these tests
    partial, other = a_partial(1, 3.0), a_partial(2, 4.0)
    rounded = Partial(partial.num.astype(jnp.bfloat16), partial.den, partial.log_scale)
    merged = merge(rounded, other)
    assert merged.num.dtype == merged.den.dtype == merged.log_scale.dtype == jnp.float32
    np.testing.assert_allclose(merged.normalise(), merge(partial, other).normalise(), atol=2e-2)


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
